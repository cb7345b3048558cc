"""Follow an answer's bytes on their way to the caller, who sees what he would see without us.

The class of one response is swapped for a cached subclass whose `iter_bytes`/`aiter_bytes` and `close`/`aclose` tell
a `Watch` what passed; it is swapped back when the call has ended. Nothing is set on the response itself and the watch
holds it weakly, so no cycle is made and a response that nobody reads any more ends its call when it is freed.
"""

from __future__ import annotations

import copyreg
import os
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from fluxgate_mw.openai.watch import Watch
from fluxgate_mw.recorder import at_process_end, opened

__all__ = ["follow"]

_ENCODING: Final = "content-encoding"

_watched: dict[int, tuple[weakref.ref[Any], Watch]] = {}


def _leave_to_parent() -> None:
    """Let a forked child end no call of its parent's; it reads of their streams what it would read without us."""
    for _, watch in _watched.values():
        watch.leave()


os.register_at_fork(after_in_child=_leave_to_parent)


def _end_all() -> None:
    """End the calls whose answers are still being read, while they can still be priced and delivered."""
    for _, watch in list(_watched.values()):
        watch.give_up()


at_process_end.append(_end_all)


def follow(response: Any, watch: Watch) -> None:
    """Follow `response` (of httpx or httpx2) with `watch` until the call has ended.

    Raises:
        TypeError: Its class cannot be swapped.
    """
    opened()
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
    def iter_bytes(self: Any, chunk_size: int | None = None) -> Any:
        watch = _of(self)
        if watch is None or watch.done:
            return base.iter_bytes(self, chunk_size)
        return _follow(self, base, watch, base.iter_bytes, chunk_size)

    def iter_raw(self: Any, chunk_size: int | None = None) -> Any:
        watch = _of(self)
        if watch is None or watch.done or watch.inside or _is_packed(self):
            return base.iter_raw(self, chunk_size)
        return _follow(self, base, watch, base.iter_raw, chunk_size)

    def close(self: Any) -> None:
        error = _raised_over(self)
        _closing(self)
        base.close(self)
        _closed(self, base, error)

    return {"iter_bytes": iter_bytes, "iter_raw": iter_raw, "close": close}


def _async_methods(base: Any) -> dict[str, Any]:
    def aiter_bytes(self: Any, chunk_size: int | None = None) -> Any:
        watch = _of(self)
        if watch is None or watch.done:
            return base.aiter_bytes(self, chunk_size)
        return _afollow(self, base, watch, base.aiter_bytes, chunk_size)

    def aiter_raw(self: Any, chunk_size: int | None = None) -> Any:
        watch = _of(self)
        if watch is None or watch.done or watch.inside or _is_packed(self):
            return base.aiter_raw(self, chunk_size)
        return _afollow(self, base, watch, base.aiter_raw, chunk_size)

    async def aclose(self: Any) -> None:
        error = _raised_over(self)
        _closing(self)
        await base.aclose(self)
        _closed(self, base, error)

    return {"aiter_bytes": aiter_bytes, "aiter_raw": aiter_raw, "aclose": aclose}


def _follow(
    response: Any, base: type, watch: Watch, read: Callable[..., Iterator[bytes]], size: int | None
) -> Iterator[bytes]:
    if not size or not watch.hides:
        return watch.read_by(_followed(response, base, watch, read(response, size)))
    return _cut(watch.read_by(_followed(response, base, watch, read(response))), size)


def _afollow(
    response: Any, base: type, watch: Watch, read: Callable[..., AsyncIterator[bytes]], size: int | None
) -> AsyncIterator[bytes]:
    if not size or not watch.hides:
        return watch.read_by(_afollowed(response, base, watch, read(response, size)))
    return _acut(watch.read_by(_afollowed(response, base, watch, read(response))), size)


def _is_packed(response: Any) -> bool:
    """Say whether the body's own bytes are not there to be looked at: compressed, or unpacked already."""
    return _ENCODING in response.headers or hasattr(response, "_content")


def _is_refused(response: Any, reading: str) -> bool:
    """Say whether the library raises over who begins to read: another reads, or the body is for the other kind."""
    return not hasattr(response, "_content") and (response.is_stream_consumed or not hasattr(response.stream, reading))


