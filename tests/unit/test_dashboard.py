"""The pages of the dashboard, over a real SQLite store."""

from __future__ import annotations

import gzip
import html
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from fluxgate_mw.dashboard import format as fmt
from fluxgate_mw.dashboard.app import make_dashboard
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.event import UsageEvent, User
from fluxgate_mw.query import CostRow
from fluxgate_mw.stores.sqlite import SQLiteStore
from tests.dashboards import NOW, StillStore, some_events

POLICY = "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
PAGES = ["/", "/requests", "/costs", "/costs?by=user", "/costs?by=model&range=all"]
EVENTS = some_events(120)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the events in it."""
    path = tmp_path_factory.mktemp("dashboard") / "events.sqlite3"
    _fill(path, EVENTS)
    return path


def _fill(path: Path, events: list[UsageEvent]) -> None:
    async def fill() -> None:
        store = SQLiteStore(path)
        await store.insert(events)
        await store.aclose()

    anyio.run(fill)


def _losses():
    return {"queued": 3, "dropped": {"queue_full": 7}, "not covered": {"websocket": 2}, "lag, s": 31.0}


def _serve(store, prefix: str = "", **options) -> Iterator[TestClient]:
    app = make_dashboard(store, public=True, clock=lambda: NOW, **options)
    whole = Starlette(routes=[Mount(prefix, app)]) if prefix else app
    with TestClient(whole, base_url="http://localhost") as client:
        yield client
        client.portal.call(store.aclose)


@pytest.fixture(scope="module")
def client(store_path: Path) -> Iterator[TestClient]:
    """A client of the dashboard over that file."""
    yield from _serve(SQLiteStore(store_path), trust=_losses)


def _still(*events: UsageEvent, rows: tuple[CostRow, ...] = ()) -> TestClient:
    store = StillStore(events, rows)
    return TestClient(make_dashboard(store, public=True, clock=lambda: NOW), base_url="http://localhost")


def _text(page: str) -> str:
    words = re.sub(r"<(script|style|title)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(words).split())


@pytest.mark.parametrize("path", [*PAGES, "/requests/{a call}", "/nothing", "/requests?limit=0"])
def test_every_page_is_whole_and_strict(client, path):
    """One h1, a language, the landmarks, the exact content policy, and nothing inline that it would forbid."""
    reply = client.get(path.replace("{a call}", EVENTS[0].event_id))
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.text.count("<h1>") == 1
    assert '<html lang="en">' in reply.text
    assert '<main id="main"' in reply.text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)|javascript:", reply.text)


@pytest.mark.parametrize("path", PAGES)
def test_the_first_view_is_light(client, path):
    """Page, style sheet and script together stay under 60 KB compressed."""
    assets = [client.get(f"/static/{name}").content for name in ("dashboard.css", "dashboard.js", "icon.svg")]
    weight = sum(len(gzip.compress(part)) for part in [client.get(path).content, *assets])
    assert weight <= 60 * 1024


def test_a_page_is_made_quickly(client):
    """The median page of the Explorer over a small store takes well under the 150 ms of its budget."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        client.get("/requests")
        times.append(time.perf_counter() - began)
    assert statistics.median(times) < 0.5


def test_the_explorer_shows_each_call(client):
    """A row has the feature, the name over the e-mail, the model, the tokens, the cost and a link to the call."""
    page = client.get("/requests").text
    row = next(row for row in page.split("<tr") if EVENTS[4].event_id in row)
    text = _text("<tr" + row)
    assert f'href="/requests/{EVENTS[4].event_id}"' in row
    for part in (
        "Success",
        "no feature" if EVENTS[4].feature is None else EVENTS[4].feature,
        "gpt-4o-mini",
        "104 → 14",
    ):
        assert part in text
    assert "Ada Lovelace ada@example.com" in text
    assert 'data-nano="6172835" title="$0.006172835"' in row


def test_an_unknown_cost_is_never_zero(client):
    """A call without a price shows a dash and says so."""
    event = next(event for event in EVENTS if event.cost_nanos is None)
    text = _text(client.get(f"/requests/{event.event_id}").text)
    assert "— cost" in text.replace("cost —", "— cost")
    assert "unpriced" in text
    assert "$0" not in text


