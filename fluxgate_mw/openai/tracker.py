"""The explicit form: a tracked view of one client, with a context of its own that wins over the ambient one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self, cast, overload

import msgspec
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from openai._base_client import AsyncAPIClient, SyncAPIClient
from openai._resource import AsyncAPIResource, SyncAPIResource

from fluxgate_mw import diagnostics
from fluxgate_mw.ambient import Ambient, get
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.frames import set_fields
from fluxgate_mw.openai.owners import VIEW
from fluxgate_mw.openai.patch import arequested, requested
from fluxgate_mw.openai.request import Origin
from fluxgate_mw.openai.told import note_response
from fluxgate_mw.recorder import Recorder, in_hand
from fluxgate_mw.types import HasRecorder

__all__ = [
    "TrackedAsyncAzureOpenAI",
    "TrackedAsyncOpenAI",
    "TrackedAzureOpenAI",
    "TrackedOpenAI",
    "create_openai_cost_tracker",
]


_RESOURCES: Final = (SyncAPIResource, AsyncAPIResource)
_WITHOUT_WRAPPERS: Final = "a wrapper on the instance of a client, or of its resource, sees no call of a tracker"
_NOT_THE_VIEWS: Final = "what somebody has put in place of a client's resource sends through the client, not a tracker"
_NO_CLIENT: Final = "what a tracker was given is no client of openai; its calls are not tracked"
_SENDING: Final = ("request", "get", "post", "put", "patch", "delete", "get_api_list")
"""What resources send by. Source: `SyncAPIResource.__init__` of openai 1.66 to 3.57, and what those call."""
_RAW_VIEWS: Final = ("WithRawResponse", "WithStreamedResponse", "WithStreamingResponse")


class _View:
    """What makes a client a tracked view; never made by itself."""

    _fluxgate_recorder: Recorder | None = None
    _fluxgate_fields: Mapping[str, Any] = {}
    _fluxgate_client: Any = None
    _fluxgate_shared: Collection[str] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the client too, where that is the client's own state."""
        super().__setattr__(name, value)
        if name in self._fluxgate_shared:
            setattr(self._fluxgate_client, name, value)

    def with_context(
        self,
        *,
        user: object = None,
        feature: str | None = None,
        step: str | None = None,
        session_id: str | None = None,
        conversation_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        cost_override: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a new view of the same client whose calls carry these fields, merged over this view's own.

        They win, field by field, over the ambient context. None leaves a field as it is; arguments are those of
        `fluxgate_mw.context`. This view is never changed.
        """
        fields = set_fields(
            "explicit",
            user=user,
            feature=feature,
            step=step,
            session_id=session_id,
            conversation_id=conversation_id,
            metadata=metadata,
            cost_override=cost_override,
        )
        merged = {**self._fluxgate_fields, **fields}
        if "metadata" in fields:
            merged["metadata"] = {**self._fluxgate_fields.get("metadata", {}), **fields["metadata"]}
        return cast("Self", _view_of(self, self._fluxgate_recorder, merged))

    def _fluxgate_begin(self) -> Origin:
        """Return the origin of a call, with the client's state (its key, its headers) as it is now."""
        if self._fluxgate_client is not None:
            state = vars(self._fluxgate_client)
            vars(self).update({name: state[name] for name in self._fluxgate_shared if name in state})
        return self._fluxgate_origin()

    def _fluxgate_origin(self, *, last: bool = False) -> Origin:
        ambient: Ambient = get()
        fields = self._fluxgate_fields
        if fields:
            if "metadata" in fields:
                fields = {**fields, "metadata": {**ambient.metadata, **fields["metadata"]}}
            ambient = msgspec.structs.replace(ambient, **fields)
        return Origin(recorder=self._fluxgate_recorder, ambient=ambient, last=last)

    def _process_response(self, *args: Any, **kwargs: Any) -> Any:
        note_response(in_hand.get(), kwargs)
        return super()._process_response(*args, **kwargs)  # type: ignore[misc]

    if not TYPE_CHECKING:  # for a type checker it is the client's, with its options

        def copy(self, *args: Any, **kwargs: Any) -> Self:
            """Return the client's own copy with other options, tracked as this view is."""
            copied = super().copy(*args, **kwargs)
            copied._fluxgate_recorder = self._fluxgate_recorder  # noqa: SLF001
            copied._fluxgate_fields = self._fluxgate_fields  # noqa: SLF001
            return copied

        with_options = copy


class _SyncView(_View):
    def request(self, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        """Send one request as a call of this view."""
        return requested(partial(_SyncView._send, self), self, cast_to, options, (args, kwargs), self._fluxgate_begin())

    def _send(self, *args: Any, **kwargs: Any) -> Any:
        return super().request(*args, **kwargs)  # type: ignore[misc]


class _AsyncView(_View):
    async def request(self, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        """Send one request as a call of this view."""
        return await arequested(
            partial(_AsyncView._send, self), self, cast_to, options, (args, kwargs), self._fluxgate_begin()
        )

    async def _send(self, *args: Any, **kwargs: Any) -> Any:
        return await super().request(*args, **kwargs)  # type: ignore[misc]


class _SyncLast(SyncAPIClient):
    """Comes last of all before the library's own `request`, where a subclass may have one in between."""

    _fluxgate_origin: Callable[..., Origin]

    def request(self, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        """Send what goes out, as the view's call or, where that has ended, as another."""
        return requested(
            partial(_SyncLast._out, self), self, cast_to, options, (args, kwargs), self._fluxgate_origin(last=True)
        )

    def _out(self, *args: Any, **kwargs: Any) -> Any:
        return super().request(*args, **kwargs)


class _AsyncLast(AsyncAPIClient):
    """See `_SyncLast`."""

    _fluxgate_origin: Callable[..., Origin]

    async def request(self, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        """Send what goes out, as the view's call or, where that has ended, as another."""
        origin = self._fluxgate_origin(last=True)
        return await arequested(partial(_AsyncLast._out, self), self, cast_to, options, (args, kwargs), origin)

    async def _out(self, *args: Any, **kwargs: Any) -> Any:
        return await super().request(*args, **kwargs)


class TrackedOpenAI(_SyncView, OpenAI, _SyncLast):
    """An `OpenAI` whose calls are tracked; made by `create_openai_cost_tracker`."""


class TrackedAsyncOpenAI(_AsyncView, AsyncOpenAI, _AsyncLast):
    """An `AsyncOpenAI` whose calls are tracked; made by `create_openai_cost_tracker`."""


class TrackedAzureOpenAI(TrackedOpenAI, AzureOpenAI):
    """An `AzureOpenAI` whose calls are tracked; made by `create_openai_cost_tracker`."""


class TrackedAsyncAzureOpenAI(TrackedAsyncOpenAI, AsyncAzureOpenAI):
    """An `AsyncAzureOpenAI` whose calls are tracked; made by `create_openai_cost_tracker`."""


class _StandIn:
    """What only looks like a client, as a mock does: used as it is, and tracked no more than it is by itself."""

    def __init__(self, client: Any) -> None:
        self._fluxgate_client = client

    def with_context(self, **_fields: Any) -> Self:
        """Return the same: there is no call that could carry the fields."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_fluxgate_client"), name)

    def __enter__(self) -> Self:
        self._fluxgate_client.__enter__()
        return self

    def __exit__(self, *raised: object) -> Any:
        return self._fluxgate_client.__exit__(*raised)

    async def __aenter__(self) -> Self:
        await self._fluxgate_client.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> Any:
        return await self._fluxgate_client.__aexit__(*raised)


_views: dict[type, type] = {
    OpenAI: TrackedOpenAI,
    AsyncOpenAI: TrackedAsyncOpenAI,
    AzureOpenAI: TrackedAzureOpenAI,
    AsyncAzureOpenAI: TrackedAsyncAzureOpenAI,
}
for _base in (_SyncView, _AsyncView, _SyncLast, _AsyncLast, *_views.values()):
    setattr(_base, VIEW, True)


@overload
def create_openai_cost_tracker(client: AsyncAzureOpenAI, fg: HasRecorder | None = None) -> TrackedAsyncAzureOpenAI: ...
@overload
def create_openai_cost_tracker(client: AzureOpenAI, fg: HasRecorder | None = None) -> TrackedAzureOpenAI: ...
@overload
def create_openai_cost_tracker(client: AsyncOpenAI, fg: HasRecorder | None = None) -> TrackedAsyncOpenAI: ...
@overload
def create_openai_cost_tracker(client: OpenAI, fg: HasRecorder | None = None) -> TrackedOpenAI: ...


def create_openai_cost_tracker(client: Any, fg: HasRecorder | None = None) -> Any:
    """Return a tracked view of one client: the same connection, options and methods, and `.with_context(...)`.

    Args:
        client: An `OpenAI`, `AsyncOpenAI`, `AzureOpenAI` or `AsyncAzureOpenAI`, or of a subclass; never changed.
        fg: Where its events go; None = the request's, else the process's default at the time of each call.

    Raises:
        ConfigurationError: It is given what cannot be a client: a class, the module `openai`, None.

    Guarantees: works with the global patch off, and counts once with it on. What is set on the client later (a key, a
    header) holds for its views, and the other way round. A wrapper that others have put on the instance of a client
    or of its resource (`client.chat.completions.create = traced`) sees no call of a view, which is noted. So is an
    object of theirs in place of a resource, as of PostHog's client: what it sends is no call of a view. And so is
    what is no client of `openai`, as a mock of your tests or a client of another library: it is used as it is.

    Concurrency: as the client's own; views share its connection pool, so closing one closes it for all.

    Example:
        >>> import openai
        >>> tracker = create_openai_cost_tracker(openai.OpenAI(api_key="unused"))
        >>> view = tracker.with_context(feature="summarizer", user="u-1")
        >>> view is tracker
        False
    """
    if isinstance(client, type | ModuleType) or not hasattr(client, "__dict__"):
        what = f"the class {client.__name__}" if isinstance(client, type) else f"a {type(client).__name__}"
        raise ConfigurationError(f"create_openai_cost_tracker: expected a client, such as OpenAI(), not {what}")
    if not issubclass(type(client), SyncAPIClient | AsyncAPIClient):  # a mock may claim to be an instance
        diagnostics.note("tracker_without_client", _NO_CLIENT)
        return _StandIn(client)
    recorder = getattr(client, "_fluxgate_recorder", None) if fg is None else fg.recorder
    return _view_of(client, recorder, getattr(client, "_fluxgate_fields", {}))


def _view_of(client: Any, recorder: Recorder | None, fields: Mapping[str, Any]) -> Any:
    view_class = _view_class(type(client))
    view: Any = object.__new__(view_class)
    root = getattr(client, "_fluxgate_client", None) or client
    state = dict(vars(client))
    vars(view).update(state)
    _rebind_resources(view, state)
    _leave_wrappers(view, state)
    _note_replaced(state)
    vars(view).update(
        _fluxgate_recorder=recorder,
        _fluxgate_fields=fields,
        _fluxgate_client=root,
        _fluxgate_shared=frozenset(state).difference(_resources(state), vars(_View), _SENDING),
    )
    return view


def _view_class(base: type) -> type:
    if VIEW in base.__dict__:
        return base
    view = _views.get(base)
    if view is None:
        first, last = (_AsyncView, _AsyncLast) if issubclass(base, AsyncAPIClient) else (_SyncView, _SyncLast)
        view = _views[base] = type(f"Tracked{base.__name__}", (first, base, last), {VIEW: True})
    return view


def _resources(state: Mapping[str, Any]) -> list[str]:
    """Return the names of the resources that a client with this state has made."""
    return [name for name, value in state.items() if isinstance(value, _RESOURCES) or _is_raw_view(type(value))]


def _is_raw_view(kind: type) -> bool:
    return kind.__module__.startswith("openai.") and kind.__name__.endswith(_RAW_VIEWS)


def _rebind_resources(view: Any, state: Mapping[str, Any]) -> None:
    """Let no resource that the client has made keep sending through the client instead of the view.

    What others have put on a client's resources is not on the view's.
    """
    for name in _resources(state):
        value = state[name]
        if _is_wrapped(value):
            diagnostics.note("tracker_without_wrappers", _WITHOUT_WRAPPERS)
        if hasattr(type(view), name):
            del view.__dict__[name]
        else:
            view.__dict__[name] = type(value)(view)


def _leave_wrappers(view: Any, state: Mapping[str, Any]) -> None:
    """Let no sending method that somebody has put on the client itself take the view's calls past the view."""
    for name in _SENDING:
        if name in state:
            diagnostics.note("tracker_without_wrappers", _WITHOUT_WRAPPERS)
            del view.__dict__[name]


def _note_replaced(state: Mapping[str, Any]) -> None:
    """Take note of what is no resource though it stands for one: it is left as it is, and its calls are not tracked."""
    for name in set(state).difference(_resources(state)):
        if isinstance(vars(OpenAI).get(name), cached_property):
            diagnostics.note("tracker_without_resource", _NOT_THE_VIEWS)


def _is_wrapped(resource: Any) -> bool:
    """Say whether somebody has put a method of his own on a resource, or on one below it."""
    for name, value in vars(resource).items():
        if name.startswith("_"):
            continue
        if callable(value) and callable(getattr(type(resource), name, None)):
            return True
        if isinstance(value, SyncAPIResource | AsyncAPIResource) and _is_wrapped(value):
            return True
    return False
