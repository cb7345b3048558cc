"""An application that records numbered events where it is imported, and at each request; and a Celery one.

Served by `python -m gunicorn --preload tests.forking_app:app`, by uWSGI and by a Celery worker, which import it before
they fork: what it records at its import waits in the queue of a process that then forks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from fluxgate_mw import FluxGate
from tests.buffers import BEFORE_THE_FORK, numbered

fg = FluxGate(instrument=False)
for number in range(BEFORE_THE_FORK):
    fg.record(numbered(number))


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Record the event whose number is the path, and answer with the process that did it."""
    fg.record(numbered(int(environ["PATH_INFO"].strip("/"))))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
