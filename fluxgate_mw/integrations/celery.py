"""Celery: the ambient context travels in a task's headers, and is there while the task runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxgate_mw.errors import MissingExtraError
from fluxgate_mw.integrations.jobs import ENVELOPE, Job, envelope
from fluxgate_mw.recorder import guarded

try:
    from celery.signals import before_task_publish, task_postrun, task_prerun
except ModuleNotFoundError as error:
    raise MissingExtraError("celery", needed_for=__name__) from error

__all__ = ["carry_context"]

_UID = "fluxgate"
_running: dict[str, Job] = {}


def carry_context() -> Callable[[], None]:
    """Join the signals of Celery: call it once, at import, where the web application and the workers do.

    A task that is sent inside a request shows that request's user, feature and `request_id`, and its own name as
    `step`. A task that is sent inside a task shows what that one shows.

    Returns:
        The undo.

    Guarantees: idempotent. What a task carried is gone when it ends, whichever way.
    """
    before_task_publish.connect(_sent, dispatch_uid=_UID, weak=False)
    task_prerun.connect(_starts, dispatch_uid=_UID, weak=False)
    task_postrun.connect(_ended, dispatch_uid=_UID, weak=False)
    return _undo


def _undo() -> None:
    before_task_publish.disconnect(_sent, dispatch_uid=_UID)
    task_prerun.disconnect(_starts, dispatch_uid=_UID)
    task_postrun.disconnect(_ended, dispatch_uid=_UID)


def _sent(headers: dict[str, Any] | None = None, **_: object) -> None:
    carried = envelope()
    if headers is not None and carried is not None:
        headers[ENVELOPE] = carried


def _starts(task_id: str, task: Any, **_: object) -> None:
    guarded("jobs", _start, task_id, task)


def _start(task_id: str, task: Any) -> None:
    request = task.request
    sent = request.get(ENVELOPE) or (request.get("headers") or {}).get(ENVELOPE)
    if sent is None and request.is_eager:
        sent = envelope()
    job = _running[task_id] = Job(sent, task.name)
    job.start()


def _ended(task_id: str, **_: object) -> None:
    job = _running.pop(task_id, None)
    if job is not None:
        job.end()
