"""The ASGI middleware beneath every framework, by the protocol alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from fluxgate_mw import (
    FluxGate,
    FluxGateMiddleware,
    UsageEvent,
    User,
    ambient,
    context,
    current,
    feature,
    identify,
    instrument_openai,
    track,
)
from fluxgate_mw.request import RequestContext
from fluxgate_mw.resolvers import USER_SOURCES
from fluxgate_mw.testing import capture_events
from fluxgate_mw.trust import TrustedProxies
from tests.asking import aask, ask, who
from tests.calls.clients import ASKED, SSE, Reply, Wire, chunk, httpx, sse

pytestmark = pytest.mark.anyio


async def served(app: Any, scope: dict[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
    """Serve one request and return what was sent."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], **(scope or {})}
    with capture_events():
        await FluxGateMiddleware(app, **options)(scope, receive, send)
    return sent


@pytest.mark.survival("bare ASGI", "async handler")
async def test_a_bare_application_is_attributed_to_what_it_leaves_on_the_scope() -> None:
    """A user, and no feature: a raw path is never one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["user"] = "ada"
        await aask()

    with capture_events() as events:
        await FluxGateMiddleware(app)({"type": "http", "method": "GET", "path": "/secret", "headers": []}, None, None)  # type: ignore[arg-type]
    assert [who(event) for event in events] == [("ada", None)]
    assert events[0].route is None


@pytest.mark.parametrize(
    ("scope", "method"),
    [
        ({"type": "http", "method": "POST"}, "POST"),
        ({"type": "websocket"}, "WEBSOCKET"),
        ({"type": "http", "method": "BREW-1234"}, "OTHER"),
    ],
)
async def test_the_method_is_known_where_no_route_is(scope: dict[str, Any], method: str) -> None:
    """Also by a task that makes its call when the request is over; a word of the client's own is none."""
    late: list[asyncio.Task[str]] = []
    over = asyncio.Event()

    async def waiting() -> str:
        await over.wait()
        return await aask()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        late.append(asyncio.create_task(waiting()))
        await aask()

    with capture_events() as events:
        await FluxGateMiddleware(app)({"path": "/secret", "headers": [], **scope}, None, None)  # type: ignore[arg-type]
        over.set()
        await late[0]
    assert [(event.route, event.http_method) for event in events] == [(None, method)] * 2


@pytest.mark.parametrize("kind", ["lifespan", "unknown"])
async def test_other_scopes_pass_untouched(kind: str) -> None:
    """No context is made for them."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope == {"type": kind}
        assert ambient.get() is ambient.NOTHING

    await FluxGateMiddleware(app)({"type": kind}, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("end", ["complete", "failed"])
async def test_what_is_queued_is_delivered_before_the_shutdown_is_complete(
    tmp_path: Path,
    end: str,
    given: bool,  # noqa: FBT001
) -> None:
    """An answer that is still being read too: uvicorn ends by the signal that it caught, and runs no exit hook."""
    fg = FluxGate(spool_dir=tmp_path, emit_interval_s=60)
    held = Wire(Reply(sse(chunk("word ")), headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
    next(held)
    accepted: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        fg.record(UsageEvent())
        await send({"type": f"lifespan.shutdown.{end}"})

    async def send(message: Any) -> None:
        accepted.append(fg.statistics().spooled)

    try:
        await FluxGateMiddleware(app, fluxgate=fg if given else None)({"type": "lifespan"}, None, send)  # type: ignore[arg-type]
        assert accepted == [0, 2]
    finally:
        fg.stop()


async def test_a_holder_of_another_request_that_is_found_on_the_scope_is_not_used() -> None:
    """Only an unfrozen one of this very request is."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["fluxgate"])

    seen: list[Any] = []
    stale: Any = RequestContext({}, None)  # type: ignore[arg-type]
    await served(app, {"fluxgate": stale})
    await served(app, {"fluxgate": "something else"})
    assert stale not in seen
    assert all(isinstance(found, RequestContext) for found in seen)


async def test_what_the_application_raises_passes_and_nothing_stays_bound() -> None:
    """The same object."""
    boom = ValueError("boom")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise boom

    with pytest.raises(ValueError, match="boom") as raised:
        await served(app)
    assert raised.value is boom
    assert ambient.get() is ambient.NOTHING


