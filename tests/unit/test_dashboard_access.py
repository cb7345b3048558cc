"""Who may look at the dashboard."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from fluxgate_mw.dashboard.access import Access
from fluxgate_mw.dashboard.app import make_dashboard
from fluxgate_mw.errors import ConfigurationError
from tests.dashboards import StillStore

TOKEN = "s3cret token/with=odd&chars"


def _client(**rule) -> TestClient:
    return TestClient(make_dashboard(StillStore(), **rule), base_url="http://127.0.0.1:8000", follow_redirects=False)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"public": True, "token": "x"},
        {"public": True, "authorize": bool},
        {"public": "yes", "authorize": bool},
        {"authorize": True},
        {"token": " "},
    ],
)
def test_a_rule_must_be_chosen_and_make_sense(rule):
    """No rule, two that contradict each other, an empty token or what cannot be called fail when the app is made."""
    with pytest.raises(ConfigurationError):
        make_dashboard(StillStore(), **rule)


@pytest.mark.parametrize(
    "path", ["/", "/requests", "/costs", "/requests.json", "/costs.json", "/requests/x", "/nothing"]
)
def test_without_the_token_nothing_is_shown(path):
    """Every page asks for the token, those that do not exist too; what is open says nothing."""
    client = _client(token=TOKEN)
    reply = client.get(path)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/static/dashboard.css").status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic " + TOKEN, "Bearer \xff"])
def test_a_wrong_bearer_is_refused(header):
    """Only the very token lets a script in."""
    client = _client(token=TOKEN)
    assert client.get("/costs.json", headers={"authorization": header.encode("latin-1")}).status_code == 401
    assert client.get("/costs.json", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_a_token_in_the_address_becomes_a_cookie():
    """The link with the token signs in once and leads to the same page without it."""
    client = _client(token=TOKEN)
    reply = client.get("/requests", params={"range": "7d", "token": TOKEN})
    assert (reply.status_code, reply.headers["location"]) == (303, "/requests?range=7d")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert client.get(reply.headers["location"]).status_code == 200


def test_the_cookie_of_a_mounted_app_is_for_its_prefix():
    """Below a prefix, the redirect leads below it, and the cookie is sent nowhere else."""
    app = Starlette(routes=[Mount("/admin/llm", make_dashboard(StillStore(), token=TOKEN))])
    client = TestClient(app, base_url="https://host", follow_redirects=False)
    reply = client.get("/admin/llm/costs", params={"token": TOKEN})
    assert reply.headers["location"] == "/admin/llm/costs"
    assert {"path=/admin/llm", "secure"} <= set(reply.headers["set-cookie"].lower().split("; "))
    assert client.get("/admin/llm/costs").status_code == 200


def test_a_wrong_token_in_the_address_is_refused():
    """Without a cookie, a wrong token is a 401 that does not repeat it."""
    reply = _client(token=TOKEN).get("/requests", params={"token": "wrong-one"})
    assert reply.status_code == 401
    assert "wrong-one" not in reply.text


def test_the_form_signs_in():
    """The token typed into the page that asks for it works as the link does; a wrong or huge one does not."""
    client = _client(token=TOKEN)
    assert "<form" in client.get("/costs").text
    assert client.post("/costs", data={"token": "wrong"}).status_code == 401
    assert client.post("/costs", content=b"token=" + b"x" * 5000).status_code == 413
    reply = client.post("/costs", data={"token": TOKEN})
    assert (reply.status_code, reply.headers["location"]) == (303, "/costs")
    assert client.get("/costs").status_code == 200


def test_the_redirect_stays_here():
    """A path that begins with two slashes does not lead to another host."""
    reply = _client(token="t").get("http://127.0.0.1:8000//evil.example/?token=t")
    assert reply.headers["location"] == "/evil.example/"


@pytest.mark.parametrize("answer", [True, False, RedirectResponse("/login")])
@pytest.mark.parametrize("waits", [True, False])
def test_the_application_decides(answer, waits):
    """`authorize`, sync or async, is given the request and lets it in or not; a response is no yes."""
    seen: list[str] = []

    def ask(request: Request) -> bool:
        seen.append(request.url.path)
        return answer

    async def ask_async(request: Request) -> bool:
        return ask(request)

    reply = _client(authorize=ask_async if waits else ask).get("/costs")
    assert reply.status_code == (200 if answer is True else 403)
    assert seen == ["/costs"]


def test_an_authorize_that_fails_shows_nothing():
    """What the application's rule raises is its own affair; the page stays closed."""
    client = _client(authorize=lambda _request: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        client.get("/costs")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1", "a b"]
)
def test_an_open_page_answers_to_loopback_names_alone(host):
    """A page that asks nobody refuses a foreign Host header (DNS rebinding), on every path."""
    client = _client(public=True)
    for path in ("/", "/healthz", "/static/dashboard.css", "/costs.json"):
        assert client.get(path, headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9999", "LOCALHOST:80", "localhost.", "[::1]:8080"])
def test_loopback_names_are_let_in(host):
    """With or without a port, in any case."""
    assert _client(public=True).get("/healthz", headers={"host": host}).status_code == 200


def test_hosts_can_be_named():
    """Names, everything below a name, or all."""
    access = Access(public=True, hosts=["llm.example.com", "*.Corp.example"])
    assert access.allows_host("llm.example.com:443")
    assert access.allows_host("a.corp.example")
    assert not access.allows_host("corp.example")
    assert not access.allows_host("127.0.0.1")
    assert Access(public=True, hosts=["*"]).allows_host("anything")
    assert Access(token="t").allows_host("anything")
    assert not Access(token="t", hosts=["here"]).allows_host("anything")
