"""Visitors: several signed-in people and one that nobody knows, who use both apps at a steady rate.

They speak plain HTTP with the standard library and know nothing of models or of tracking.
"""

from __future__ import annotations

import http.client
import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec

from fluxgate_mw.demo.people import COOKIE, PEOPLE

__all__ = ["ACTIONS", "LIVE_ACTIONS", "Action", "Traffic", "Visits"]

_CONCURRENT: Final = 10
_TIMEOUT_S: Final = 20.0
_CATCH_UP_S: Final = 3.0
_FIRST_BYTES: Final = 1
_TEXTS: Final = (
    "The quarterly report says that renewals are up and support is slower.",
    "Could you look at my last three orders and tell me what they have in common?",
    "We moved the office to the harbour; please tell the regular customers.",
    "Die Lieferung ist gestern angekommen, aber zwei Kartons fehlen.",
    "Was ist der Unterschied zwischen den beiden Tarifen? Bitte kurz.",
)


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a visitor does.

    Args:
        app: `fastapi` or `flask`.
        path: Where to post to.
        weight: How often it is done, against the others.
        behaviour: What the loopback provider shall do with it, as `openai_server` says; empty for an answer.
        anonymous: Done without the cookie.
        leave: Go away after the first bytes of the answer.
    """

    app: str
    path: str
    weight: int = 1
    behaviour: str = ""
    anonymous: bool = False
    leave: bool = False


LIVE_ACTIONS: Final = (
    Action(app="fastapi", path="/summarize/d-17", weight=15),
    Action(app="fastapi", path="/chat", weight=15),
    Action(app="fastapi", path="/translate/de", weight=9),
    Action(app="fastapi", path="/search", weight=3),
    Action(app="fastapi", path="/report", weight=3),
    Action(app="flask", path="/summarize/d-42", weight=12),
    Action(app="flask", path="/chat", weight=12),
    Action(app="flask", path="/translate/fr", weight=6),
    Action(app="flask", path="/classify", weight=6),
    Action(app="flask", path="/summarize/d-1", weight=3, anonymous=True),
)
ACTIONS: Final = (
    *LIVE_ACTIONS,
    Action(app="fastapi", path="/weather", weight=6),
    Action(app="fastapi", path="/image", weight=6),
    Action(app="fastapi", path="/plan", weight=6),
    Action(app="fastapi", path="/experiment", weight=3),
    Action(app="fastapi", path="/chat", behaviour="cut"),
    Action(app="fastapi", path="/chat", behaviour="stall", leave=True),
    Action(app="fastapi", path="/translate/it", behaviour="cut"),
    Action(app="fastapi", path="/translate/es", anonymous=True, weight=3),
    Action(app="fastapi", path="/summarize/d-5", behaviour="rate-limit"),
    Action(app="fastapi", path="/summarize/d-6", behaviour="error-429"),
    Action(app="fastapi", path="/chat", behaviour="error-400"),
    Action(app="fastapi", path="/summarize/d-7", behaviour="no-usage"),
    Action(app="fastapi", path="/search", behaviour="server-error"),
    Action(app="flask", path="/image", weight=6),
    Action(app="flask", path="/chat", behaviour="cut"),
    Action(app="flask", path="/chat", behaviour="content-filter"),
    Action(app="flask", path="/tickets/7/headline", behaviour="stall"),
    Action(app="flask", path="/translate/nl", behaviour="rate-limit"),
    Action(app="flask", path="/summarize/d-8", behaviour="error-500"),
    Action(app="flask", path="/classify", behaviour="server-error"),
)


class Visits:
    """How many requests the visitors made, and how many of them got no answer at all."""

    def __init__(self) -> None:
        self.made = 0
        self.unanswered = 0


class Traffic:
    """Make requests at a steady rate, whatever the apps do with them.

    Args:
        addresses: App's name to its address, `http://127.0.0.1:PORT`.
        actions: What the visitors do.
        rate: Requests a second.
        seed: The same seed gives the same order of visitors and actions.

    Concurrency: one event loop; requests run in worker threads.
    """

    def __init__(
        self,
        addresses: dict[str, str],
        actions: tuple[Action, ...] = ACTIONS,
        *,
        rate: float,
        seed: int = 0,
    ) -> None:
        self.visits = Visits()
        self._addresses = addresses
        self._actions = actions
        self._interval_s = 1 / rate
        self._random = Random(seed)
        self._limiter = anyio.CapacityLimiter(_CONCURRENT)

    async def run(self, stopped: anyio.Event, patience_s: Callable[[], float]) -> None:
        """Make requests until told to stop, then wait for those that are under way.

        Args:
            stopped: Set to stop.
            patience_s: Asked then: how many seconds to wait for the requests under way.

        Guarantees: each action is done once early on, so that a short run shows everything.
        """
        due = anyio.current_time()
        first_round = self._random.sample(self._actions, len(self._actions))
        weights = [action.weight for action in self._actions]
        async with anyio.create_task_group() as tasks:
            while not stopped.is_set():
                action = first_round.pop() if first_round else self._random.choices(self._actions, weights)[0]
                user = None if action.anonymous else self._random.choice(tuple(PEOPLE))
                text = self._random.choice(_TEXTS)
                tasks.start_soon(self._visit, action, user, text, stopped)
                due = max(due + self._interval_s, anyio.current_time() - _CATCH_UP_S)
                with anyio.move_on_after(due - anyio.current_time()):
                    await stopped.wait()
            tasks.cancel_scope.deadline = anyio.current_time() + patience_s()

    async def _visit(self, action: Action, user: str | None, text: str, stopped: anyio.Event) -> None:
        work = partial(_post, self._addresses[action.app], action, user, text)
        async with self._limiter:
            if stopped.is_set():
                return
            self.visits.made += 1
            try:
                await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
            except (OSError, http.client.HTTPException):
                self.visits.unanswered += 1


def _post(address: str, action: Action, user: str | None, text: str) -> None:
    """Make one request and read its answer, or only its first bytes."""
    asked = f"{text} [behave {action.behaviour}]" if action.behaviour else text
    body = {"text": asked} | ({"image_url": _picture()} if action.path == "/image" else {})
    headers = {"content-type": "application/json", "connection": "close"}
    if user is not None:
        headers["cookie"] = f"{COOKIE}={user}"
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", action.path, json.dumps(body), headers)
        with connection.getresponse() as response:
            if action.leave:
                response.read(_FIRST_BYTES)
            else:
                response.read()
    finally:
        connection.close()


def _picture() -> str:
    """Return a small red picture as the address of its own data."""
    side = 16
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xd0\x20\x20" * side) * side)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return f"data:image/png;base64,{b64encode(data).decode()}"
