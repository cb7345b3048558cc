"""FastAPI: identify the user with what a dependency returned."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Any, TypeVar, cast

from fluxgate_mw.ambient import identify

__all__ = ["identified"]

_F = TypeVar("_F", bound=Callable[..., Any])


def identified(dependency: _F) -> _F:
    """Return a dependency that also identifies the user: `Depends(identified(get_current_user))`.

    Args:
        dependency: A function, coroutine function, generator or async generator function, or callable object, whose
            value is a user as in `identify`; None identifies nobody.

    Guarantees: same signature and kind, so FastAPI injects into it as before; it runs once a request, as FastAPI
    caches the wrapped dependency by identity: wrap it once, at module level, where several routes share it.
    """
    call = dependency if inspect.isroutine(dependency) else type(dependency).__call__
    wrapped: Any
    if inspect.isasyncgenfunction(dependency) or inspect.isasyncgenfunction(call):
        wrapped = _async_generator(dependency)
    elif inspect.isgeneratorfunction(dependency) or inspect.isgeneratorfunction(call):
        wrapped = _generator(dependency)
    elif inspect.iscoroutinefunction(dependency) or inspect.iscoroutinefunction(call):
        wrapped = _coroutine(dependency)
    else:
        wrapped = _function(dependency)
    wrapped.__signature__ = _signature(dependency)
    wrapped.__wrapped__ = dependency
    wrapped.__name__ = getattr(dependency, "__name__", type(dependency).__name__)
    return cast("_F", wrapped)


def _signature(dependency: Callable[..., Any]) -> inspect.Signature:
    """Return the signature with its annotations looked up where they were written: FastAPI would look here."""
    try:
        return inspect.signature(dependency, eval_str=True)
    except NameError:
        return inspect.signature(dependency)


def _function(dependency: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        user = dependency(*args, **kwargs)
        identify(user)
        return user

    return function


def _coroutine(dependency: Callable[..., Any]) -> Callable[..., Any]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        user = await dependency(*args, **kwargs)
        identify(user)
        return user

    return coroutine


def _generator(dependency: Callable[..., Any]) -> Callable[..., Any]:
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps = dependency(*args, **kwargs)
        user = next(steps)
        identify(user)
        try:
            yield user
        except BaseException as error:
            try:
                steps.throw(error)
            except StopIteration:
                return
            raise
        else:
            next(steps, None)

    return generator


def _async_generator(dependency: Callable[..., Any]) -> Callable[..., Any]:
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with aclosing(dependency(*args, **kwargs)) as steps:
            user = await anext(steps)
            identify(user)
            try:
                yield user
            except GeneratorExit:
                raise
            except BaseException as error:
                try:
                    await steps.athrow(error)
                except StopAsyncIteration:
                    return
                raise
            else:
                await anext(steps, None)

    return generator
