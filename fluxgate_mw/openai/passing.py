"""Requests of the client that are no calls of their own: what is free, or not recorded, or brings another's answer."""

from __future__ import annotations

from typing import Any

from fluxgate_mw.openai import unfinished
from fluxgate_mw.openai.answer import Answer
from fluxgate_mw.openai.calls import PENDING, OpenAICall, read_answer
from fluxgate_mw.openai.follow import follow
from fluxgate_mw.openai.tracking import register
from fluxgate_mw.openai.watch import Watch

__all__ = ["Passing", "Retrieval"]


class Passing:
    """A request of the client that is no call, or none that is recorded: what it sends is accounted for.

    Args:
        client: The client that sends it.
        options: What it sends it with.
    """

    __slots__ = ("client", "options", "response", "retries")

    def __init__(self, client: Any, options: Any) -> None:
        self.client: Any = client
        self.options = options
        self.response: Any = None
        self.retries = 0

    def answered(self, result: object) -> bool:  # noqa: ARG002  (as of `OpenAICall`)
        """See `OpenAICall`. Always True."""
        self.response = self.client = self.options = None
        return True

    def failed(self, error: BaseException) -> None:  # noqa: ARG002  (as of `OpenAICall`)
        """See `OpenAICall`."""
        self.response = self.client = self.options = None


class Retrieval(Passing):
    """A GET that may bring the answer of a background create; until it does, the create is still open."""

    __slots__ = ()

    def answered(self, result: object) -> bool:
        """Take the answer where it is there, else follow it. Always True."""
        response = self.response
        if hasattr(response, "_content"):
            content = response.content
            call = _completed(read_answer(content), content)
            if call is not None:
                register(result, call)
        elif response is not None:
            sse = "event-stream" in response.headers.get("content-type", "")
            follow(response, Watch(self.ended, _nothing, sse=sse, hide_usage=False))
        return super().answered(result)

    def ended(self, answer: Answer, error: BaseException | None, exhausted: bool) -> None:  # noqa: ARG002, FBT001
        """Complete the call that the answer belongs to, if it is complete."""
        _completed(answer)


def _completed(answer: Answer, content: bytes | None = None) -> OpenAICall | None:
    """Complete the call that a complete answer belongs to, and return it; None where there is none that is open."""
    if not answer.ended or answer.state is None or answer.state in PENDING:
        return None
    call = unfinished.release(answer.response_id)
    if not isinstance(call, OpenAICall):
        return None
    call.completed(answer, content)
    return call


def _nothing() -> None:
    """Do nothing at the first chunk."""
