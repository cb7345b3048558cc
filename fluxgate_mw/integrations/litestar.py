"""Litestar: the ASGI middleware as a plugin, put outside of every other middleware of the application.

Event listeners (`app.emit`) run in a task that began with the application, outside of every request. Their calls have
no user and no feature, unless `FluxGatePlugin(carry_to_listeners=True)` carries the frame of whoever emits.
By hand: emit `asked=current()`, and in the listener put `with context(user=asked.user, feature=asked.feature):` around
the call.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from fluxgate_mw.ambient import NOTHING, enter, get
from fluxgate_mw.asgi import FluxGateMiddleware
from fluxgate_mw.errors import MissingExtraError
from fluxgate_mw.recorder import finished
from fluxgate_mw.types import HasRecorder

try:
    from litestar.config.app import AppConfig
    from litestar.events import BaseEventEmitterBackend, EventListener
    from litestar.middleware import DefineMiddleware
    from litestar.plugins import InitPluginProtocol
except ModuleNotFoundError as error:
    raise MissingExtraError("litestar", needed_for=__name__) from error

__all__ = ["FluxGatePlugin"]

_FRAME: Final = "__fluxgate_frame__"


class FluxGatePlugin(InitPluginProtocol):
    """Attribute the calls of a Litestar application: `Litestar(..., plugins=[FluxGatePlugin()])`.

    Args:
        fluxgate: Where its events go; None = the process's default at the time of the call.
        carry_to_listeners: Event listeners belong to the request that emitted. For emitters of this process, as
            Litestar's own is: the frame goes along with the arguments.
        options: As of `FluxGateMiddleware`.
    """

    def __init__(
        self, fluxgate: HasRecorder | None = None, *, carry_to_listeners: bool = False, **options: Any
    ) -> None:
        self._fluxgate = fluxgate
        self._carries = carry_to_listeners
        self._options = {"fluxgate": fluxgate, **options}

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware to the application that is being made, and deliver at its end what is queued."""
        middleware: Any = FluxGateMiddleware
        app_config.lifespan.insert(0, self._lifespan)
        app_config.middleware.insert(0, DefineMiddleware(middleware, **self._options))
        if self._carries:
            app_config.event_emitter_backend = _carrying(app_config.event_emitter_backend)
        return app_config

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:  # noqa: ARG002  (the framework's signature)
        try:
            yield
        finally:
            await finished(None if self._fluxgate is None else self._fluxgate.recorder)


def _carrying(backend: type[BaseEventEmitterBackend]) -> type[BaseEventEmitterBackend]:
    """Return the kind of emitter whose listeners run under the frame of whoever emits."""

    class CarryingEmitter(backend):  # type: ignore[valid-type, misc]
        """Gives the frame to its listeners as an argument, which they take off again."""

        def __init__(self, listeners: Sequence[EventListener]) -> None:
            super().__init__([_under_its_frame(listener) for listener in listeners])

        def emit(self, event_id: str, *args: Any, **kwargs: Any) -> None:
            """Emit, with the frame."""
            super().emit(event_id, *args, **{**kwargs, _FRAME: get()})

    return CarryingEmitter


def _under_its_frame(listener: EventListener) -> EventListener:
    carried = copy.copy(listener)
    function = listener.fn

    @functools.wraps(function)
    async def under_frame(*args: Any, **kwargs: Any) -> Any:
        covered = get()
        enter(kwargs.pop(_FRAME, NOTHING))
        try:
            return await function(*args, **kwargs)
        finally:
            enter(covered)

    carried.fn = under_frame
    return carried
