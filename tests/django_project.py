"""One Django project for the tests, configured when it is imported: views of every kind, real users in SQLite."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import django
import openai
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseNotFound, StreamingHttpResponse
from django.urls import include, path, re_path
from django.views import View

from fluxgate_mw import feature
from tests.asking import aask, ask
from tests.calls.clients import httpx

__all__ = ["get_asgi_application", "get_wsgi_application"]

FOLDER = Path(tempfile.mkdtemp(prefix="fluxgate-django-"))

settings.configure(
    SECRET_KEY="secret",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "db.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=[
        "fluxgate_mw.integrations.django.FluxGateMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
)
django.setup()


def sync_view(request: HttpRequest, key: int) -> HttpResponse:
    return HttpResponse(ask())


async def async_view(request: HttpRequest, key: int) -> HttpResponse:
    return HttpResponse(await aask())


async def sync_call_view(request: HttpRequest, key: int) -> HttpResponse:
    return HttpResponse(ask())


async def openai_view(request: HttpRequest, key: int) -> HttpResponse:
    """Ask a real client whose transport answers by itself."""
    answer = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [],
        "usage": None,
    }
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, json=answer))
    async with openai.AsyncOpenAI(
        api_key="x", base_url="http://shop.invalid/v1", http_client=httpx.AsyncClient(transport=transport)
    ) as client:
        await client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
    return HttpResponse("ok")


places: dict[str, Callable[[], Any]] = {}
"""What the two views below do, sync and async."""


def sync_place(request: HttpRequest, key: int) -> HttpResponse:
    places["sync"]()
    return HttpResponse("ok")


async def async_place(request: HttpRequest, key: int) -> HttpResponse:
    await places["async"]()
    return HttpResponse("ok")


def timed_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(ask(), headers={"Server-Timing": "db;dur=1"})


def silent_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


def events_view(request: HttpRequest) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        yield f"data: {ask()}\n\n"

    return StreamingHttpResponse(body(), content_type="text/event-stream")


async def async_events_view(request: HttpRequest) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[str]:
        yield f"data: {await aask()}\n\n"

    return StreamingHttpResponse(body(), content_type="text/event-stream")


def stream_view(request: HttpRequest, key: int) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        yield "one"
        yield ask()

    return StreamingHttpResponse(body())


def closing_view(request: HttpRequest, key: int) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        try:
            yield "one"
            yield "two"
        finally:
            ask()
            raise KeyError("as Django has it, nobody hears of it")

    return StreamingHttpResponse(body())


async def async_stream_view(request: HttpRequest, key: int) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[str]:
        yield "one"
        yield await aask()
        with feature("inner"):
            yield await aask()
            yield await aask()

    return StreamingHttpResponse(body())


@feature("named")
async def named_stream_view(request: HttpRequest, key: int) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[str]:
        yield await aask()

    return StreamingHttpResponse(body())


@feature("class")
class ClassView(View):
    """A class-based view."""

    def get(self, request: HttpRequest, key: int) -> HttpResponse:
        return HttpResponse(ask())


class MethodView(View):
    """One with a decorated method."""

    @feature("method")
    def get(self, request: HttpRequest, key: int) -> StreamingHttpResponse:
        def body() -> Iterator[str]:
            yield ask()

        return StreamingHttpResponse(body())


def file_view(request: HttpRequest) -> FileResponse:
    return FileResponse((FOLDER / "db.sqlite3").open("rb"))


def failing_view(request: HttpRequest, key: int) -> HttpResponse:
    raise RuntimeError("x")


def missing(request: HttpRequest, exception: Any = None) -> HttpResponse:
    return HttpResponseNotFound(_ask_in_a_thread_of_its_own())


def failed(request: HttpRequest) -> HttpResponse:
    return HttpResponse(_ask_in_a_thread_of_its_own(), status=500)


def _ask_in_a_thread_of_its_own() -> str:
    """Ask where Django runs the handlers of errors under ASGI: in a thread whose connection it never closes."""
    try:
        return ask()
    finally:
        connection.close()


handler404, handler500 = missing, failed
urlpatterns = [
    path("sync/<int:key>/", sync_view),
    path("async/<int:key>/", async_view),
    path("sync-call/<int:key>/", sync_call_view),
    path("silent/", silent_view),
    path("items/<int:key>/sync", sync_place),
    path("items/<int:key>/async", async_place),
    path("timed/", timed_view),
    path("openai/<int:key>/", openai_view),
    path("events/", events_view),
    path("async-events/", async_events_view),
    path("stream/<int:key>/", stream_view),
    path("closing/<int:key>/", closing_view),
    path("async-stream/<int:key>/", async_stream_view),
    path("named-stream/<int:key>/", named_stream_view),
    path("class/<int:key>/", ClassView.as_view()),
    path("method/<int:key>/", MethodView.as_view()),
    path("file/", file_view),
    path("failing/<int:key>/", failing_view),
    path("api/<slug:tenant>/", include([re_path(r"^deep/(?P<key>\d+)/$", lambda request, **_: HttpResponse(ask()))])),
]
