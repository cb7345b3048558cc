"""Follow an answer's bytes on their way to the caller, who sees what he would see without us.

The class of one response is swapped for a cached subclass whose `iter_bytes`/`aiter_bytes` and `close`/`aclose` tell
a `Watch` what passed; it is swapped back when the call has ended. Nothing is set on the response itself and the watch
holds it weakly, so no cycle is made and a response that nobody reads any more ends its call when it is freed.
"""

from __future__ import annotations

import copyreg
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from fluxgate_mw import diagnostics
from fluxgate_mw.openai.answer import Answer
from fluxgate_mw.openai.plain import Glance, alike, plain_event
from fluxgate_mw.openai.sse import split_events, without_null_usage
from fluxgate_mw.recorder import guarded

__all__ = ["Watch", "watch"]

MOST_HELD_BYTES: Final = 8 * 1024 * 1024
"""An event or a JSON answer larger than this passes unread; its call ends with what is known."""

MOST_GLANCES: Final = 8
"""How often it is worth learning what plain events look like in a stream where each looks different."""

End = Callable[[Answer, "BaseException | None", bool], None]


def _nobody(_answer: Answer, _error: BaseException | None, _exhausted: bool) -> None:  # noqa: FBT001
    """Be told of no end."""


class Watch:
    """What one response in flight has brought so far.

    Args:
        end: Called once, with the answer, the error that broke it (or None), and whether it was read to its end.
        first: Called at the first chunk.
        sse: The body is server-sent events; else JSON.
        hide_usage: We asked for usage on the caller's behalf: keep what that adds from him.
        keep_texts: Keep the texts that a stream delivers.

    Concurrency: one reader at a time, as for the response itself.
    """

    __slots__ = (
        "_blind",
        "_body",
        "_end",
        "_first",
        "_glance",
        "_glances",
        "_held",
        "_hide_usage",
        "_sse",
        "answer",
        "done",
        "inside",
        "seen",
    )

    def __init__(
        self, end: End, first: Callable[[], None], *, sse: bool, hide_usage: bool, keep_texts: bool = False
    ) -> None:
        self._end = end
        self._first = first
        self._sse = sse
        self._hide_usage = hide_usage
        self._held = b""
        self._body = bytearray()
        self._blind = False
        self._glance: Glance | None = None
        self._glances = 0
        self.answer = Answer(keep_texts=keep_texts)
        self.done = False
        self.inside = False
        self.seen = False

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk and return what of it the caller gets now."""
        glance, held = self._glance, self._held
        if glance is not None and not held and (known := glance(chunk)) is not None:
            self.answer.delivered_bytes += known[1]
            return known[0]
        if self._blind:
            return chunk
        if not self.seen:
            self.seen = True
            self._first()
        if not held and (passed := self._pass_plain(chunk)) is not None:
            return passed
        if len(held) + len(self._body) + len(chunk) > MOST_HELD_BYTES:
            diagnostics.note("answer_too_large", "an answer is too large to be looked at; its usage is not known")
            passed = None
        else:
            passed = guarded("openai_stream", self._read, chunk)
        if passed is None:
            self._held, self._body, self._blind, self._glance = b"", bytearray(), True, None
            return held + chunk if self._hide_usage else chunk
        return passed

    def flush(self) -> bytes:
        """Return what is still held back from the caller at the end of the body."""
        held, self._held = self._held, b""
        if self._blind:
            return b""
        if not self._sse:
            guarded("openai_stream", self.answer.read_whole, bytes(self._body))
            return b""
        if held.lstrip()[:1] == b"{":
            guarded("openai_stream", self.answer.read_whole, held)
        elif held:
            guarded("openai_stream", self.answer.read_event, held, torn=True)
        return held if self._hide_usage else b""

    def finish(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        """End the call, the first time."""
        if not self.done:
            self.done = True
            self._held, self._body = b"", bytearray()
            guarded("openai_stream", self._end, self.answer, error, exhausted)

    def leave(self) -> None:
        """Tell nobody of the end."""
        self._end = _nobody

    def _pass_plain(self, chunk: bytes) -> bytes | None:
        """Return what the caller gets of a chunk that is one plain event, else None; remember what such look like."""
        answer = self.answer
        if answer.response_id is None or answer.texts is not None or chunk.find(b"\n\n") != len(chunk) - 2:
            return None
        if (plain := plain_event(chunk)) is None:
            return None
        answer.delivered_bytes += plain[2]
        if self._glances < MOST_GLANCES:
            self._glances += 1
            self._glance = alike(chunk, plain, hide_usage=self._hide_usage)
        return without_null_usage(chunk) if self._hide_usage else chunk

    def _read(self, chunk: bytes) -> bytes:
        if not self._sse:
            self._body += chunk
            return chunk
        buffered = self._held + chunk if self._held else chunk
        events, self._held = split_events(buffered)
        read_event = self.answer.read_event
        if not self._hide_usage:
            for event in events:
                read_event(event)
            return chunk
        return b"".join([without_null_usage(event) for event in events if not read_event(event)])


_watched: dict[int, tuple[weakref.ref[Any], Watch]] = {}


def _leave_to_parent() -> None:
    """Let a forked child end no call of its parent's; it reads of their streams what it would read without us."""
    for _, watch in _watched.values():
        watch.leave()


