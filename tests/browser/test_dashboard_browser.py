"""The dashboard in a real Chromium, served by a real server over a real SQLite store."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fluxgate_mw.dashboard import format as fmt
from fluxgate_mw.dashboard.app import make_dashboard
from fluxgate_mw.event import UsageEvent, User
from fluxgate_mw.stores.sqlite import SQLiteStore
from tests.dashboards import some_events

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]
DEADLINE_S = 20


def _insert(path: Path, events: list[UsageEvent]) -> None:
    """Store events from a thread of its own: Playwright keeps an event loop running in this one."""

    async def insert() -> None:
        store = SQLiteStore(path)
        await store.insert(events)
        await store.aclose()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(anyio.run, insert).result(DEADLINE_S)


@pytest.fixture(scope="module")
def events() -> list[UsageEvent]:
    """Two hundred calls of the last two weeks."""
    return some_events(200, datetime.now(UTC) - timedelta(seconds=5))


@pytest.fixture
def store_path(tmp_path: Path, events: list[UsageEvent]) -> Path:
    """A SQLite file with the calls in it."""
    path = tmp_path / "events.sqlite3"
    _insert(path, events)
    return path


@pytest.fixture
def address(store_path: Path) -> Iterator[str]:
    """The address of a real server of the dashboard over that file."""
    app = make_dashboard(SQLiteStore(store_path), public=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for these tests."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """A page in each colour scheme; whatever the browser complains of fails the test."""
    context = browser.new_context(
        base_url=address,
        color_scheme=request.param,
        viewport={"width": 1280, "height": 800},
    )
    complaints: list[str] = []
    opened = context.new_page()
    opened.set_default_timeout(DEADLINE_S * 1000)
    opened.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith(address) else complaints.append(asked.url))
    yield opened
    context.close()
    assert complaints == []


def test_from_the_explorer_to_a_call_and_to_its_features_total(page, events):
    """A row leads to its call, and the call's feature has the right total on the breakdown."""
    event = next(event for event in events if event.feature == "summarizer" and event.cost_nanos)
    page.goto("/requests")
    row = page.locator("tr", has=page.locator(f'a[href$="/requests/{event.event_id}"]'))
    expect(row).to_contain_text("summarizer")
    row.locator("time").click()
    expect(page.locator("h1")).to_contain_text("summarizer")
    expect(page.locator("main")).to_contain_text(event.event_id)
    page.get_by_role("link", name="Costs", exact=True).click()
    expect(page.locator("h1")).to_have_text("Cost breakdown")
    total = sum(event.cost_nanos or 0 for event in events if event.feature == "summarizer")
    spend = page.locator("tbody tr", has_text="summarizer").locator('[data-label="Spend"] data')
    expect(spend).to_have_attribute("data-nano", str(total))
    expect(spend).to_contain_text(fmt.total_cost(total))
    expect(page.locator("svg.plot rect.seg").first).to_be_visible()


def test_a_facet_filters_and_the_chip_takes_it_back(page):
    """Ticking a value applies it at once; its chip removes it; the back button restores."""
    page.goto("/requests")
    page.get_by_label("chat", exact=False).first.check()
    expect(page).to_have_url(re.compile(r"/requests\?feature=chat$"))
    assert set(page.locator('td[data-label="Feature"]').all_inner_texts()) == {"chat"}
    page.locator(".chip").click()
    expect(page).to_have_url(re.compile(r"/requests$"))
    page.go_back()
    expect(page.locator(".chip")).to_contain_text("feature: chat")


def test_the_list_fills_while_one_looks(page, store_path):
    """A call that is stored after the page was opened appears on it by itself."""
    page.goto("/requests")
    expect(page.locator("#live-word")).to_have_text("Live")
    late = UsageEvent(feature="just-now", user=User(id="late", name="Late Comer"), cost_nanos=1_000_000)
    _insert(store_path, [late])
    expect(page.locator("tbody tr").first).to_contain_text("Late Comer", timeout=DEADLINE_S * 1000)


def test_the_first_call_of_a_new_install_appears_with_its_filters(page, store_path):
    """An empty page fills by itself when the first call lands, and then has what to filter by."""
    page.goto("/requests?q=newcomer")
    expect(page.locator(".empty")).to_contain_text("No requests match")
    _insert(store_path, [UsageEvent(feature="newcomer")])
    expect(page.locator("tbody tr").first).to_contain_text("newcomer", timeout=DEADLINE_S * 1000)
    expect(page.get_by_role("checkbox", name="newcomer")).to_be_visible()


def test_the_list_stands_still_under_the_pointer(page, store_path):
    """While one points at a row, nothing moves; when the pointer leaves, the list catches up."""
    page.goto("/requests")
    page.locator("tbody tr").nth(2).hover()
    _insert(store_path, [UsageEvent(feature="just-now")])
    expect(page.locator("#live-word")).to_have_text("Held", timeout=DEADLINE_S * 1000)
    expect(page.locator("tbody tr").first).not_to_contain_text("just-now")
    page.locator("h1").hover()
    expect(page.locator("tbody tr").first).to_contain_text("just-now", timeout=DEADLINE_S * 1000)


def test_the_theme_is_kept(page):
    """The button switches the theme, and the next page has it from the server on."""
    page.goto("/costs")
    button = page.locator("#theme")
    wanted = button.inner_text().lower()
    button.click()
    page.goto("/requests")
    assert page.locator("html").get_attribute("data-theme") == wanted
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 251, 250)", "dark": "rgb(19, 20, 18)"}[wanted]


def test_it_is_used_by_keyboard(page):
    """The first tab stop skips to the content, and what has the focus is outlined."""
    page.goto("/requests")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("path", ["/", "/requests", "/costs"])
def test_a_narrow_screen_needs_no_sideways_scrolling(page, path):
    """At 375 pixels, which is also a zoom of 340 %, the tables are stacked cards."""
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.locator("tbody td").first.evaluate("cell => getComputedStyle(cell).display") == "block"


def test_it_works_without_javascript(browser, address):
    """Filters, paging and links need no script."""
    context = browser.new_context(base_url=address, java_script_enabled=False, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto("/requests")
    page.get_by_label("chat", exact=False).first.check()
    page.get_by_role("button", name="Apply").click()
    assert "feature=chat" in page.url
    assert set(page.locator('td[data-label="Feature"]').all_inner_texts()) == {"chat"}
    context.close()
