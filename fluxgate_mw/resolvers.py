"""Answer what a request's calls ask of it: who, which feature, which route; each source in its order, each guarded.

A route is known once routing ran and a user once authentication did, so everything is asked late, and "not known" is
never kept. How each framework says it is known to `frameworks`; what a proxy may say, to `trust`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from types import CoroutineType
from typing import Any, Final

from fluxgate_mw import diagnostics, frameworks
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.event import User
from fluxgate_mw.frames import DECORATION
from fluxgate_mw.recorder import Recorder, guarded
from fluxgate_mw.request import Decoration
from fluxgate_mw.semconv import UserSource
from fluxgate_mw.trust import TrustedProxies
from fluxgate_mw.types import Carrier, FeatureResolver, UserResolver
from fluxgate_mw.users import as_user

__all__ = ["USER_SOURCES", "ASGISources", "WSGISources"]

SLOW_S: Final = 0.005
"""A resolver that takes longer is said to do so, once a minute: it runs on the event loop."""

_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "WEBSOCKET"}
)
"""A client may send any word as its method; a feature has few names."""

USER_SOURCES: Final[tuple[UserSource, ...]] = (
    "identify",
    "resolver",
    "scope",
    "state",
    "framework",
    "header",
    "parameter",
)
"""Where a user may come from, best first; leave one out to switch it off.

`identify()`; `resolve_user`; `scope["user"]`; `request.state.user`; Django, Flask-Login and Quart-Auth; what
`TrustedProxies` allow; the call's own `user=`.
"""


class _Sources(ABC):
    """What the two kinds of request share."""

    def __init__(
        self,
        recorder: Recorder | None,
        resolve_user: UserResolver | None = None,
        resolve_feature: FeatureResolver | None = None,
        user_sources: Sequence[UserSource] = USER_SOURCES,
        trusted: TrustedProxies | None = None,
    ) -> None:
        for name, resolver in (("resolve_user", resolve_user), ("resolve_feature", resolve_feature)):
            if resolver is not None and not callable(resolver):
                raise ConfigurationError(f"{name}: expected a callable, not a {type(resolver).__name__}")
        if trusted is not None and not isinstance(trusted, TrustedProxies):
            raise ConfigurationError(f"trusted: expected a TrustedProxies, not a {type(trusted).__name__}")
        self.recorder = recorder
        self._resolve_user = resolve_user
        self._resolve_feature = resolve_feature
        self._trusted = trusted
        self._admitted = _checked(user_sources)
        self._asks = [(source, ask) for source, ask in self._known().items() if source in self._admitted]
        self.awaited = "framework" in self._admitted

    def _known(self) -> dict[UserSource, Callable[[Carrier], User | None]]:
        """Return how each source is asked, best first; those that cannot answer are left out."""
        asks: dict[UserSource, Callable[[Carrier], User | None]] = {}
        if self._resolve_user is not None:
            asks["resolver"] = self._resolved_user
        asks |= self._framework_sources()
        if self._trusted is not None:
            asks["header"] = self._trusted.user
        return asks

    def admits(self, source: UserSource) -> bool:
        """Return whether users of that source count here."""
        return source in self._admitted

    def user(self, carrier: Carrier) -> tuple[User | None, UserSource]:
        """Return the first user that a source knows, and the source."""
        for source, ask in self._asks:
            user = guarded("resolvers", ask, carrier)
            if user is not None:
                return user, source
        return None, "none"

    async def learn(self, carrier: Carrier) -> None:
        """Await Django's own loading of the user, unless something better knows already."""
        load = frameworks.django_knows(carrier)
        if load is None or self.user(carrier)[0] is not None:
            return
        try:
            frameworks.keep_django(carrier, await load())
        except Exception as error:  # noqa: BLE001  (the application's own database)
            diagnostics.note("user_not_loaded", f"request.auser() raised {type(error).__name__}; the user is unknown")

    def _resolved_user(self, carrier: Carrier) -> User | None:
        answer = _asked("resolve_user", self._resolve_user, carrier)
        user = as_user(answer)
        if user is None and answer is not None:
            diagnostics.note("resolver_value", f"resolve_user returned a {type(answer).__name__} without a usable id")
        return user

    def feature(self, carrier: Carrier) -> str | None:
        """Return what the application's resolver calls the feature."""
        if self._resolve_feature is None:
            return None
        name = _asked("resolve_feature", self._resolve_feature, carrier)
        if isinstance(name, str) and name:
            return name
        if name is not None:
            diagnostics.note(
                "resolver_value", f"resolve_feature returned a {type(name).__name__}; expected str or None"
            )
        return None

    def decoration(self, carrier: Carrier) -> Decoration | None:
        """Return what `@feature` left on the endpoint that serves the request."""
        return guarded("resolvers", self._decoration, carrier)

    def _decoration(self, carrier: Carrier) -> Decoration | None:
        for each in frameworks.serving(self._endpoint(carrier), self.method(carrier)):
            found: Decoration | None = getattr(each, DECORATION, None)
            if found is not None:
                return found
        return None

    def route(self, carrier: Carrier) -> str | None:
        """Return method and route template."""
        template = guarded("resolvers", self._template, carrier)
        return f"{self.method(carrier)} {template}" if template else None

    def method(self, carrier: Carrier) -> str:
        """Return the request's method, or `OTHER` for a word that is none."""
        method = self._method(carrier)
        return method if method in _METHODS else "OTHER"

    def request_id(self, carrier: Carrier) -> str | None:
        """Return the id that a trusted proxy gave the request."""
        return None if self._trusted is None else guarded("resolvers", self._trusted.request_id, carrier)

    @abstractmethod
    def _framework_sources(self) -> dict[UserSource, Callable[[Carrier], User | None]]: ...

    @abstractmethod
    def _endpoint(self, carrier: Carrier) -> object: ...

    @abstractmethod
    def _template(self, carrier: Carrier) -> str | None: ...

    @abstractmethod
    def _method(self, carrier: Carrier) -> str: ...


