"""Real WSGI servers: gunicorn with each of its workers, and gevent's own, under requests that overlap."""

from __future__ import annotations

from typing import Any

import pytest

from tests.overlapping import GUNICORN, keeps_apart

RULE = "GET /items/<int:key>"
GEVENT = (
    "-c",
    (
        "from gevent import monkey; monkey.patch_all(); import sys; from importlib import import_module;"
        "from gevent.pywsgi import WSGIServer; module, name = sys.argv[1].split(':');"
        "app = getattr(import_module(module), name);"
        "WSGIServer(('127.0.0.1', int(sys.argv[2])), app, log=None).serve_forever()"
    ),
)
APPLICATIONS = {
    "Flask": ("tests.served_app:flask_app", RULE),
    "bare WSGI": ("tests.served_app:bare_wsgi", None),
    "Django": ("tests.served_django:wsgi", RULE),
}
WORKERS = {"sync": ("-k", "sync"), "gthread": ("-k", "gthread", "--threads", "8"), "gevent": ("-k", "gevent")}


def case(framework: str, server: str, command: tuple[str, ...], place: str) -> Any:
    """Return one framework on one server, as a test's parameters."""
    app, route = APPLICATIONS[framework]
    filled = tuple(part.replace("APP", app) for part in command)
    return pytest.param(
        filled, route, marks=pytest.mark.survival(framework, place), id=f"{framework} on {server}".replace(" ", "-")
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("command", "route"),
    [
        *(
            case(framework, f"gunicorn {worker}", (*GUNICORN, *options, "APP"), "under gunicorn: sync, gthread, gevent")
            for framework in APPLICATIONS
            for worker, options in WORKERS.items()
        ),
        *(
            case(framework, "gevent.pywsgi", (*GEVENT, "APP", "PORT"), "greenlets (gevent.pywsgi)")
            for framework in APPLICATIONS
        ),
    ],
)
def test_overlapping_requests_of_a_real_server_keep_their_own_user_and_route(
    command: tuple[str, ...], route: str | None
) -> None:
    """At every step of a streamed body; an anonymous one is nobody."""
    keeps_apart(command, route)
