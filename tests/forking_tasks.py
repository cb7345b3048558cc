"""A Celery application whose worker imports it, records events, and forks: see `forking_app`."""

from __future__ import annotations

import os

import celery

from tests.buffers import numbered
from tests.forking_app import fg

app = celery.Celery("forking", broker=os.environ["FORKING_BROKER"], backend=os.environ["FORKING_BROKER"])
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)


@app.task(name="work")
def work(number: int) -> int:
    """Record the event of this number, and say in which process."""
    fg.record(numbered(number))
    return os.getpid()
