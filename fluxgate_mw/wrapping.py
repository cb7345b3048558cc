"""Wrapping a callable of any kind into something that it runs inside of: what decorators have in common.

Knows nothing of what that is. A wrapper keeps the name, the signature and the kind of what it wraps, and what is sent
to, thrown into and returned by a generator passes through it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import nullcontext, suppress
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType
from typing import Any, Final, Protocol

__all__ = ["NOTHING_AROUND", "Around", "bound", "wrap"]

NOTHING_AROUND: Final = nullcontext()


class Around(Protocol):
    """What a callable runs inside of. Asked anew for each of its calls, whose order and threads may be any."""

    def call(self) -> Any:
        """Return what is around one call: entered by `with`, or by `async with` where the call is awaited."""
        ...

    def steps(self) -> tuple[Any, Any]:
        """Return what is around a generator from its first step to its end, and what is around each of its steps.

        The first is entered as that of `call`, the second by `with`, again and again.
        """
        ...

    def postponed(self, entered: Any) -> None:
        """Know that a call has only made a coroutine or a generator, which runs inside of another one.

        Args:
            entered: What entering the call's own gave; still to be left.
        """
        ...


def wrap(target: Any, around: Around) -> Any:
    """Return `target` running inside of `around`, wherever it is called, awaited or iterated."""
    if isinstance(target, staticmethod | classmethod):
        return type(target)(wrap(target.__func__, around))
    if inspect.isasyncgenfunction(target):
        return _async_generator(target, around)
    if inspect.isgeneratorfunction(target):
        return _generator(target, around)
    if inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None)):  # noqa: B004
        return _coroutine(target, around)
    return _plain(target, around)


def bound(found: Any, instance: Any) -> Any:
    """Return what was found in a class's `__dict__` as the instance has it.

    A wrapper that is a descriptor, as those of wrapt are, takes whoever calls it bare for a function's caller.
    """
    return found.__get__(instance, type(instance)) if hasattr(found, "__get__") else found


def _passing_for(target: Any, wrapper: Any) -> Any:
    """Return `wrapper` passing for `target`: its name, signature and attributes, and the globals of its module.

    Older releases of FastAPI look annotations that are strings up in the globals of the very function that it is given.
    So a wrapper's body uses only what is closed over. Pyramid counts a view's arguments by `inspect.getfullargspec`,
    which looks at no wrapped function, and is told; FastAPI would take an object's `__call__` by its word, with
    annotations that are strings.
    """
    called = target if hasattr(target, "__globals__") else getattr(type(target), "__call__", None)  # noqa: B004
    module_globals = getattr(called, "__globals__", wrapper.__globals__)
    moved = FunctionType(wrapper.__code__, module_globals, wrapper.__name__, None, wrapper.__closure__)
    if "pyramid" in sys.modules and getattr(target, "__name__", None) != "__call__":
        with suppress(TypeError, ValueError):
            vars(moved)["__signature__"] = inspect.signature(target)
    return functools.wraps(target)(moved)


def _coroutine(target: Any, around: Around) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with around.call():
            return await target(*args, **kwargs)

    return _passing_for(target, wrapper)


def _plain(target: Any, around: Around) -> Any:
    deferred = _DEFERRED.get

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with around.call() as entered:
            result = target(*args, **kwargs)
            kind = deferred(type(result))
            if kind is None:
                return result
            around.postponed(entered)
        return kind(lambda: result, around)()

    return _passing_for(target, wrapper)


def _generator(target: Any, around: Around) -> Any:
    partial = functools.partial

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        whole, inside = around.steps()
        with whole:
            running = target(*args, **kwargs)
            resume = partial(next, running)
            while True:
                try:
                    with inside:
                        item = resume()
                except StopIteration as stop:
                    return stop.value
                try:
                    resume = partial(running.send, (yield item))
                except GeneratorExit:
                    with inside:
                        running.close()
                    raise
                except BaseException as error:  # noqa: BLE001  (handed to the generator, which decides)
                    resume = partial(running.throw, error)

    return _passing_for(target, wrapper)


def _async_generator(target: Any, around: Around) -> Any:
    partial = functools.partial

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        whole, inside = around.steps()
        async with whole:
            running = target(*args, **kwargs)
            resume = running.__anext__
            while True:
                try:
                    with inside:
                        item = await resume()
                except StopAsyncIteration:
                    return
                try:
                    resume = partial(running.asend, (yield item))
                except GeneratorExit:
                    with inside:
                        await running.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001  (handed to the generator, which decides)
                    resume = partial(running.athrow, error)

    return _passing_for(target, wrapper)


_DEFERRED: Final[Mapping[type, Callable[[Any, Around], Any]]] = {
    GeneratorType: _generator,
    AsyncGeneratorType: _async_generator,
    CoroutineType: _coroutine,
}
