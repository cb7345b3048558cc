"""arq: the ambient context travels among a job's arguments, which arq has no headers for.

The web application enqueues through `enqueue_job` of this module; each function of the worker is wrapped in `carried`.
A worker whose function is not wrapped would be handed an argument that it does not know, so wrap the workers first.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fluxgate_mw.integrations.jobs import ENVELOPE, Job, envelope

if TYPE_CHECKING:
    from arq import ArqRedis
    from arq.jobs import Job as ArqJob

__all__ = ["carried", "enqueue_job"]

_F = TypeVar("_F", bound=Callable[..., Awaitable[Any]])


async def enqueue_job(pool: ArqRedis, function: str, *args: Any, **kwargs: Any) -> ArqJob | None:
    """Enqueue a job that shows the user, feature and `request_id` of where it was enqueued.

    Args:
        pool: What `arq.create_pool` gave.
        function: As of `ArqRedis.enqueue_job`; so are the rest.
        args: Of the job.
        kwargs: Of the job, and arq's own (`_defer_by`, ...).
    """
    sent = envelope()
    if sent is not None:
        kwargs[ENVELOPE] = sent
    return await pool.enqueue_job(function, *args, **kwargs)


def carried(function: _F) -> _F:
    """Return a worker's function that runs in the context which its job brought, with its own name as `step`.

    Example:
        >>> class WorkerSettings:
        ...     functions = [carried(summarize)]  # doctest: +SKIP
    """

    @functools.wraps(function)
    async def wrapper(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        with Job(kwargs.pop(ENVELOPE, None), function.__name__):
            return await function(ctx, *args, **kwargs)

    return cast("_F", wrapper)
