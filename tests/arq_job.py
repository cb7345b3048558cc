"""A web request that enqueues an arq job, and a real worker that runs it; run by a test, on an older redis package.

Prints what the calls in both showed, as one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fluxgate_mw import FluxGateMiddleware, ambient
from fluxgate_mw.integrations.arq import carried, enqueue_job
from fluxgate_mw.testing import capture_events
from tests.asking import SignIn, aask


async def summarize(ctx: dict[Any, Any], text: str) -> None:
    """Make a call."""
    assert text == "text"
    await aask()


async def main(url: str) -> None:
    """Enqueue inside a request and outside of any, then work until the queue is empty."""
    settings = RedisSettings.from_dsn(url)
    pool = await create_pool(settings)

    async def endpoint(request: Request) -> Response:
        await aask()
        await enqueue_job(pool, "summarize", "text")
        return PlainTextResponse()

    app = Starlette(
        routes=[Route("/items/{id}", endpoint)], middleware=[Middleware(FluxGateMiddleware), Middleware(SignIn)]
    )
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/items/7",
        "root_path": "",
        "headers": [(b"x-user", b"ada")],
        "query_string": b"",
    }

    async def nothing(*_: Any) -> Any:
        return {"type": "http.disconnect"}

    worker = Worker([carried(summarize)], redis_settings=settings, burst=True, poll_delay=0.01, handle_signals=False)
    with capture_events() as events:
        await app(scope, nothing, nothing)
        await worker.main()
        await enqueue_job(pool, "summarize", "text")
        await worker.main()
    shown = [[e.user and e.user.id, e.feature, e.step, e.request_id, e.route] for e in events]
    print(json.dumps({"events": shown, "left": ambient.get() is not ambient.NOTHING}))
    await worker.close()
    await pool.aclose()


asyncio.run(main(sys.argv[1]))
