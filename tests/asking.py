"""What the applications of the attribution tests share: a tracked call, a sign-in, and what is expected of an event."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio

from fluxgate_mw import UsageEvent, track


def ask() -> str:
    """Make one tracked call that costs something."""
    with track() as call:
        call.usage(provider="openai", model="gpt-4o-mini", input_tokens=1000, output_tokens=100)
    return "answer"


async def aask() -> str:
    """Make one tracked call that costs something, across an await."""
    async with track() as call:
        await anyio.lowlevel.checkpoint()
        call.usage(provider="openai", model="gpt-4o-mini", input_tokens=1000, output_tokens=100)
    return "answer"


def who(event: UsageEvent) -> tuple[str | None, str | None]:
    """Return the event's user id and feature."""
    return event.user and event.user.id, event.feature


class SignIn:
    """Pure ASGI: whoever the `x-user` header names is signed in, as `scope["user"]`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            named = dict(scope["headers"]).get(b"x-user")
            if named is not None:
                scope["user"] = SimpleNamespace(id=named.decode(), email=f"{named.decode()}@example.org")
        await self.app(scope, receive, send)


class CopiesScope:
    """Pure ASGI: hands a copy of the scope on, as some middlewares do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)