async def test_a_frame_that_the_application_forgot_to_leave_is_left_with_its_request() -> None:
    """Nothing stays bound."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        from_frame.__enter__()

    from_frame = feature("forgotten")
    await served(app)
    assert ambient.get() is ambient.NOTHING


async def test_the_cost_is_sent_with_a_plain_response_and_at_the_end_of_an_event_stream() -> None:
    """Off by default, and not for calls that had not ended; an open last line is left alone."""

    def application(content_type: bytes, *bodies: bytes, calls: int = 3) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            for _ in range(calls):
                ask()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
            for body in bodies:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body"})

        return app

    plain = await served(application(b"text/plain", b"x"), cost_header=True)
    header = dict(plain[0]["headers"])[b"server-timing"].decode()
    assert header.startswith('llm;desc="3 calls $0.0006";dur=')
    assert "body" not in plain[-1]
    stream = await served(application(b"text/event-stream", b"data: 1\n\n"), cost_header=True)
    assert stream[-1]["body"].startswith(b': llm;desc="3 calls $0.0006";dur=')
    assert stream[-1]["body"].endswith(b"\n")
    opened = await served(application(b"text/event-stream", b"data: 1"), cost_header=True)
    assert "body" not in opened[-1]
    silent = await served(application(b"text/event-stream", b"data: 1\n\n", calls=0), cost_header=True)
    assert [len(silent[0]["headers"]), silent[-1]] == [1, {"type": "http.response.body"}]
    off = await served(application(b"text/event-stream", b"data: 1\n\n"))
    assert [len(off[0]["headers"]), off[-1]] == [1, {"type": "http.response.body"}]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([("gpt-4o-mini", 1000)], "1 call $0.0002"),
        ([("gpt-4o-mini", 100)], "1 call $0.000015000"),
        ([("no-such-model", 100)], "1 call unpriced"),
        ([("no-such-model", 100), ("no-such-model", 9)], "2 calls unpriced"),
        ([("gpt-4o-mini", 1000), ("no-such-model", 100)], "2 calls >= $0.0002, 1 unpriced"),
    ],
)
async def test_a_cost_that_is_not_known_is_not_said_to_be_nothing(tokens: list[tuple[str, int]], said: str) -> None:
    """Nor one that is small: the calls of a cheap model cost less than a hundredth of a cent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for model, number in tokens:
            with track() as call:
                call.usage(provider="openai", model=model, input_tokens=number, output_tokens=0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    [start, _] = await served(app, cost_header=True)
    assert dict(start["headers"])[b"server-timing"].decode().startswith(f'llm;desc="{said}";dur=')


SOURCES = {
    "identify": "by identify",
    "resolver": "by resolver",
    "scope": "by scope",
    "state": "by state",
    "header": "by header",
}


async def test_users_win_in_the_order_of_their_sources_and_each_can_be_switched_off() -> None:
    """One after the other is left out; last comes the call's own `user=`, which the client's tests hold."""
    order = list(SOURCES)
    for index in range(len(order) + 1):
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any, seen: list[Any] = seen) -> None:
            identify("by identify")
            seen.append(current().user)
            ask()
            seen.append(ambient.get().resolve_user()[1])

        await served(
            app,
            {
                "user": SimpleNamespace(id="by scope"),
                "state": {"user": {"id": "by state"}},
                "client": ("10.0.0.1", 1),
                "headers": [(b"x-user", b"by header")],
            },
            resolve_user=lambda _scope: "by resolver",
            trusted=TrustedProxies(["10.0.0.0/8"], user_header="X-User"),
            user_sources=order[index:],
        )
        expected = order[index] if index < len(order) else None
        assert (seen[0] and seen[0].id, seen[1]) == (SOURCES.get(expected or ""), expected or "none")


@pytest.mark.parametrize(
    ("switched_off", "user"), [((), ("by parameter", "parameter")), (("parameter",), (None, "none"))]
)
async def test_the_calls_own_user_counts_unless_it_is_switched_off(
    switched_off: tuple[str, ...], user: tuple[str | None, str]
) -> None:
    """`user=` of the call to a model, as an end user's id; outside of a request it always counts."""
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": []}
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, json=answer))

    async def app(scope: Any = None, receive: Any = None, send: Any = None) -> None:
        async with openai.AsyncOpenAI(
            api_key="x", base_url="http://shop.invalid/v1", http_client=httpx.AsyncClient(transport=transport)
        ) as client:
            await client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}], user="by parameter"
            )

    instrument_openai()
    with capture_events() as events:
        admitted = [source for source in USER_SOURCES if source not in switched_off]
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
        await FluxGateMiddleware(app, user_sources=admitted)(scope, app, app)
        await app()
    assert [(event.user and event.user.id, event.user_source) for event in events] == [
        user,
        ("by parameter", "parameter"),
    ]


async def test_context_and_the_explicit_frame_beat_every_source_of_the_request() -> None:
    """The innermost `context()` wins over `identify()`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        identify("identified")
        with context(user="explicit"):
            assert current().user == User("explicit")
        assert current().user == User("identified")

    await served(app)


async def test_the_request_id_is_a_trusted_proxys_or_made() -> None:
    """Joined by every call of the request, from threads that ask at once too."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    seen: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current().request_id)
        assert current().request_id == seen[-1]

    trusted = TrustedProxies(["10.0.0.1"], request_id=True)
    headers = [(b"x-request-id", b"abc-1"), (b"traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())]
    proxy, stranger = ("10.0.0.1", 1), ("10.0.0.2", 1)
    await served(app, {"client": proxy, "headers": headers}, trusted=trusted)
    await served(app, {"client": proxy, "headers": headers[1:]}, trusted=trusted)
    await served(app, {"client": stranger, "headers": headers}, trusted=trusted)
    await served(app, {"client": proxy, "headers": headers})
    assert seen[:2] == ["abc-1", trace]
    assert not {"abc-1", trace} & set(seen[2:])
    assert len(set(seen)) == 4
