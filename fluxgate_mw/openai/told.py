"""What a running call is told while its client works: its HTTP response, and that its answer is another call's.

A client may hand a request on to another one, send it from another thread, or give an answer again that it has kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fluxgate_mw.openai.calls import OpenAICall
from fluxgate_mw.openai.passing import Passing
from fluxgate_mw.openai.tracking import call_of, register

__all__ = ["OURS", "is_told", "note_response"]

OURS: Final = (OpenAICall, Passing)
"""What a request of the client is followed by."""


def is_told(call: OpenAICall | Passing, result: object) -> bool:
    """Say whether the call has ended where it was sent, or its client sent nothing and another call stands for it.

    That is another client's, or one that was sent from another thread, or whose answer was kept and is given again.
    """
    if not isinstance(call, OpenAICall):
        return False
    known = call_of(result)
    teller = known or call
    if call.client is not None:
        sends = not call.outside and (call.request is not None or call.response is not None)
        if sends or (call.inner or known) is None:
            return False
        teller = call.inner or teller
        call.leave()
    if known is None:
        register(result, teller)
    return True


def note_response(call: object, arguments: Mapping[str, Any]) -> None:
    """Tell the call in hand of the response that the client's `_process_response` was given. Never raises."""
    if isinstance(call, OURS) and "response" in arguments:
        call.response, call.retries = arguments["response"], arguments.get("retries_taken", 0)