os.register_at_fork(after_in_child=_leave_to_parent)


def watch(response: Any, watch: Watch) -> None:
    """Follow `response` (of httpx or httpx2) with `watch` until the call has ended.

    Raises:
        TypeError: Its class cannot be swapped.
    """
    key = id(response)

    def freed(_: object) -> None:
        _watched.pop(key, None)
        watch.finish()

    response.__class__ = _watched_class(type(response))
    _watched[key] = (weakref.ref(response, freed), watch)


def _of(response: Any) -> Watch | None:
    known = _watched.get(id(response))
    return None if known is None else known[1]


def _release(response: Any, base: type) -> None:
    if _watched.pop(id(response), None) is not None and type(response) is _watched_class(base):
        response.__class__ = base


_classes: dict[type, type] = {}


def _watched_class(base: type) -> type:
    """Return the subclass of a response class that tells its watch, made once."""
    watched = _classes.get(base)
    if watched is None:
        watched = _classes[base] = _make_watched_class(base)
    return watched


def _make_watched_class(base: Any) -> type:

    def reduce(self: Any, _protocol: object) -> Any:
        return copyreg._reconstructor, (base, object, None), self.__getstate__()  # type: ignore[attr-defined]  # noqa: SLF001

    names = ("__qualname__", "__module__", "__doc__")
    namespace = {name: getattr(base, name) for name in names} | _sync_methods(base) | _async_methods(base)
    return type(base.__name__, (base,), {**namespace, "__reduce_ex__": reduce})


def _sync_methods(base: Any) -> dict[str, Any]:
    def followed(self: Any, watch: Watch, chunks: Iterator[bytes]) -> Iterator[bytes]:
        watch.inside = True
        try:
            for chunk in chunks:
                if passed := watch.feed(chunk):
                    watch.inside = False
                    yield passed
                    watch.inside = True
            watch.inside = False
            if rest := watch.flush():
                yield rest
            watch.finish(exhausted=True)
        except BaseException as error:
            watch.inside = False
            watch.finish(None if isinstance(error, GeneratorExit) else error)
            raise
        finally:
            _release(self, base)

    def iter_bytes(self: Any, chunk_size: int | None = None) -> Iterator[bytes]:
        watch, chunks = _of(self), base.iter_bytes(self, chunk_size)
        return chunks if watch is None or watch.done else followed(self, watch, chunks)

    def iter_raw(self: Any, chunk_size: int | None = None) -> Iterator[bytes]:
        watch, chunks = _of(self), base.iter_raw(self, chunk_size)
        return followed(self, watch, chunks) if watch is not None and _is_read_raw(self, watch) else chunks

    def close(self: Any) -> None:
        base.close(self)
        _closed(self, base)

    return {"iter_bytes": iter_bytes, "iter_raw": iter_raw, "close": close}


def _async_methods(base: Any) -> dict[str, Any]:
    async def followed(self: Any, watch: Watch, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        watch.inside = True
        try:
            async for chunk in chunks:
                if passed := watch.feed(chunk):
                    watch.inside = False
                    yield passed
                    watch.inside = True
            watch.inside = False
            if rest := watch.flush():
                yield rest
            watch.finish(exhausted=True)
        except BaseException as error:
            watch.inside = False
            watch.finish(None if isinstance(error, GeneratorExit) else error)
            raise
        finally:
            _release(self, base)

    def aiter_bytes(self: Any, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        watch, chunks = _of(self), base.aiter_bytes(self, chunk_size)
        return chunks if watch is None or watch.done else followed(self, watch, chunks)

    def aiter_raw(self: Any, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        watch, chunks = _of(self), base.aiter_raw(self, chunk_size)
        return followed(self, watch, chunks) if watch is not None and _is_read_raw(self, watch) else chunks

    async def aclose(self: Any) -> None:
        await base.aclose(self)
        _closed(self, base)

    return {"aiter_bytes": aiter_bytes, "aiter_raw": aiter_raw, "aclose": aclose}


def _is_read_raw(response: Any, watch: Watch) -> bool:
    """Say whether it is the caller who asks for the raw bytes, and they are not compressed."""
    return not (watch.done or watch.inside or "content-encoding" in response.headers)


def _closed(response: Any, base: type) -> None:
    watch = _of(response)
    if watch is not None and not watch.inside:
        unread = response.is_stream_consumed and not watch.seen
        watch.answer.ended = watch.answer.ended or unread
        watch.finish(exhausted=unread)
        _release(response, base)