def test_pages_of_the_list_join_without_gap_or_overlap(client):
    """Following Older to the end shows every call once, newest first; Newer leads back."""
    path, seen, pages = "/requests?range=all", [], 0
    while path:
        page = client.get(path).text
        seen += re.findall(r'<td data-label="Time"><a href="/requests/([^"]+)"', page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        path = html.unescape(older[1]) if older else None
        pages += 1
    assert seen == [event.event_id for event in EVENTS]
    assert pages == 3
    newer = html.unescape(re.search(r'rel="prev" href="([^"]+)"', page)[1])
    assert EVENTS[99].event_id in client.get(newer).text


@pytest.mark.parametrize(
    ("query", "belongs"),
    [
        ("feature=chat", lambda event: event.feature == "chat"),
        ("feature=chat&without=feature", lambda event: event.feature in ("chat", None)),
        ("user=u1&status=ERROR", lambda event: event.user and event.user.id == "u1" and event.status == "ERROR"),
        ("without=user", lambda event: event.user is None),
        ("model=gpt-unknown", lambda event: event.model == "gpt-unknown"),
        ("q=GRACE", lambda event: event.user and event.user.email == "grace@example.com"),
        ("range=24h", lambda event: (NOW - event.occurred_at).total_seconds() <= 24 * 3600),
    ],
)
def test_filters_hold_on_page_and_json_alike(client, query, belongs):
    """Page and JSON show exactly the calls that the query string asks for."""
    expected = [event.event_id for event in EVENTS if belongs(event)]
    assert expected
    found = client.get(f"/requests.json?limit=200&{query}").json()["events"]
    assert [event["event_id"] for event in found] == expected
    page = client.get(f"/requests?limit=200&{query}").text
    assert re.findall(r'<td data-label="Time"><a href="/requests/([^"]+)"', page) == expected


def test_facets_count_with_the_other_filters_held(client):
    """A ticked value stays ticked, its alternatives stay to choose, and other facets count within it."""
    page = client.get("/requests?feature=chat").text
    chats = [event for event in EVENTS if event.feature == "chat"]
    boxes = re.findall(
        r'name="(\w+)" value="([^"]*)"( checked)?[^>]*><span class="clip">[^<]*</span><span class="n">(\d+)', page
    )
    counts = {(name, value): (bool(checked), int(number)) for name, value, checked, number in boxes}
    assert counts["feature", "chat"] == (True, len(chats))
    assert counts["feature", "summarizer"] == (False, sum(event.feature == "summarizer" for event in EVENTS))
    assert counts["status", "ERROR"] == (False, sum(event.status == "ERROR" for event in chats))


def test_what_is_chosen_stays_to_be_taken_back_where_no_call_has_it(client):
    """A form without its box would be sent without the filter, and show the calls of all."""
    page = client.get("/requests?feature=chat&feature=gone&user=acct_55&without=user&range=15m&status=BLOCKED").text
    boxes = re.findall(r'<input type="checkbox" name="(\w+)" value="([^"]*)" checked>.*?<span class="n">(\d+)', page)
    assert boxes == [
        ("feature", "chat", "0"),
        ("feature", "gone", "0"),
        ("user", "acct_55", "0"),
        ("without", "user", "0"),
        ("status", "BLOCKED", "0"),
    ]


@pytest.mark.parametrize("dimension", ["feature", "user", "model"])
def test_the_breakdown_adds_up(client, dimension):
    """The rows of the table and the bars of the picture each sum to the spend of all calls."""
    page = client.get(f"/costs?range=all&by={dimension}").text
    total = sum(event.cost_nanos or 0 for event in EVENTS)
    body, foot = (
        re.search(r"<tbody.*?</tbody>", page, re.DOTALL)[0],
        re.search(r"<tfoot.*?</tfoot>", page, re.DOTALL)[0],
    )
    assert sum(int(nanos) for nanos in re.findall(r'data-label="Spend".*?data-nano="(\d*)"', body) if nanos) == total
    assert f'data-nano="{total}"' in foot
    assert len(re.findall(r'class="seg', page)) > 8
    assert re.search(r'<figcaption id="finding">.*in all; ', page)
    report = client.get(f"/costs.json?range=all&by={dimension}").json()
    assert report["total"]["cost_nanos"] == total == sum(day["cost_nanos"] for day in report["days"])


def test_what_is_partly_known_says_so(client):
    """A sum with unpriced calls is a lower bound, and how many they are is told."""
    text = _text(client.get("/costs?range=all").text)
    unpriced = sum(event.cost_nanos is None for event in EVENTS)
    assert "≥ $0." in text
    assert f"{unpriced} of 120 calls unpriced" in text


def test_the_trust_strip_shows_what_may_be_missing(client):
    """Attribution, prices and the losses of the delivery stand on the first page."""
    page = client.get("/?range=all").text
    both = sum(event.feature is not None and event.user is not None for event in EVENTS)
    assert f"{both / 1.2:.1f} % attributed" in _text(page)
    assert '<li class="look"><b>7</b> dropped: queue full</li>' in page
    assert "<li><b>3</b> queued</li>" in page
    assert '<li class="look"><b>2</b> not covered: websocket</li>' in page
    assert '<li class="look"><b>31.0</b> lag, s</li>' in page


@pytest.mark.parametrize(
    "query",
    [
        "feature=chat",
        "user=u1",
        "feature=chat&user=u1",
        "without=feature",
        "without=user",
        "feature=chat&without=feature",
        "user=u1&without=user",
        "feature=chat&without=user",
        "feature=chat&without=feature&without=user",
        "q=ada",
    ],
)
def test_the_share_that_is_attributed_is_of_the_calls_that_are_shown(client, query):
    """A filter leaves out of the share what it leaves out of the list."""
    found = client.get(f"/requests.json?range=all&limit=200&{query}").json()["events"]
    both = sum(event["feature"] is not None and event["user"] is not None for event in found)
    assert f"{fmt.share(both, len(found))} attributed" in _text(client.get(f"/?range=all&{query}").text)


def test_losses_are_shown_where_nothing_else_is(tmp_path):
    """An empty page says what was dropped: that may be why it is empty.

    PostHog/posthog-python#146, langfuse/langfuse#15374: drops that only a line in the log knew of.
    """
    for client in _serve(
        SQLiteStore(tmp_path / "e.sqlite3"), trust=lambda: {"dropped": {"spool_full": 4}, "queued": 0}
    ):
        assert '<li class="look"><b>4</b> dropped: spool full</li>' in client.get("/").text
    for client in _serve(SQLiteStore(tmp_path / "e.sqlite3"), trust=lambda: {"dropped": 0, "lag, s": 0.1}):
        assert "dropped" not in client.get("/").text


def test_the_call_page_says_that_content_is_not_kept(client):
    """The page names the web request, and says where the prompt would be."""
    first = next(event for event in EVENTS if event.request_id == "request-3")
    text = _text(client.get(f"/requests/{first.event_id}").text)
    assert "request-3" in text
    assert "neither prompts nor answers are kept" in text


def test_the_call_page_shows_what_was_captured():
    """Closed, as text and never as HTML, and without saying that nothing is kept."""
    call = UsageEvent(input_content='{"messages":[{"content":"<b>hi</b>"}]}', output_content="Hi <i>you</i> \ud83d…")
    page = _still(call).get(f"/requests/{call.event_id}").text
    assert re.findall(r"<details><summary>(\w+)</summary><pre>", page) == ["Prompt", "Answer"]
    assert '{ "messages": [ { "content": "<b>hi</b>" } ] }' in _text(page)
    assert "Hi &lt;i&gt;you&lt;/i&gt; ?…" in page
    assert "Not captured" not in page


def test_a_call_without_a_cost_says_why():
    """In the words of its event, on its page and at its badge."""
    reasons = ("unknown provider 'llm.example'", None)
    for reason, shown in zip(reasons, (reasons[0], "the price or the usage of this call is not known"), strict=True):
        call = UsageEvent(unpriced_reason=reason)
        assert f"Price table: none. Unpriced: {shown}." in _text(_still(call).get(f"/requests/{call.event_id}").text)
        assert f'title="{shown}">unpriced' in html.unescape(_still(call).get("/requests").text)
    priced = UsageEvent(cost_nanos=1)
    assert "Unpriced" not in _still(priced).get(f"/requests/{priced.event_id}").text


def test_the_calls_of_a_web_request_stand_together(tmp_path):
    """The page of a call lists the others of its web request in order of time, and no call of another one."""
    user = User(id="u")
    calls = [UsageEvent(occurred_at=NOW.replace(second=n), request_id="r", user=user) for n in range(3)]
    stranger = UsageEvent(occurred_at=NOW.replace(second=1), request_id="other", user=user)
    path = tmp_path / "events.sqlite3"
    _fill(path, [*calls, stranger])
    for client in _serve(SQLiteStore(path)):
        page = client.get(f"/requests/{calls[1].event_id}").text
        table = page[page.index("Calls of this web request") :]
        assert re.findall(r'href="/requests/([\w-]+)"', table) == [call.event_id for call in calls]
        assert "Calls of this web request" not in client.get(f"/requests/{stranger.event_id}").text


def test_a_live_reply_is_the_part_that_changes(client):
    """The script's request gets the rows without the frame, and the same rows."""
    whole, part = client.get("/requests").text, client.get("/requests", headers={"fluxgate-live": "1"}).text
    assert part.strip() in whole
    assert "<html" not in part
    assert "Ada Lovelace" in part


@pytest.mark.parametrize("path", PAGES)
def test_a_new_install_is_told_what_to_do(path):
    """Without any call, each page shows the three lines to copy."""
    text = _text(_still().get(path).text)
    assert "fg = FluxGate() app.add_middleware(FluxGateMiddleware)" in text


def test_a_filter_that_matches_nothing_can_be_removed(client):
    """The page says so, and links to the same view without each filter."""
    page = client.get("/requests?feature=nope&range=7d").text
    assert "No requests match" in page
    assert 'href="/requests?range=7d">Remove feature: nope' in page


@pytest.mark.parametrize(
    "path", ["/requests/none", "/requests/" + quote("<b>&\x00é/"), "/nothing", "/requests/a/b", "/%ff"]
)
def test_what_is_not_there_is_a_clear_404(client, path):
    """An unknown call or page is a page that says so."""
    reply = client.get(path)
    assert reply.status_code == 404
    assert "Not found" in reply.text


def test_what_cannot_be_understood_names_its_field(client):
    """The message names the field, on the page and in JSON, and shows nothing of the value."""
    page = client.get("/costs?since=%3Cscript%3E")
    assert page.status_code == 400
    assert "since: expected an ISO 8601 date" in _text(page.text)
    assert "<script>" not in page.text
    reply = client.get("/costs.json?by=x")
    assert (reply.status_code, reply.json()) == (400, {"error": "by: expected one of feature, user, model"})


def test_pages_are_only_read(client):
    """Other methods are a 405."""
    assert client.post("/requests").status_code == 405
    assert client.delete("/costs").status_code == 405
    assert client.head("/costs").status_code == 200


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/requests", "/requests.json", "/costs", "/costs.json", "/"]),
    key=st.sampled_from(
        ["q", "feature", "user", "model", "after", "before", "since", "until", "limit", "range", "status"]
    ),
    value=st.text(max_size=30) | st.datetimes().map(str) | st.integers().map(lambda n: f"{n},x"),
)
def test_no_query_breaks_a_page(client, path, key, value):
    """Whatever is asked, the answer is a page or a 400, never a 500."""
    query = f"{key}={quote(value, errors='replace')}"
    assert client.get(f"{path}?{query}").status_code in (200, 400)


