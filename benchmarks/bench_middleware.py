"""What the middlewares add to a request: ours, one context variable, and on demand others'. Prints one JSON line.

    python benchmarks/bench_middleware.py [--quick] [--rounds N] [--peers [NAME ...]] [--peers-dir FOLDER]

A bare application is called directly with what a server gives it for a small authorised request; no call to a model is
made in it. `limit` is the least that can carry a context: one variable set and put back.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from importlib.metadata import version
from typing import Any

from environments import add_options, run_peers
from measure import (
    Samples,
    added_over,
    against,
    interleaved,
    microseconds,
    options,
    paired,
    print_line,
    print_table,
    summary,
)
from middleware_peers import PEERS, Middlewares

from fluxgate_mw import FluxGateMiddleware, FluxGateWSGIMiddleware
from fluxgate_mw.types import ASGIApp, Environ, Message, Receive, Scope, Send, StartResponse, WSGIApp

HEADERS = {
    "host": "shop.example",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate, br",
    "accept-language": "en-GB,en;q=0.9",
    "authorization": "Bearer 0123456789abcdef0123456789abcdef",
    "content-type": "application/json",
    "content-length": "2",
    "cookie": "session=0123456789abcdef",
    "x-forwarded-for": "203.0.113.7",
}
SCOPE: Scope = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "server": ("127.0.0.1", 8000),
    "client": ("203.0.113.7", 50312),
    "scheme": "http",
    "method": "POST",
    "root_path": "",
    "path": "/summarize/42",
    "raw_path": b"/summarize/42",
    "query_string": b"lang=en",
    "headers": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
}
ENVIRON: Environ = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/summarize/42",
    "QUERY_STRING": "lang=en",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "203.0.113.7",
    "CONTENT_TYPE": "application/json",
    "CONTENT_LENGTH": "2",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input": io.BytesIO(b"{}"),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
} | {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in HEADERS.items()}

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"11")],
}
BODY: Message = {"type": "http.response.body", "body": b'{"ok":true}'}
REQUEST: Message = {"type": "http.request", "body": b"{}", "more_body": False}

_carried: ContextVar[object] = ContextVar("carried", default=None)


async def asgi_app(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer a small JSON body."""
    await send({**START, "headers": [*START["headers"]]})  # some middlewares add to the very list
    await send(BODY)


def wsgi_app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a small JSON body as a list."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "11")])
    return [b'{"ok":true}']


def wsgi_stream_app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Answer a body in three steps, as frameworks do whose responses are iterators."""
    start_response("200 OK", [("Content-Type", "application/json")])
    yield from (b'{"ok":', b"true", b"}")


def asgi_limit(app: ASGIApp) -> ASGIApp:
    """Return the application inside one context variable."""

    async def limit(scope: Scope, receive: Receive, send: Send) -> None:
        token = _carried.set(scope)
        try:
            await app(scope, receive, send)
        finally:
            _carried.reset(token)

    return limit


def wsgi_limit(app: WSGIApp) -> WSGIApp:
    """Return the application inside one context variable, which a streamed body no longer sees."""

    def limit(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        token = _carried.set(environ)
        try:
            return app(environ, start_response)
        finally:
            _carried.reset(token)

    return limit


async def _receive() -> Message:
    return REQUEST


async def _send(_message: Message) -> None:
    pass


def _start_response(
    _status: str, _headers: list[tuple[str, str]], _exc_info: object = None, /
) -> Callable[..., object]:
    return _start_response


def _asgi_requests(runner: asyncio.Runner, app: ASGIApp) -> Callable[[int], None]:
    async def serve(count: int) -> None:
        for _ in range(count):
            await app({**SCOPE, "headers": [*SCOPE["headers"]]}, _receive, _send)

    return lambda count: runner.run(serve(count))


def _wsgi_requests(app: WSGIApp) -> Callable[[int], None]:
    def serve(count: int) -> None:
        for _ in range(count):
            body = app(dict(ENVIRON), _start_response)
            for _part in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()

    return serve


def _samples(
    peer: Middlewares, runner: asyncio.Runner, arguments: argparse.Namespace, count: int
) -> dict[str, Samples]:
    def contenders(interface: str, limit: Any, ours: Any) -> dict[str, Callable[[Any], Any]]:
        theirs = {"peer": peer[interface]} if interface in peer else {}
        return {"bare": lambda app: app, "limit": limit, "ours": ours, **theirs}

    asgi = contenders("asgi", asgi_limit, FluxGateMiddleware)
    wsgi = contenders("wsgi", wsgi_limit, FluxGateWSGIMiddleware)
    runs = {
        "asgi": {name: _asgi_requests(runner, wrap(asgi_app)) for name, wrap in asgi.items()},
        "wsgi": {name: _wsgi_requests(wrap(wsgi_app)) for name, wrap in wsgi.items()},
        "wsgi_stream": {name: _wsgi_requests(wrap(wsgi_stream_app)) for name, wrap in wsgi.items()},
    }
    return {
        interface: interleaved(
            {name: partial(microseconds, run, count, arguments.clock) for name, run in named.items()},
            arguments.rounds,
        )
        for interface, named in runs.items()
    }


def _figures(peer: Middlewares, arguments: argparse.Namespace) -> dict[str, Any]:
    count = 2_000 if arguments.quick else 5_000
    with asyncio.Runner() as runner:
        measured = _samples(peer, runner, arguments, count)
    figures: dict[str, Any] = {"rounds": arguments.rounds, "clock": arguments.clock, "requests_a_round": count}
    for interface, samples in measured.items():
        figures[interface] = against(samples)
        if "peer" in samples:
            figures[interface]["peer"]["added_over_ours"] = added_over(samples, "peer", "ours")
        figures[interface]["ours"]["ratio_to_limit"] = summary(paired(samples, "ours", "limit", operator.truediv))
    return figures


def _tables(figures: dict[str, Any], peers: dict[str, Any]) -> None:
    for interface in ("asgi", "wsgi", "wsgi_stream"):
        theirs = {name: found[interface]["peer"] for name, found in peers.items() if "peer" in found.get(interface, ())}
        print_table(
            f"{interface}: microseconds a request", figures[interface] | theirs, ["us", "added_us", "added_over_ours"]
        )
    for name, found in peers.items():
        if "error" in found:
            print(f"  {name}: {found['error']}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = options("What the middlewares add to a request.", rounds=31)
    add_options(parser, PEERS)
    arguments: argparse.Namespace = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 7)
    return arguments


def main() -> None:
    """Run the rounds and print the figures."""
    arguments = _arguments()
    if arguments.only is not None:
        peer = PEERS[arguments.only]
        named = {"peer_name": arguments.only, "versions": {name: version(name) for name in peer.requirements}}
        print_line("middleware", named | _figures(peer.start(), arguments))
        return
    figures = _figures({}, arguments)
    peers = {} if arguments.peers is None else run_peers(__file__, PEERS, arguments)
    _tables(figures, peers)
    print_line("middleware", figures | ({"peers": peers} if peers else {}))


if __name__ == "__main__":
    main()
