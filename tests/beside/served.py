"""The tests' OpenAI service over real HTTP, which also takes whatever a peer delivers, so that nothing leaves here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import start_blocking_portal

from fluxgate_mw.serving import serving
from tests.calls.clients import httpx
from tests.calls.service import Service

_OURS = "/v1/"


class ServedService:
    """An ASGI app around a `Service`.

    Attributes:
        service: What answers below `/v1/`, and keeps what was asked.
    """

    def __init__(self) -> None:
        self.service = Service()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request; what is not for the service is a peer's delivery, and taken."""
        request = httpx.Request(
            scope["method"],
            f"http://{dict(scope['headers'])[b'host'].decode()}{scope['path']}",
            headers=[(name, value) for name, value in scope["headers"] if name != b"content-length"],
            content=await _body(receive),
        )
        response = self.service(request) if scope["path"].startswith(_OURS) else httpx.Response(200, json={})
        headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() != b"content-length"]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        for part in response.stream:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


@contextmanager
def served() -> Iterator[tuple[str, Service]]:
    """Serve while inside, on a free port, from a thread; yields the address and what answers there."""
    app = ServedService()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(app)) as address:
        yield address, app.service
