"""Frames on the ambient context: `feature(...)` and `context(...)`, as `with`, `async with` and decorators.

A frame is left only when it is the one on top, and never by resetting a token: generators and coroutines may be
finalised in another context than the one that they began in. Nothing is kept on the frame itself, so one instance
serves many tasks at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Literal, TypeVar, cast

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.ambient import NOTHING, Ambient, enter, get
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.users import as_user
from fluxgate_mw.wrapping import NOTHING_AROUND, wrap

__all__ = ["DECORATION", "Frame", "context", "feature", "set_fields"]

_F = TypeVar("_F", bound=Callable[..., Any])
DECORATION: Final = "__fluxgate_decoration__"
"""The attribute of a decorated function or class that holds its `Frame`."""


class Frame:
    """Something to put on the ambient context for a while: `with`, `async with`, or as a decorator.

    One instance may be entered many times, by many tasks at once: what it covers is kept in the context itself.

    A `with` around the `yield` of a sync generator holds only until the first one where each step runs in a thread
    pool, as streamed bodies do under ASGI. That is counted and logged once (`frame_lost`); decorate the generator.
    Decorate it too where several such generators take turns in one task, as in `zip`: a frame that is not on top when
    its block ends comes to light again when those above it are left, and stays.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def over(self, covered: Ambient) -> Ambient:
        """Return the frame that this puts on top of `covered`."""
        fields = dict(self._fields)
        if metadata := fields.get("metadata"):
            fields["metadata"] = {**covered.metadata, **metadata}
        return msgspec.structs.replace(covered, owner=self, covered=covered, **fields)

    def under(self, ambient: Ambient) -> Ambient:
        """Return `ambient` with what it leaves open filled in from this frame."""
        mine = self.over(NOTHING)
        return msgspec.structs.replace(
            ambient,
            feature=mine.feature,
            feature_source=mine.feature_source,
            step=ambient.step or mine.step,
            metadata={**mine.metadata, **ambient.metadata},
        )

    def __enter__(self) -> None:
        enter(self.over(get()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        top = get()
        if top.owner is self and top.covered is not None:
            enter(top.covered)
        elif kind is None and not _holds(top, self):
            diagnostics.note("frame_lost", _LOST)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, target: _F) -> _F:
        """Return `target` running inside this frame: same signature, same kind of function; a class is returned itself.

        Generators and async generators are inside the frame at each step and outside it in between.
        """
        if isinstance(target, type):
            return cast("_F", self._wrap_methods(target))
        return cast("_F", wrap(target, _Inside(self)))

    def _wrap_methods(self, cls: Any) -> Any:
        for name, value in list(vars(cls).items()):
            if name.startswith("_") and name != "__call__":
                continue
            if inspect.isfunction(value) or isinstance(value, staticmethod | classmethod):
                setattr(cls, name, wrap(value, _Inside(self)))
        return cls


class feature(Frame):  # noqa: N801  (used as a decorator and as a context manager)
    """Name the feature that calls belong to, instead of the route template.

    Works on sync and async functions, generators, async generators, methods and classes, and as `with` and
    `async with`. The innermost wins; leaving restores the outer one. An endpoint that is decorated names every call of
    its request that no inner frame names: also those of its streamed body and its background tasks.

    Args:
        name: Of low cardinality: never an id or a path. An empty one names nothing.
        step: A part of the feature; None = the outer one's.
        metadata: Anything else to keep with the events; merged over the outer one's.

    Raises:
        ConfigurationError: It decorates a function by itself, without a name.

    Example:
        >>> from fluxgate_mw import current
        >>> @feature("summarizer", team="search")
        ... def summarize() -> str:
        ...     return current().feature
        >>> summarize()
        'summarizer'
    """

    __slots__ = ()

    def __init__(self, name: str, *, step: str | None = None, **metadata: Any) -> None:
        if callable(name):
            raise ConfigurationError('@feature was put on a function without a name: write @feature("name")')
        fields: dict[str, Any] = {} if _is_empty(name) else {"feature": name, "feature_source": "context"}
        if step is not None:
            fields["step"] = step
        if metadata:
            fields["metadata"] = metadata
        super().__init__(fields)

    def __call__(self, target: _F) -> _F:
        """Return `target` running inside this feature; see `Frame`."""
        named = {"feature_source": "decorator"} if "feature" in self._fields else {}
        decoration = Frame({**self._fields, **named})
        wrapped = decoration(target)
        setattr(wrapped, DECORATION, decoration)
        return wrapped


def context(
    *,
    user: object = None,
    feature: str | None = None,
    step: str | None = None,
    session_id: str | None = None,
    conversation_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    cost_override: Mapping[str, Any] | None = None,
) -> Frame:
    """Set any part of the ambient context for a block or a function; nests, merges, restores.

    Args:
        user: As in `identify`; wins over it. None = as outside; something that is no user is counted and ignored.
        feature: Wins over the route template and over outer features. An empty one names nothing.
        step: A part of the feature.
        session_id: The user's session.
        conversation_id: The conversation that the calls belong to.
        metadata: Anything else; merged over the outer one's, key by key. What is no mapping is counted and ignored.
        cost_override: Rates in USD per million tokens: `input_cost_per_1m_tokens`, `output_cost_per_1m_tokens`,
            `cache_read_cost_per_1m_tokens`, `cache_write_cost_per_1m_tokens`, `reasoning_cost_per_1m_tokens`. With
            what is no such mapping the cost is unknown, which is counted.
    """
    return Frame(
        set_fields(
            "context",
            user=user,
            feature=feature,
            step=step,
            session_id=session_id,
            conversation_id=conversation_id,
            metadata=metadata,
            cost_override=cost_override,
        )
    )


def _is_empty(name: object) -> bool:
    """Say whether it is a name without a character; what is no text is asked nothing: its answer might raise."""
    return isinstance(name, str) and not name


def set_fields(
    source: Literal["context", "explicit"],
    *,
    user: object,
    feature: str | None,
    metadata: Mapping[str, Any] | None,
    cost_override: Mapping[str, Any] | None,
    **others: str | None,
) -> dict[str, Any]:
    """Return the fields of `Ambient` that are given, with `source` as where user and feature came from.

    What is no user is counted and left out, and so is metadata that is no mapping; the mappings are copied. A
    `cost_override` that is none is kept: as one with a wrong key, it is counted where the call is priced.
    """
    fields: dict[str, Any] = {key: value for key, value in others.items() if value is not None}
    if user is not None and (known := as_user(user)) is not None:
        fields["user"], fields["user_source"] = known, source
    elif user is not None:
        diagnostics.note("context_no_user", f"a context was given a {type(user).__name__} without an id as its user")
    if feature is not None and not _is_empty(feature):
        fields["feature"], fields["feature_source"] = feature, source
    if metadata and (copied := _copied(metadata)) is not None:
        fields["metadata"] = copied
    elif metadata:
        diagnostics.note("context_no_metadata", f"a context was given a {type(metadata).__name__} as its metadata")
    if cost_override:
        copied = _copied(cost_override)
        fields["cost_override"] = cost_override if copied is None else copied
    return fields


def _copied(mapping: Any) -> dict[Any, Any] | None:
    """Return a copy of what the application gave as a mapping; None where it is none."""
    try:
        return dict(mapping)
    except (TypeError, ValueError):
        return None


_LOST: Final = (
    "A `with feature(...)` or `with context(...)` was not there any more when its block ended: calls may lack it. "
    "In a generator whose steps run in a thread pool, decorate the generator instead"
)


def _holds(top: Ambient, frame: Frame) -> bool:
    """Return whether `frame` is anywhere at or below the top."""
    below: Ambient | None = top
    while below is not None:
        if below.owner is frame:
            return True
        below = below.covered
    return False


class _Inside:
    """Around a decorated callable: one frame."""

    __slots__ = ("_frame",)

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def call(self) -> Frame:
        return self._frame

    def steps(self) -> tuple[Any, _Steps]:
        return NOTHING_AROUND, _Steps(self._frame)

    def postponed(self, entered: None) -> None:
        """Do nothing: what is made runs inside the frame as well."""


class _Steps:
    """The frame of one running generator: on top at each step, and in between what the consumer has.

    What a step leaves on top (an open `with` inside the generator) is there again at the next one. Where a step ends
    in another context than it began in, nothing of ours is on top there, and nothing is changed.
    """

    __slots__ = ("_base", "_covered", "_frame", "_top")

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._base: Ambient | None = None
        self._top = self._covered = NOTHING

    def __enter__(self) -> None:
        self._covered = get()
        if self._base is None:
            self._base = self._top = self._frame.over(self._covered)
        enter(self._top)

    def __exit__(self, *_: object) -> None:
        left = get()
        below: Ambient | None = left
        while below is not None and below is not self._base:
            below = below.covered
        if below is not None:
            self._top = left
            enter(self._covered)
        self._covered = NOTHING