def _broke(error: BaseException, chunks: object, frame: str) -> bool:
    """Say whether the body itself has broken off, not its reader."""
    return isinstance(error, Exception) and getattr(chunks, frame, chunks) is None


def _followed(response: Any, base: type, watch: Watch, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if _is_refused(response, "__iter__"):
        yield from chunks
        return
    try:
        for chunk in chunks:
            if passed := watch.glance(chunk) or watch.look(chunk):
                yield passed
        if rest := watch.flush():
            yield rest
        watch.finish(exhausted=True)
    except BaseException as error:
        torn = watch.flush(broken=True) if _broke(error, chunks, "gi_frame") else b""
        watch.finish(None if isinstance(error, GeneratorExit) or watch.closed_elsewhere else error)
        if torn:
            yield torn
        raise
    finally:
        watch.finish(sys.exception())  # where an interrupt has kept us from it
        _release(response, base)


async def _afollowed(response: Any, base: type, watch: Watch, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if _is_refused(response, "__aiter__"):
        async for chunk in chunks:
            yield chunk
        return
    try:
        async for chunk in chunks:
            if passed := watch.glance(chunk) or watch.look(chunk):
                yield passed
        if rest := watch.flush():
            yield rest
        watch.finish(exhausted=True)
    except BaseException as error:
        torn = watch.flush(broken=True) if _broke(error, chunks, "ag_frame") else b""
        watch.finish(None if isinstance(error, GeneratorExit) or watch.closed_elsewhere else error)
        if torn:
            yield torn
        raise
    finally:
        watch.finish(sys.exception())  # where an interrupt has kept us from it
        _release(response, base)
        await _close(chunks)


def _cut(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in parts of that size, and the rest."""
    held = b""
    for chunk in chunks:
        parts, held = _parts(held + chunk, size)
        yield from parts
    if held:
        yield held


async def _close(chunks: AsyncIterator[bytes]) -> None:
    """Close with the reader what he reads from; left to itself it would be closed at some later turn of the loop."""
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()


async def _acut(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    held = b""
    try:
        async for chunk in chunks:
            parts, held = _parts(held + chunk, size)
            for part in parts:
                yield part
        if held:
            yield held
    finally:
        await _close(chunks)


def _parts(held: bytes, size: int) -> tuple[Iterator[bytes], bytes]:
    whole = len(held) - len(held) % size
    return (held[start : start + size] for start in range(0, whole, size)), held[whole:]


def _closing(response: Any) -> None:
    """Take note where somebody closes the response while another waits for its next chunk, who is raised an error.

    What is closed over an error is closed by who waits: a task that is cancelled does so.
    """
    watch = _of(response)
    if watch is None or not watch.inside or sys.exception() is not None:
        return
    frame: FrameType | None = sys._getframe()  # noqa: SLF001
    while frame is not None and frame.f_code not in _READERS:
        frame = frame.f_back
    watch.closed_elsewhere = watch.closed_elsewhere or frame is None


_READERS: Final = frozenset({_followed.__code__, _afollowed.__code__})
"""The library closes a response itself where its body ends, which is below one of these."""


def _closed(response: Any, base: type, error: BaseException | None) -> None:
    watch = _of(response)
    if watch is None or watch.inside:
        return
    answer = watch.answer
    if error is not None:
        answer.ended = False
        watch.finish(None if answer.status == "ERROR" else error)
    else:
        unread = response.is_stream_consumed and not watch.seen
        answer.ended = answer.ended or unread
        watch.finish(exhausted=unread)
    _release(response, base)


def _raised_over(response: Any) -> BaseException | None:
    """Return the error over which the client's own stream closes the response; None where somebody else does.

    Source: `Stream.__stream__` of openai 2.0 to 3.57, which closes it whatever it raises over a chunk; and
    `__stream__` of its helpers (`openai.lib.streaming`), whose `with` does, where the error leaves that.
    """
    error = sys.exception()
    step = None if error is None or isinstance(error, GeneratorExit) else error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_name == "__stream__" and _reads(step.tb_frame.f_locals, response):
            return error
        step = step.tb_next
    return None


def _reads(names: Mapping[str, Any], response: Any) -> bool:
    """Say whether a method of a stream, or of a helper over one, with these local variables reads this response."""
    if names.get("response") is response:
        return True
    with suppress(Exception):  # an attribute of somebody's object
        return names["self"]._raw_stream.response is response  # noqa: SLF001
    return False
