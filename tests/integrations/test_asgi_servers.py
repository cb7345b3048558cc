"""Real ASGI servers: uvicorn, gunicorn with uvicorn's worker and its own, hypercorn, under requests that overlap."""

from __future__ import annotations

from typing import Any

import pytest

from tests.overlapping import GUNICORN, UVICORN, ask_socket, keeps_apart

APPLICATIONS = {
    "FastAPI": ("tests.served_asgi:fastapi_app", "GET /items/{key}"),
    "Starlette": ("tests.served_asgi:starlette_app", "GET /items/{key}"),
    "Litestar": ("tests.served_asgi:litestar_app", "GET /items/{key}"),
    "Quart": ("tests.served_asgi:quart_app", "GET /items/<int:key>"),
    "Django": ("tests.served_django:asgi", "GET /items/<int:key>"),
    "bare ASGI": ("tests.served_asgi:bare_asgi", None),
}
SERVERS = {
    "uvicorn": UVICORN,
    "gunicorn uvicorn": (*GUNICORN, "-k", "uvicorn.workers.UvicornWorker"),
}
OTHERS = {
    "FastAPI on gunicorn asgi": (*GUNICORN, "-k", "asgi"),
    "Quart on hypercorn": ("-m", "hypercorn", "--log-level", "error", "-b", "127.0.0.1:PORT"),
}


def case(framework: str, name: str, command: tuple[str, ...]) -> Any:
    """Return one framework on one server, as a test's parameters."""
    app, route = APPLICATIONS[framework]
    marks = pytest.mark.survival(framework, "under uvicorn, and gunicorn with its workers")
    return pytest.param((*command, app), route, marks=marks, id=name.replace(" ", "-"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("command", "route"),
    [
        *(
            case(framework, f"{framework} on {server}", command)
            for framework in APPLICATIONS
            for server, command in SERVERS.items()
        ),
        *(case(name.partition(" ")[0], name, command) for name, command in OTHERS.items()),
    ],
)
def test_overlapping_requests_of_a_real_server_keep_their_own_user_and_route(
    command: tuple[str, ...], route: str | None
) -> None:
    """At every step of a streamed body; an anonymous one is nobody."""
    keeps_apart(command, route)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "framework",
    [
        pytest.param(framework, marks=pytest.mark.survival(framework, "websocket"))
        for framework in ("FastAPI", "Starlette", "Litestar", "Quart")
    ],
)
def test_overlapping_websockets_of_a_real_server_keep_their_own_user_and_route(framework: str) -> None:
    """At every message; an anonymous one is nobody."""
    app, route = APPLICATIONS[framework]
    assert route is not None
    keeps_apart((*UVICORN, app), route.replace("GET /items", "WEBSOCKET /sockets"), ask_socket)
