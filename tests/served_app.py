"""WSGI applications for real servers: each answers with what its context says, as JSON lines.

`python -m gunicorn tests.served_app:flask_app` and so on; started by a test.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import flask

from fluxgate_mw import FluxGateWSGIMiddleware, current
from fluxgate_mw.trust import TrustedProxies

TRUSTED = TrustedProxies(["127.0.0.1"], user_header="X-User")


def said() -> str:
    """Return who and what the context says, as one line."""
    now = current()
    return json.dumps([now.user and now.user.id, now.feature, now.request_id]) + "\n"


def slowly() -> Iterator[str]:
    """Say it at each step of a body that takes its time."""
    for _ in range(3):
        time.sleep(0.002)
        yield said()


flask_app = flask.Flask("served")
flask_app.wsgi_app = FluxGateWSGIMiddleware(flask_app.wsgi_app, trusted=TRUSTED)  # type: ignore[method-assign]


@flask_app.get("/items/<int:key>")
def view(key: int) -> flask.Response:
    return flask.Response(slowly())


def wsgi_app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Say it at each step, without a framework."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for line in slowly():
        yield line.encode()


bare_wsgi = FluxGateWSGIMiddleware(wsgi_app, trusted=TRUSTED)
