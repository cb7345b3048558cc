"""A Django project for real servers, under WSGI and ASGI: it answers with what its context says, as JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path

from tests.served_app import said, slowly

settings.configure(
    SECRET_KEY="secret",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["fluxgate_mw.integrations.django.FluxGateMiddleware", f"{__name__}.sign_in"],
)


def sign_in(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Sign in whoever the `x-user` header names."""

    def middleware(request: HttpRequest) -> Any:
        request.user = SimpleNamespace(id=request.headers.get("x-user"))  # type: ignore[assignment]
        return get_response(request)

    return middleware


def view(request: HttpRequest, key: int) -> StreamingHttpResponse:
    return StreamingHttpResponse(slowly() if "wsgi.input" in request.META else aslowly())


async def aslowly() -> AsyncIterator[str]:
    """Say it at each step of a body that takes its time."""
    for _ in range(3):
        await asyncio.sleep(0.002)
        yield said()


urlpatterns = [path("items/<int:key>", view)]
wsgi = get_wsgi_application()
asgi = get_asgi_application()
