"""Nothing of ours blocks the host's event loop: no file, socket, database, sleep or lock that somebody holds."""

from __future__ import annotations

import threading
import time
import traceback

import blockbuster.blockbuster
import openai
import pytest
from blockbuster import BlockBuster, BlockingError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from fluxgate_mw import FluxGate, FluxGateMiddleware, current, feature, identify, track
from tests.asking import SignIn
from tests.calls.clients import httpx
from tests.openai_server import running_openai

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say blue"}]}

pytestmark = pytest.mark.anyio


def _only_in(thread, can_block):
    return lambda *args, **kwargs: threading.get_ident() != thread or can_block(*args, **kwargs)


@pytest.fixture
def watched(monkeypatch):
    """Watch this thread's loop while below any frame of ours; our own threads may wait as they like."""
    blocked = []

    class Noted(BlockingError):
        """Kept too: what we guard the host from would hide it."""

        def __init__(self, name):
            super().__init__(name)
            ours = [frame for frame in traceback.extract_stack() if "fluxgate_mw" in frame.filename]
            blocked.append((name, [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in ours]))

    monkeypatch.setattr(blockbuster.blockbuster, "BlockingError", Noted)
    detector = BlockBuster("fluxgate_mw")
    for function in detector.functions.values():
        function.can_block_predicate = _only_in(threading.get_ident(), function.can_block_predicate)
        function.can_block_in("fluxgate_mw/pricing/table.py", "_file")  # read once a process, as a module is imported
    detector.activate()
    yield blocked
    detector.deactivate()


@pytest.fixture
def service(tmp_path):
    """A real OpenAI-compatible server in a thread of its own."""
    with running_openai(tmp_path) as server:
        yield server


@pytest.fixture(params=["spool", "redis", "no redis there"])
def delivery(request, stream_key):
    """Return the settings of one way of delivery; `durable` is none of them: it promises to wait for its write."""
    if request.param == "redis":
        return {"redis_url": request.getfixturevalue("redis_url"), "stream_key": stream_key}
    if request.param == "no redis there":
        return {"redis_url": "redis://127.0.0.1:1/0"}
    return {}


def _application(fg, base_url):
    """Return an application whose handlers call the model, plain and streamed, for whoever is signed in."""
    client = openai.AsyncOpenAI(api_key="sk-unused", base_url=base_url)

    @feature("plain")
    async def plain(request):
        identify({"id": "u-1", "email": "ann@example.org"})
        completion = await client.chat.completions.create(**ASKED)
        return JSONResponse([completion.choices[0].message.content, current().calls])

    @feature("streamed")
    async def streamed(request):
        stream = await client.chat.completions.create(**ASKED, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        async with track() as call:
            call.usage(provider="anthropic", model="claude-3-5-haiku-latest", input_tokens=3, output_tokens=2)
        return JSONResponse([text, current().calls])

    async def left_early(request):
        async with await client.chat.completions.create(**ASKED, stream=True) as stream:
            await anext(aiter(stream))
        return JSONResponse([])

    routes = [Route("/plain", plain), Route("/streamed", streamed), Route("/left", left_early)]
    middleware = [Middleware(SignIn), Middleware(FluxGateMiddleware, fluxgate=fg, cost_header=True)]
    return Starlette(routes=[Mount("/api", routes=routes)], middleware=middleware, lifespan=fg.lifespan), client


async def _asked(app, path):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as browser:
        answer = await browser.get(path, headers={"x-user": "ada"})
    assert answer.status_code == 200
    return answer.json()


async def test_no_call_request_delivery_start_or_stop_blocks_the_loop(service, delivery, tmp_path, watched):
    """Calls plain, streamed and left early, users, content, the delivery, a flush, lifespan's start and stop.

    traceloop/openllmetry#4052.
    """
    hosts = {service.host: "openai"}
    options = {"data_dir": tmp_path / "data", "capture_content": True, "provider_hosts": hosts, **delivery}
    fg = FluxGate(**options, redact=str.upper)
    app, client = _application(fg, service.base_url)
    async with fg.lifespan(app), client:
        for path in ("/api/plain", "/api/streamed", "/api/left"):
            await _asked(app, path)
        assert await fg.aflush(10)
        fg.statistics()
    assert [kind for kind in fg.statistics().notes if kind.startswith(("bug_", "failed_"))] == []
    assert watched == []
    assert fg.statistics().emitted == 4


@pytest.fixture
def with_dashboard(service, tmp_path):
    """An application that has the dashboard mounted; it is put together before there is a loop."""
    fg = FluxGate(data_dir=tmp_path / "data", provider_hosts={service.host: "openai"})
    app, client = _application(fg, service.base_url)
    app.mount("/usage", fg.dashboard(public=True))
    return fg, app, client


async def test_the_dashboards_pages_and_its_flusher_do_not_block_the_loop(with_dashboard, watched):
    """With the dashboard mounted, the pages are read from the store while this process flushes to it."""
    fg, app, client = with_dashboard
    async with fg.lifespan(app), client:
        await _asked(app, "/api/plain")
        assert await fg.aflush(10)
        transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as browser:
            for page in (
                "/usage/",
                "/usage/requests",
                "/usage/costs",
                "/usage/healthz",
                "/usage/readyz",
                "/usage/metrics",
            ):
                assert (await browser.get(page)).status_code == 200, page
    assert watched == []


async def test_the_detector_sees_a_block_below_any_frame_of_ours(service, tmp_path, watched):
    """`durable` asks for a write to the spool in the loop: it is seen."""
    hosts = {service.host: "openai"}
    fg = FluxGate(data_dir=tmp_path / "data", durable=True, provider_hosts=hosts)
    app, client = _application(fg, service.base_url)
    async with client:
        await _asked(app, "/api/plain")
    assert {name for name, _ in watched} >= {"os.mkdir"}
    await fg.astop()


async def test_a_redact_that_takes_its_time_blocks_no_loop(service, tmp_path, watched):
    """The application's `redact` runs where events are made, not where calls are (langfuse#10489, #8817)."""
    hosts = {service.host: "openai"}
    options = {"data_dir": tmp_path / "data", "capture_content": True, "provider_hosts": hosts}
    asked = []
    fg = FluxGate(**options, redact=lambda text: time.sleep(0) or asked.append(text) or "***")
    app, client = _application(fg, service.base_url)
    async with client:
        await _asked(app, "/api/plain")
        assert await fg.aflush(5)
    assert "Say blue" in asked
    assert watched == []
    await fg.astop()