class ASGISources(_Sources):
    """Read a `scope`: Starlette, FastAPI, Litestar, Quart, Django, and what else leaves `user` or `endpoint` there."""

    def _framework_sources(self) -> dict[UserSource, Callable[[Carrier], User | None]]:
        return {
            "scope": frameworks.signed_in_on_scope,
            "state": frameworks.signed_in_on_state,
            "framework": frameworks.framework_user,
        }

    def _endpoint(self, scope: Carrier) -> object:
        return frameworks.asgi_endpoint(scope)

    def _template(self, scope: Carrier) -> str | None:
        return frameworks.asgi_template(scope)

    def _method(self, scope: Carrier) -> str:
        return "WEBSOCKET" if scope["type"] == "websocket" else str(scope.get("method"))


class WSGISources(_Sources):
    """Read an `environ`: Flask and anything built on Werkzeug, Bottle, Pyramid, Falcon, Django."""

    def keep(self, environ: Carrier, headers: Iterable[tuple[str, str]]) -> None:
        """Keep in the `environ` what Flask will have put away when the body of a response with `headers` runs."""
        streamed = not any(name.lower() == "content-length" for name, _value in headers)
        frameworks.keep_flask(environ, streamed=streamed)

    def _framework_sources(self) -> dict[UserSource, Callable[[Carrier], User | None]]:
        return {"framework": frameworks.framework_user}

    def _endpoint(self, environ: Carrier) -> object:
        return frameworks.wsgi_endpoint(environ)

    def _template(self, environ: Carrier) -> str | None:
        return frameworks.wsgi_template(environ)

    def _method(self, environ: Carrier) -> str:
        return str(environ.get("REQUEST_METHOD"))


def _checked(user_sources: Sequence[UserSource]) -> frozenset[UserSource]:
    if isinstance(user_sources, str):
        raise ConfigurationError(f"user_sources: expected a list, not the text {user_sources!r}")
    unknown = next((source for source in user_sources if source not in USER_SOURCES), None)
    if unknown is not None:
        raise ConfigurationError(f"user_sources: {unknown!r} is none; expected some of {', '.join(USER_SOURCES)}")
    return frozenset(user_sources)


def _asked(name: str, resolver: Callable[[Carrier], object] | None, carrier: Carrier) -> Any:
    """Return the resolver's answer; None where it raised or gave a coroutine, which is counted and said once."""
    if resolver is None:
        return None
    started = time.perf_counter()
    try:
        answer = resolver(carrier)
    except Exception as error:  # noqa: BLE001  (the application's own code)
        diagnostics.note("resolver_raised", f"{name} raised {type(error).__name__}; the call goes on without it")
        return None
    if time.perf_counter() - started > SLOW_S:
        diagnostics.note("resolver_slow", f"{name} took over {SLOW_S * 1000:g} ms; it runs inside the request")
    if type(answer) is CoroutineType:
        answer.close()
        diagnostics.note("resolver_coroutine", f"{name} must be a plain function, but it returned a coroutine")
        return None
    return answer
