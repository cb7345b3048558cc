"""One of the demo's two apps in a process of its own: `python -m fluxgate_mw.demo.child fastapi|flask DESCRIPTOR`.

The listening socket is inherited, so that nobody can take the port in between. The process ends in order when it is
told to (SIGTERM), and when its standard input ends: then whoever started it is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from importlib import import_module
from threading import Thread
from typing import Any, Final

import uvicorn
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.util import import_app  # type: ignore[import-untyped]
from uvicorn.importer import import_from_string

__all__ = ["main"]

_THREADS: Final = 16
_GRACE_S: Final = 2
_SLOW_TO_LOAD: Final = ("openai.resources.chat", "openai.resources.embeddings", "openai.resources.responses")
"""What the client would load inside the first visitor's request."""


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    """Gunicorn with one worker of many threads, on an inherited socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's own defaults."""
        options = {
            "bind": f"fd://{self._descriptor}",
            "workers": 1,
            "worker_class": "gthread",
            "threads": _THREADS,
            "graceful_timeout": _GRACE_S,
            "loglevel": "warning",
            "control_socket_disable": True,
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the app; called in the worker, after the fork."""
        return import_app("fluxgate_mw.demo.flask_app:app")


def _serve_fastapi(descriptor: int) -> None:
    config = uvicorn.Config(
        import_from_string("fluxgate_mw.demo.fastapi_app:app"),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run([socket.socket(fileno=descriptor)])


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(name: str, descriptor: int) -> None:
    """Serve an app on a listening socket until told to stop."""
    Thread(target=_end_with_parent, daemon=True).start()
    for module in _SLOW_TO_LOAD:
        import_module(module)
    if name == "fastapi":
        _serve_fastapi(descriptor)
    else:
        _Gunicorn(descriptor).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
