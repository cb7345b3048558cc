"""Who may look: the Host check, the token, the host application's own rule, and the headers of every reply.

The pages show names and e-mail addresses, so one of the three ways must be chosen when the app is made. This module
knows nothing of what is shown.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxgate_mw.errors import ConfigurationError

__all__ = ["LOOPBACK_HOSTS", "Access", "Authorize", "Guard", "HostCheck", "SecurityHeaders"]

Authorize = Callable[[Request], bool | Awaitable[bool]]
LOOPBACK_HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
_COOKIE: Final = "fluxgate_token"
_COOKIE_AGE_S: Final = 30 * 24 * 3600
_LARGEST_FORM_BYTES: Final = 4096
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d*)?")
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """The chosen rule: exactly `public`, or `authorize` and `token`, of which either lets a request in.

    Args:
        authorize: Asked for every page with the request; False is a 403. None = not asked.
        token: Secret of `Authorization: Bearer`, of `?token=` and of the cookie that this sets. None = no token.
        public: Nobody is asked.
        hosts: Names allowed in the Host header; `*` allows all, `*.example.com` all below it. None = the loopback
            names where `public`, else all: a cookie or a session is bound to its host, an open page is not.

    Raises:
        ConfigurationError: No rule was chosen, two that contradict each other, or one that cannot be asked.
    """

    authorize: Authorize | None = None
    token: str | None = None
    public: bool = False
    hosts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        asked = self.authorize is not None or self.token is not None
        if bool(self.public) == asked:
            raise ConfigurationError(
                "the dashboard shows names and e-mail addresses: give authorize= or token= (or set "
                "FLUXGATE_DASHBOARD_TOKEN), or public=True alone",
            )
        if self.authorize is not None and not callable(self.authorize):
            raise ConfigurationError(f"authorize: expected a callable, not a {type(self.authorize).__name__}")
        if self.token is not None and not self.token.strip():
            raise ConfigurationError("token: expected a secret that is not empty")

    def allows_host(self, header: str) -> bool:
        """Return whether a Host header (with or without its port) is one of ours."""
        allowed = self.hosts if self.hosts is not None else LOOPBACK_HOSTS if self.public else ("*",)
        match = _HOST.fullmatch(header.strip().lower())
        name = match[1].rstrip(".") if match else ""
        return any(
            pattern == "*" or name == pattern.lower() or (pattern[:2] == "*." and name.endswith(pattern[1:].lower()))
            for pattern in allowed
        )

    def is_token(self, offered: str) -> bool:
        """Return whether it is the token, in a time that tells nothing of it."""
        return self.token is not None and hmac.compare_digest(_digest(offered), _digest(self.token))

    def has_token(self, request: Request) -> bool:
        """Return whether the request carries the token as a bearer or by our cookie."""
        if self.token is None:
            return False
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(bearer.strip()):
            return True
        cookie = request.cookies.get(_COOKIE, "").encode("utf-8", "replace")
        return hmac.compare_digest(cookie, _digest(self.token))

    async def allows(self, request: Request) -> bool:
        """Return whether the request may see the pages. What `authorize` raises is passed on: nothing is shown.

        A response, as a login decorator gives for nobody, is no yes.
        """
        if self.public or self.has_token(request):
            return True
        if self.authorize is None:
            return False
        answer = self.authorize(request)
        answer = await answer if inspect.isawaitable(answer) else answer
        return bool(answer) and not isinstance(answer, Response)

    def signed_in(self, request: Request, query_string: str) -> Response:
        """Return the redirect to the same page, without the token in its address, that sets the cookie."""
        assert self.token is not None  # noqa: S101  (only asked after is_token)
        path = "/" + quote(request.scope["path"].lstrip("/"))
        response = RedirectResponse(f"{path}?{query_string}" if query_string else path, status_code=303)
        response.set_cookie(
            _COOKIE,
            _digest(self.token).decode(),
            max_age=_COOKIE_AGE_S,
            path=request.scope.get("root_path") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response


def _digest(secret: str) -> bytes:
    salted = b"fluxgate dashboard " + secret.encode("utf-8", "replace")
    return hashlib.sha256(salted).hexdigest().encode()


class HostCheck:
    """ASGI middleware: refuse a Host header that is not ours (DNS rebinding) with a 400."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what names us; raise an `HTTPException` for the rest."""
        if scope["type"] == "http":
            host = Request(scope).headers.get("host", "")
            if not self.access.allows_host(host):
                raise HTTPException(400, f"The host {host[:100]!r} is not one of this dashboard's (allowed_hosts).")
        await self.app(scope, receive, send)


class Guard:
    """ASGI middleware: let in who may look, take the token offered, and refuse everybody else with 401 or 403."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on who may look; raise an `HTTPException` for the rest."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer: ASGIApp | None = await self._sign_in(request)
        if answer is None:
            await self._check(request)
        await (answer or self.app)(scope, receive, send)

    async def _check(self, request: Request) -> None:
        if await self.access.allows(request):
            return
        if self.access.token is None:
            raise HTTPException(403, "You are signed in, but not allowed to see this dashboard.")
        raise HTTPException(401, "This dashboard asks for its token.", headers={"WWW-Authenticate": "Bearer"})

    async def _sign_in(self, request: Request) -> Response | None:
        if self.access.token is None:
            return None
        query = request.scope["query_string"].decode("latin-1")
        offered = request.query_params.get("token") if "token=" in query else None
        if request.method == "POST":
            offered = await _posted_token(request)
        if offered is None or not self.access.is_token(offered):
            return None
        kept = [(key, value) for key, value in parse_qsl(query, errors="replace") if key != "token"]
        return self.access.signed_in(request, urlencode(kept))


async def _posted_token(request: Request) -> str | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM_BYTES:
            raise HTTPException(413, "The form is too large.")
    return parse_qs(body.decode("utf-8", "replace"), errors="replace").get("token", [None])[0]


class SecurityHeaders:
    """ASGI middleware: the strict content policy on every reply; no caching unless the reply says otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with the headers added to what starts a reply."""

        async def send_wrapper(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_wrapper)
