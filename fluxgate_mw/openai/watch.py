"""Follow an answer's bytes on their way to the caller, who sees what he would see without us.

The class of one response is swapped for a cached subclass whose `iter_bytes`/`aiter_bytes` and `close`/`aclose` tell
a `Watch` what passed; it is swapped back when the call has ended. Nothing is set on the response itself and the watch
holds it weakly, so no cycle is made and a response that nobody reads any more ends its call when it is freed.
"""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from fluxgate_mw.openai.answer import Answer, split_events
from fluxgate_mw.recorder import guarded

__all__ = ["Watch", "watch"]

MOST_HELD_BYTES: Final = 8 * 1024 * 1024
"""An event or a JSON answer larger than this passes unread; its call ends with what is known."""

End = Callable[[Answer, "BaseException | None", bool], None]


class Watch:
    """What one response in flight has brought so far.

    Args:
        end: Called once, with the answer, the error that broke it (or None), and whether it was read to its end.
        first: Called at each chunk; notes the first.
        sse: The body is server-sent events; else JSON.
        hide_usage: We asked for usage on the caller's behalf: keep what that adds from him.

    Concurrency: one reader at a time, as for the response itself.
    """

    __slots__ = ("_blind", "_end", "_first", "_held", "_hide_usage", "_sse", "answer", "done", "inside", "seen")

    def __init__(self, end: End, first: Callable[[], None], *, sse: bool, hide_usage: bool) -> None:
        self._end = end
        self._first = first
        self._sse = sse
        self._hide_usage = hide_usage
        self._held = b""
        self._blind = False
        self.answer = Answer()
        self.done = False
        self.inside = False
        self.seen = False

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk and return what of it the caller gets now."""
        if self._blind:
            return chunk
        self.seen = True
        self._first()
        held = self._held
        passed = guarded("openai_stream", self._read, chunk)
        if passed is None:
            self._held, self._blind = b"", True
            return held + chunk if self._hide_usage else chunk
        return passed

    def flush(self) -> bytes:
        """Return what is still held back from the caller at the end of the body."""
        held, self._held = self._held, b""
        if self._blind:
            return b""
        if not self._sse:
            guarded("openai_stream", self.answer.read_whole, held)
            return b""
        if held:
            guarded("openai_stream", self.answer.read_event, held)
        return held if self._hide_usage else b""

    def finish(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        """End the call, the first time."""
        if not self.done:
            self.done = True
            self._held = b""
            guarded("openai_stream", self._end, self.answer, error, exhausted)

    def _read(self, chunk: bytes) -> bytes:
        if len(self._held) + len(chunk) > MOST_HELD_BYTES:
            raise OverflowError
        buffered = self._held + chunk if self._held else chunk
        if not self._sse:
            self._held = buffered
            return chunk
        events, self._held = split_events(buffered)
        if not self._hide_usage:
            for event in events:
                self.answer.read_event(event.rstrip(b"\r\n"))
            return chunk
        return b"".join(map(self._shown, events))

    def _shown(self, event: bytes) -> bytes:
        if self.answer.read_event(event.rstrip(b"\r\n")):
            return b""
        return event.replace(b',"usage":null', b"")


_watched: dict[int, tuple[weakref.ref[Any], Watch]] = {}


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
        return copyreg.__newobj__, (base,), self.__getstate__()  # type: ignore[attr-defined]

    names = ("__qualname__", "__module__", "__doc__")
    namespace = {name: getattr(base, name) for name in names} | _sync_methods(base) | _async_methods(base)
    return type(base.__name__, (base,), {**namespace, "__reduce_ex__": reduce})


def _sync_methods(base: Any) -> dict[str, Any]:
    def iter_bytes(self: Any, chunk_size: int | None = None) -> Iterator[bytes]:
        watch = _of(self)
        if watch is None or watch.done:
            yield from base.iter_bytes(self, chunk_size)
            return
        chunks = base.iter_bytes(self, chunk_size)
        try:
            while (chunk := _next(watch, chunks)) is not None:
                if passed := watch.feed(chunk):
                    yield passed
            if rest := watch.flush():
                yield rest
            watch.finish(exhausted=True)
        except BaseException as error:
            watch.finish(None if isinstance(error, GeneratorExit) else error)
            raise
        finally:
            _release(self, base)

    def close(self: Any) -> None:
        base.close(self)
        _closed(self, base)

    return {"iter_bytes": iter_bytes, "close": close}


def _async_methods(base: Any) -> dict[str, Any]:
    async def aiter_bytes(self: Any, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        watch = _of(self)
        chunks = base.aiter_bytes(self, chunk_size)
        if watch is None or watch.done:
            async for chunk in chunks:
                yield chunk
            return
        try:
            while (chunk := await _anext(watch, chunks)) is not None:
                if passed := watch.feed(chunk):
                    yield passed
            if rest := watch.flush():
                yield rest
            watch.finish(exhausted=True)
        except BaseException as error:
            watch.finish(None if isinstance(error, GeneratorExit) else error)
            raise
        finally:
            _release(self, base)

    async def aclose(self: Any) -> None:
        await base.aclose(self)
        _closed(self, base)

    return {"aiter_bytes": aiter_bytes, "aclose": aclose}


def _closed(response: Any, base: type) -> None:
    watch = _of(response)
    if watch is not None and not watch.inside:
        watch.finish(exhausted=response.is_stream_consumed and not watch.seen)
        _release(response, base)


def _next(watch: Watch, chunks: Iterator[bytes]) -> bytes | None:
    watch.inside = True
    try:
        return next(chunks, None)
    finally:
        watch.inside = False


async def _anext(watch: Watch, chunks: AsyncIterator[bytes]) -> bytes | None:
    watch.inside = True
    try:
        return await anext(chunks, None)
    finally:
        watch.inside = False