ODD = "<script>alert(1)</script>\"' onload=x {{ 7*7 }}"


def test_odd_values_are_shown_as_text():
    """Markup, template syntax, halves of characters and very long names in every field do no harm."""
    user = User(id=ODD, email=f"{ODD}@x", name="\ud83d" + "n" * 500)
    event = UsageEvent(
        event_id="odd/id?&#",
        occurred_at=NOW,
        feature=ODD,
        user=user,
        response_model="m" * 3000,
        request_model="\udcff",
        error_type=ODD,
        error_message="\x00\x1b" + ODD,
        status="ERROR",
        latency_ms=float("inf"),
        metadata={ODD: [ODD, "\ud83d", float("nan"), 2**70], "n": None},
        input_tokens=2**60,
        cost_nanos=2**60,
        finish_reasons=(ODD,),
        price_version=ODD,
    )
    bare = UsageEvent(event_id="bare", occurred_at=NOW)
    row = CostRow(
        key=ODD, label="\ud83d" + ODD, calls=1, cost_nanos=2**60, unpriced=0, errors=1, input_tokens=1, output_tokens=1
    )
    none = CostRow(key=None, calls=2, cost_nanos=0, unpriced=2, errors=0, input_tokens=0, output_tokens=0)
    client = _still(event, bare, rows=(row, none))
    for path in [*PAGES, "/requests/bare", "/requests.json", "/costs.json"]:
        reply = client.get(path)
        assert reply.status_code == 200, path
        if "json" not in path:
            assert "<script>alert" not in reply.text
            assert "49" not in _text(reply.text).replace(str(2**60), "").replace("1,152,921", "")
    assert client.get("/requests.json").json()["events"][0]["feature"] == ODD
    assert "/requests/odd%2Fid%3F%26%23" in client.get("/requests").text


