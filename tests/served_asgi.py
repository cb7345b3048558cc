"""ASGI applications for real servers: each answers with what its context says, as JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import litestar
import litestar.response
import quart
from fastapi import FastAPI
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from fluxgate_mw import FluxGateMiddleware
from fluxgate_mw.integrations.litestar import FluxGatePlugin
from fluxgate_mw.integrations.quart import FluxGateQuart
from tests.asking import SignIn
from tests.served_app import said


async def slowly() -> AsyncIterator[str]:
    """Say it at each step of a body that takes its time."""
    for _ in range(3):
        await asyncio.sleep(0.002)
        yield said()


fastapi_app = FastAPI()
fastapi_app.add_middleware(SignIn)
fastapi_app.add_middleware(FluxGateMiddleware)


@fastapi_app.get("/items/{key}")
async def fastapi_endpoint(key: int) -> StreamingResponse:
    return StreamingResponse(slowly())


@fastapi_app.websocket("/sockets/{key}")
async def fastapi_socket(socket: WebSocket, key: int) -> None:
    await starlette_socket(socket)


async def starlette_socket(socket: WebSocket) -> None:
    await socket.accept()
    async for line in slowly():
        await socket.send_text(line)
    await socket.close()


async def starlette_endpoint(request: Request) -> StreamingResponse:
    return StreamingResponse(slowly())


starlette_app = Starlette(
    routes=[Route("/items/{key}", starlette_endpoint), WebSocketRoute("/sockets/{key}", starlette_socket)],
    middleware=[Middleware(FluxGateMiddleware), Middleware(SignIn)],
)

quart_app = quart.Quart("served")
quart_app.asgi_app = SignIn(quart_app.asgi_app)  # type: ignore[method-assign, assignment]
FluxGateQuart(quart_app)


@quart_app.get("/items/<int:key>")
async def quart_view(key: int) -> Any:
    return slowly()


@quart_app.websocket("/sockets/<int:key>")
async def quart_socket(key: int) -> None:
    async for line in slowly():
        await quart.websocket.send(line)


@litestar.websocket("/sockets/{key:int}")
async def litestar_socket(socket: litestar.WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    async for line in slowly():
        await socket.send_text(line)
    await socket.close()


@litestar.get("/items/{key:int}")
async def litestar_handler(request: litestar.Request[Any, Any, Any]) -> litestar.response.Stream:
    return litestar.response.Stream(slowly())


litestar_app = litestar.Litestar(
    [litestar_handler, litestar_socket],
    middleware=[DefineMiddleware(SignIn)],
    plugins=[FluxGatePlugin()],
    openapi_config=None,
)


async def bare_app(scope: Any, receive: Any, send: Any) -> None:
    """Say it at each step, without a framework."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for line in slowly():
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


bare_asgi = FluxGateMiddleware(SignIn(bare_app))
