"""One logical call of the client: what is asked, what came back, and how that becomes an `Outcome`.

Works on the arguments and results of the client's one `request` method, for every resource alike. The caller's
arguments are never changed: where usage is asked for on his behalf, that is on a copy.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from fluxgate_mw.ambient import Ambient, get
from fluxgate_mw.event import TokenUsage
from fluxgate_mw.openai.answer import Answer, estimate_tokens, text_bytes
from fluxgate_mw.openai.hosts import OPERATIONS, asks_for_usage
from fluxgate_mw.openai.tracking import register
from fluxgate_mw.openai.watch import Watch, watch
from fluxgate_mw.recorder import Call, Outcome, Recorder, choose, safe_message
from fluxgate_mw.semconv import Status, UsageSource

__all__ = ["OpenAICall", "Origin", "active", "begin"]

active: ContextVar[OpenAICall | None] = ContextVar("fluxgate_openai_call", default=None)
"""The call that is inside the client's `request` now: a nested `request` belongs to it."""

_GIVEN_UP: Final = (CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
_PROMPTS: Final = ("messages", "input", "instructions", "prompt", "tools")
_NO_BODY: Final[Mapping[str, Any]] = {}


class _Ending(msgspec.Struct, frozen=True):
    status: Status
    error_type: str | None = None
    error_message: str | None = None
    http_status: int | None = None
    retries: int = 0


class OpenAICall(Call):
    """A call of the OpenAI client, with what of its request and response is still needed."""

    __slots__ = ("_body", "_http_status", "_retries", "hide_usage", "response")

    def __init__(self, recorder: Recorder, ambient: Ambient, body: Mapping[str, Any], **fields: Any) -> None:
        super().__init__(recorder, ambient, **fields)
        self._body = body
        self._http_status: int | None = None
        self._retries = 0
        self.hide_usage = False
        self.response: Any = None

    def responded(self, response: Any, retries: int) -> None:
        """The last HTTP response of the call is here; the client has not read it into its result yet."""
        self.response, self._retries = response, retries

    def answered(self, result: object) -> bool:
        """The client returned: end the call, or follow the body that is still to be read. Always True."""
        response = self.response or getattr(result, "http_response", result)
        self.response = None
        self._http_status = getattr(response, "status_code", None)
        if self.stream or not hasattr(response, "_content"):
            self._follow(response)
        else:
            answer = _read(response)
            self._finish(answer, _Ending(answer.outcome_status(), answer.error_type, answer.error_message))
        register(result, self)
        return True

    def failed(self, error: BaseException) -> None:
        """The client raised: before an answer came, or over one that it could not make a result of."""
        response, self.response = self.response, None
        ending = _failure(error)
        if self._retries == 0:
            self._retries = ending.retries
        if ending.http_status is not None or not hasattr(response, "_content"):
            self._http_status = ending.http_status
            self._finish(Answer(), ending)
            return
        self._http_status = response.status_code
        answer = _read(response)
        status = answer.outcome_status()
        self._finish(answer, msgspec.structs.replace(ending, status="ERROR" if status == "SUCCESS" else status))

    def ended(self, answer: Answer, error: BaseException | None, exhausted: bool) -> None:  # noqa: FBT001
        """The body was read to its end, given up, or broke off."""
        complete = answer.ended or (exhausted and (bool(answer.finish_reasons) or not self.stream))
        if error is not None and not answer.ended:
            ending = _failure(error)
        elif complete or answer.status is not None or answer.finish_reasons:
            ending = _Ending(answer.outcome_status(), answer.error_type, answer.error_message)
        elif exhausted:
            ending = _Ending("ERROR", "IncompleteStream", "the stream ended before the answer was complete")
        else:
            ending = _Ending("CANCELLED")
        self._finish(answer, ending, estimate=self.stream and not complete)

    def _follow(self, response: Any) -> None:
        if not hasattr(response, "iter_bytes"):
            self._finish(Answer(), _Ending("SUCCESS"))
            return
        content_type = response.headers.get("content-type", "")
        sse = self.stream or "event-stream" in content_type
        if sse or "json" in content_type:
            watch(response, Watch(self.ended, self.first_chunk, sse=sse, hide_usage=self.hide_usage))
        else:
            self._finish(Answer(), _Ending("SUCCESS"))

    def _finish(self, answer: Answer, ending: _Ending, *, estimate: bool = False) -> None:
        usage = answer.usage
        source: UsageSource = "none" if usage is None else "provider"
        if usage is None and estimate:
            prompt_bytes = sum(text_bytes(self._body.get(name)) for name in _PROMPTS)
            usage = TokenUsage(estimate_tokens(prompt_bytes), estimate_tokens(answer.delivered_bytes))
            source = "estimated"
        tier = answer.service_tier or self._body.get("service_tier")
        self._body = _NO_BODY
        self.end(
            Outcome(
                status=ending.status,
                http_status=self._http_status,
                error_type=ending.error_type,
                error_message=ending.error_message,
                response_model=answer.model,
                response_id=answer.response_id,
                finish_reasons=answer.finish_reasons,
                service_tier=tier if isinstance(tier, str) else None,
                retries=self._retries,
                usage=usage,
                usage_source=source,
            )
        )


class Origin(msgspec.Struct, frozen=True):
    """Where calls are said to come from: the explicit tracker's recorder and frame, and the patch's own recorder.

    None leaves it to the ambient context and to the default.
    """

    recorder: Recorder | None = None
    ambient: Ambient | None = None
    fallback: Recorder | None = None


def begin(client: Any, options: Any, stream: bool, origin: Origin) -> tuple[OpenAICall, Any] | None:  # noqa: FBT001
    """Return the call that a `request` starts and the options to send it with; None where it is no call of ours.

    Args:
        client: An `OpenAI` client of any kind.
        options: The `FinalRequestOptions` that it was given; never changed.
        stream: The caller asked for a stream.
        origin: Who asks.
    """
    running = active.get()
    path = options.url.partition("?")[0]
    operation = OPERATIONS.get(path)
    if operation is None or options.method.lower() != "post" or (running is not None and running.tracking is None):
        return None
    ambient = origin.ambient or get()
    chosen = choose(origin.recorder, ambient, origin.fallback)
    if chosen is None:
        return None
    body = options.json_data if isinstance(options.json_data, Mapping) else _NO_BODY
    base_url = client.base_url
    provider = chosen.provider_of(base_url.host, base_url.port)
    model = body.get("model")
    call = OpenAICall(
        chosen,
        ambient,
        body,
        provider=provider,
        operation=operation,
        api_path=path,
        model=model if isinstance(model, str) else None,
    )
    call.stream = stream
    user = body.get("user")
    call.user_parameter = user if isinstance(user, str) else None
    if stream and asks_for_usage(provider, path, getattr(client, "_api_version", None)):
        options = _asking_for_usage(call, options, body)
    return call, options


def _asking_for_usage(call: OpenAICall, options: Any, body: Mapping[str, Any]) -> Any:
    asked = body.get("stream_options")
    if not isinstance(asked, Mapping | None) or (asked and asked.get("include_usage") is not None):
        return options
    copied = options.model_copy() if hasattr(options, "model_copy") else options.copy()
    copied.json_data = {**body, "stream_options": {**(asked or {}), "include_usage": True}}
    call.hide_usage = True
    return copied


def _read(response: Any) -> Answer:
    answer = Answer()
    body = response.content
    if body.lstrip()[:1] == b"{":
        answer.read_whole(body)
    return answer


def _failure(error: BaseException) -> _Ending:
    """Return how a call ended that raised. The client's own messages are kept, cut short; no foreign ones."""
    name = type(error).__name__
    if isinstance(error, _GIVEN_UP):
        return _Ending("CANCELLED", name)
    body = getattr(error, "body", None)
    fields: Mapping[str, Any] = body if isinstance(body, Mapping) else _NO_BODY
    message = fields.get("message") or getattr(error, "message", None)
    request = getattr(error, "request", None)
    retries = request.headers.get("x-stainless-retry-count", "") if request is not None else ""
    return _Ending(
        "BLOCKED" if fields.get("code") == "content_filter" else "ERROR",
        name,
        safe_message(message) if isinstance(message, str) else None,
        getattr(error, "status_code", None),
        int(retries) if retries.isdecimal() else 0,
    )