def test_the_app_works_under_a_prefix(store_path):
    """Mounted, every link of every page leads below the prefix and is there."""
    for client in _serve(SQLiteStore(store_path), prefix="/admin/llm"):
        waiting, seen = ["/admin/llm/"], set()
        while waiting and len(seen) < 60:
            path = waiting.pop(0)
            if path in seen:
                continue
            seen.add(path)
            reply = client.get(path)
            assert reply.status_code == 200, path
            found = re.findall(r'(?:href|src|action)="([^"]+)"', reply.text) if "<html" in reply.text else []
            links = [html.unescape(link) for link in found if not link.startswith("#")]
            assert [link for link in links if not link.startswith("/admin/llm/")] == []
            waiting += links
        assert len(seen) == 60
        assert client.get("/admin/llm").status_code == 200


def test_static_files_may_be_kept(client):
    """An address with a version is kept for ever, one without for minutes; no file lies outside."""
    address = re.search(r'href="(/static/dashboard\.css\?v=\w+)"', client.get("/").text)[1]
    assert client.get(address).headers["cache-control"] == "public, max-age=31536000, immutable"
    assert client.get("/static/dashboard.css").headers["cache-control"] == "public, max-age=300"
    assert client.get("/static/%2e%2e/app.py").status_code == 404


class _DownStore(StillStore):
    async def events(self, query, /):
        raise BackendUnavailable("sqlite", "locked: /secret/path")

    async def costs(self, dimension, where, /):
        raise BackendUnavailable("sqlite", "locked: /secret/path")


@pytest.mark.parametrize("path", ["/", "/requests", "/costs", "/costs.json", "/healthz"])
def test_a_store_that_is_down_is_a_503(path):
    """The page says that the store cannot be asked, and no more."""
    with TestClient(make_dashboard(_DownStore(), public=True), base_url="http://localhost") as client:
        reply = client.get(path)
    assert reply.status_code == 503
    assert "store" in reply.text
    assert "secret" not in reply.text


def test_the_theme_is_right_at_the_first_paint(client):
    """The chosen theme comes from its cookie; anything else in it is ignored."""
    assert '<html lang="en" data-theme="dark">' in client.get("/", headers={"cookie": "fluxgate_theme=dark"}).text
    assert '<html lang="en">' in client.get("/", headers={"cookie": 'fluxgate_theme="><x>'}).text
