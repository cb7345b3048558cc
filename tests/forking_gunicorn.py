"""The configuration of the gunicorn that serves `tests.forking_app`: its workers say when they heed signals."""

from __future__ import annotations

import sys
from typing import Any

READY = "this process heeds its signals now"


def post_worker_init(worker: Any) -> None:
    """Say so; gunicorn calls it when the worker has set up its handlers."""
    sys.stderr.write(f"{READY}\n")
    sys.stderr.flush()
