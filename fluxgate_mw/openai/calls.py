"""One logical call of the client: what is asked, what came back, and how that becomes an `Outcome`.

Works on what the client's one `request` method returns or raises, for every resource alike; what it is given is read
in `request`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fluxgate_mw import diagnostics, pricing
from fluxgate_mw.call import Call
from fluxgate_mw.event import TokenUsage, UsageEvent
from fluxgate_mw.openai import unfinished
from fluxgate_mw.openai.answer import Answer
from fluxgate_mw.openai.content import asked_content, delivered_content, whole_content
from fluxgate_mw.openai.estimate import Prompt, estimate_tokens, prompt_of, tokens_in
from fluxgate_mw.openai.failure import REFUSED, Ending, failure, kept_message, raised
from fluxgate_mw.openai.follow import follow
from fluxgate_mw.openai.tracking import register
from fluxgate_mw.openai.usage import usd_to_nanos
from fluxgate_mw.openai.watch import Watch
from fluxgate_mw.recorder import Outcome, guarded

__all__ = ["PENDING", "OpenAICall", "read_answer"]

_COUNTS_BOTH: Final = frozenset({"chat", "text_completion", "compaction", "decision", "image_generation"})
_COUNTED_LATER: Final = {
    "batch": "a batch's usage comes with its results",
    "fine_tuning": "a fine-tuning job's usage comes when it is done",
}
"""What is only begun: the usage of its creation, all zeros, is that of nothing yet."""
PENDING: Final = frozenset({"queued", "in_progress"})
"""`status` of a response that goes on in the background."""
_BINARY: Final = ("audio/", "image/", "video/", "application/octet-stream")
_COST_HEADER: Final = "x-litellm-response-cost"
"""Source: https://docs.litellm.ai/docs/proxy/response_headers (read 2026-11); USD."""
_FEES: Final = frozenset({"tools", "web_search_options"})
"""Arguments that may ask for what is billed beside the tokens."""
_CONTAINERS: Final = ("container", "environment")
"""Where a tool of the responses API asks for a container of its own: `code_interpreter`, `shell`."""
_SEARCHES: Final = ("-search-preview", "-search-api")
_OPENAI_PROVIDERS: Final = ("openai", "azure")
_OPENAI_HOST: Final = "api.openai.com"
_USUAL_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_SAID_FIRST: Final = 1024
"""Bytes at the start of a whole answer in which it says that it is an error, where it is one: a response that failed
does so after its id and status."""
_ERROR: Final = b'"error"'
_NO_BODY: Final[Mapping[str, Any]] = {}


class OpenAICall(Call, eq=False):
    """A call of the OpenAI client, with what of its request and response is still needed.

    Args:
        client: The client that makes it, until it has its answer.
        body: What is sent.
        options: What to send it with; the caller's own unless we ask for usage on his behalf.
        hide_usage: We do.
        request: The last HTTP request that was sent for it, until it has ended or waits for its answer.
        response: The last HTTP response, until it is read or followed.
        retries: How often the client sent it again.
        base_url: The client's, or the whole address that it was given.
        azure: It is a client of Azure.
        tracked: An explicit tracker made it, not the patch.
        outside: It was begun where a subclass's own `request` is still to come, which may ask whomever it likes.
        sent_in: What marks the context that sends it, once it does, where it was begun outside.
        inner: The last call of another client to the same path that was made inside of it.
    """

    client: Any = None
    body: Mapping[str, Any] = _NO_BODY
    options: Any = None
    hide_usage: bool = False
    request: Any = None
    response: Any = None
    retries: int = 0
    base_url: Any = None
    azure: bool = False
    tracked: bool = False
    outside: bool = False
    sent_in: object = None
    inner: OpenAICall | None = None
    _http_status: int | None = None
    _said_cost: str | None = None
    _regional: bool = False
    _asked_tier: Any = None
    _fee: str | None = None
    _asked: bytes | None = None
    _content: bytes | None = None
    _answer: Answer | None = None
    _ending: Ending | None = None
    _prompt: Prompt | None = None

    def capture(self) -> None:
        """Keep what is asked, as it is now: the caller may change it later."""
        self._asked = asked_content(self.body)
        self.size_bytes += len(self._asked or b"")

    def answered(self, result: object) -> bool:
        """The client returned: end the call, or follow the body that is still to be read. Always True."""
        response = self.response or getattr(result, "http_response", getattr(result, "response", result))
        self.response = self.client = None
        content = self._heard(response)
        if response is result and hasattr(result, "model_dump_json"):
            content = result.model_dump_json(warnings=False).encode()
        if self.stream or content is None:
            self._follow(response)
        elif self.body.get("background") is True or _says_error(content):
            answer = read_answer(content)
            self._content = content
            self._finish(answer, self._told(answer))
        else:
            self._content = content
            self.size_bytes += len(content)
            self._let_go()
            self.end()
        register(result, self)
        return True

    def failed(self, error: BaseException) -> None:
        """The client raised, before an answer came or over one, or we were interrupted: end it, if it has not ended."""
        known = None
        try:
            known = self._claimed or guarded("openai", self._failed, error)
        finally:
            if not known:
                self._end_anyway(Answer(), error)

    def _failed(self, error: BaseException) -> bool:
        response, self.response, self.client = self.response, None, None
        ending = failure(error, self.body, self.request)
        self.retries = self.retries or ending.retries
        content = None if (ending.http_status or 0) >= REFUSED else self._heard(response)
        if content is None:
            self._http_status = ending.http_status
            self._finish(Answer(), ending)
            return True
        answer = read_answer(content)
        status = answer.outcome_status()
        if ending.status == "ERROR" and status != "SUCCESS":
            ending = msgspec.structs.replace(ending, status=status)
        self._content = content
        self._finish(answer, ending)
        return True

    def ended(self, answer: Answer, error: BaseException | None, exhausted: bool) -> None:  # noqa: FBT001
        """The body was read to its end, given up, or broke off."""
        try:
            known = guarded("openai_stream", self._ended, answer, error, exhausted)
        except BaseException as interrupt:
            self._end_anyway(answer, interrupt)
            raise
        if known is None:
            self._end_anyway(answer, error)

    def _ended(self, answer: Answer, error: BaseException | None, exhausted: bool) -> bool:  # noqa: FBT001
        if self.stream and not answer.ended and self._waits(answer):
            return True
        complete = answer.ended or (exhausted and (bool(answer.finish_reasons) or not self.stream))
        if error is not None and not answer.ended:
            ending = failure(error, self.body, self.request)
        elif complete or answer.status is not None or answer.finish_reasons:
            ending = self._told(answer)
        elif exhausted:
            ending = Ending("ERROR", "IncompleteStream", "the stream ended before the answer was complete")
        else:
            ending = Ending("CANCELLED")
        self._finish(answer, ending, estimate=self.stream and not complete)
        return True

    def leave(self) -> None:
        """Be no call: let go of the client and of what it was asked."""
        self.client = self.request = self.options = self.inner = None
        self.body = _NO_BODY

    def completed(self, answer: Answer, content: bytes | None) -> None:
        """The answer of a background create was retrieved, as a whole or (None) as a stream."""
        self._content = content
        self.size_bytes += len(content or b"")
        self._finish(answer, self._told(answer))

    def give_up(self, response_id: str) -> None:
        """The answer of a background create will not be seen here; its id is known."""
        diagnostics.note("not_covered_background", "a background response was never retrieved; its usage is not known")
        answer = Answer()
        answer.response_id = response_id
        self._finish(answer, Ending("SUCCESS"))

    def outcome(self) -> Outcome:
        """Read the answer, where that is still to be done, and return how the call ended.

        What was asked is forgotten by now: an answer that only turns out here to be an error's has no message.
        """
        content, answer = self._content, self._answer
        if answer is None:
            answer = Answer() if content is None else read_answer(content)
        ending = self._ending or Ending(answer.outcome_status(), answer.error_type)
        self.provider_name()
        reported = self._reported(answer.usage)
        usage = reported or self._estimated(answer)
        tier = answer.service_tier or self._asked_tier
        nanos = answer.cost_nanos
        if nanos is None:
            nanos = usd_to_nanos(self._said_cost)
        return Outcome(
            status=ending.status,
            http_status=self._http_status,
            error_type=ending.error_type,
            error_message=ending.error_message,
            response_model=answer.model,
            response_id=answer.response_id,
            finish_reasons=answer.finish_reasons,
            service_tier=tier if isinstance(tier, str) else None,
            retries=self.retries,
            usage=usage,
            usage_source="provider" if reported else "estimated" if usage else "none",
            unpriced_reason=self._unpriced_reason(usage, reported),
            fee=self._charged(answer),
            regional=self._regional,
            reported_nanos=nanos,
            asked=self._asked,
            answered=self._answered_content(content, answer),
        )

    def is_made_quickly(self) -> bool:
        """See `Call`. So it is where a stream told its usage, nothing is to be redacted, and the price is at hand."""
        answer = self._answer
        if answer is None or answer.usage is None or self._asked is not None or answer.texts is not None:
            return False
        return self.stream and self.recorder.price_file is None and pricing.is_at_hand(self.provider, answer.model)

    def provider_name(self) -> str:
        """Return the provider by host; an Azure client that talks to a host that is not known talks to Azure."""
        if self.provider is None:
            host = self.base_url.host
            port = self.base_url.port or _USUAL_PORTS.get(self.base_url.scheme)
            provider = self.recorder.provider_of(host, port)
            self.provider = "azure" if self.azure and provider == host else provider
        return self.provider

    def made(self) -> UsageEvent:
        """Return the call's event and forget what it was made from."""
        event = super().made()
        self._content = self._answer = self._asked = self._prompt = None
        return event

    def _heard(self, response: Any) -> bytes | None:
        """Take of a response what is still needed once it is gone; return its body, where that has been read."""
        self._http_status = getattr(response, "status_code", None)
        host = self.base_url.host
        if host != _OPENAI_HOST:
            self._regional = pricing.is_regional(host)
            self._said_cost = getattr(response, "headers", _NO_BODY).get(_COST_HEADER)
        content: bytes | None = getattr(response, "_content", None)
        return content

    def _follow(self, response: Any) -> None:
        if not hasattr(response, "iter_bytes") and not self.stream:
            self._finish(Answer(), Ending("SUCCESS"))
            return
        content_type = response.headers.get("content-type", "")
        following = Watch(
            self.ended,
            self.first_chunk,
            sse=self.stream or "event-stream" in content_type,
            hide_usage=self.hide_usage,
            keep_texts=self.recorder.settings.capture_content,
            blind=not self.stream and content_type.startswith(_BINARY),
        )
        follow(response, following)

    def _waits(self, answer: Answer) -> bool:
        """Say whether the answer goes on in the background; the call then stays open until it is retrieved."""
        if answer.response_id is None or self.body.get("background") is not True:
            return False
        if answer.state not in PENDING:
            return False
        self.ambient, self.request = self.ambient.attributed(), None
        unfinished.hold(answer.response_id, self)
        return True

    def _estimated(self, answer: Answer) -> TokenUsage | None:
        """Return about what was asked and delivered, where the answer broke off before anybody reported it."""
        prompt = self._prompt
        if prompt is None:
            return None
        model = answer.model or self.model
        if answer.texts is None:
            delivered = estimate_tokens(answer.delivered_bytes)
        else:
            delivered = tokens_in([*answer.delivered_texts().values()], model)
        return TokenUsage(prompt.tokens(model), delivered)

    def _reported(self, usage: TokenUsage | None) -> TokenUsage | None:
        """Return what the call is known to have used, by the answer's usage.

        Where the images API does not say what of its output is text, all of it are image tokens.

        Source: `usage.output_tokens` in the API reference of image streaming events, "the number of image tokens in
        the output image" (https://platform.openai.com/docs/api-reference/images-streaming, read 2026-11).
        """
        if usage is None or self.operation in _COUNTED_LATER:
            return None
        if self.operation == "image_generation" and usage.output_image_tokens is None:
            return msgspec.structs.replace(usage, output_image_tokens=usage.output_tokens)
        return usage

    def _unpriced_reason(self, usage: TokenUsage | None, reported: TokenUsage | None) -> str | None:
        if self.operation in _COUNTED_LATER:
            return _COUNTED_LATER[self.operation]
        if usage is not None and reported is None and usage.input_tokens is None:
            return "how long the prompt was is not known"
        partial = reported is not None and None in (reported.input_tokens, reported.output_tokens)
        return "the usage is incomplete" if partial and self.operation in _COUNTS_BOTH else None

    def _charged(self, answer: Answer) -> str | None:
        """Return what is billed beside the tokens."""
        if self.provider in _OPENAI_PROVIDERS and any(kind in (answer.model or "") for kind in _SEARCHES):
            return "web search"
        return answer.fee or self._fee

    def _answered_content(self, content: bytes | None, answer: Answer) -> Any:
        if not self.recorder.settings.capture_content:
            return None
        if answer.texts is not None:
            return delivered_content(answer.delivered_texts())
        return None if content is None else whole_content(content)

    def _finish(self, answer: Answer, ending: Ending, *, estimate: bool = False) -> None:
        if answer.state in PENDING and ending.error_type is None and self._waits(answer):
            return
        self._answer, self._ending = answer, ending
        if estimate and answer.usage is None:
            self._prompt = prompt_of(self.body)
            self.size_bytes += sum(map(len, self._prompt.texts))
        self._let_go()
        self.end()

    def _told(self, answer: Answer) -> Ending:
        """Return how the call ended, as the answer tells it."""
        return Ending(
            answer.outcome_status(), answer.error_type, kept_message(answer.error_message, self.body, self.request)
        )

    def _end_anyway(self, answer: Answer, error: BaseException | None) -> None:
        """End where a bug of ours or an interrupt kept it from that: by the error's class, or as the answer tells."""
        if not self._claimed:
            self._answer, self._ending = answer, None if error is None else raised(error)
        self.client = self.request = self.response = self.options = None
        self.body = _NO_BODY
        self.end()

    def _let_go(self) -> None:
        """Take of what was sent what is still needed; the rest is the caller's, who may change it now."""
        body, self.body, self.options, self.request, self.inner = self.body, _NO_BODY, None, None, None
        self._asked_tier = body.get("service_tier")
        if not _FEES.isdisjoint(body):
            self._fee = _fee_of(body)


def _says_error(content: bytes) -> bool:
    """Say whether a whole answer seems to be an error: at its start it has one that is not null."""
    at = content.find(_ERROR, 0, _SAID_FIRST)
    return at >= 0 and not content[at + len(_ERROR) : _SAID_FIRST].lstrip(b" \t\r\n:").startswith(b"null")


def _fee_of(body: Mapping[str, Any]) -> str | None:
    """Return what is billed beside the tokens for being asked for: a search, or a container, whether used or not."""
    if body.get("web_search_options") is not None:
        return "web search"
    tools = body.get("tools")
    if isinstance(tools, list | tuple):
        for tool in tools:
            if isinstance(tool, Mapping) and any(map(_is_made, map(tool.get, _CONTAINERS))):
                return f"{tool.get('type')} in a container"
    return None


def _is_made(place: object) -> bool:
    """Say whether a tool's place is a container that is made for this request; one that is there has a name."""
    return isinstance(place, Mapping) and place.get("type") in ("auto", "container_auto")


def read_answer(body: bytes) -> Answer:
    """Read an answer that is there as a whole; empty lines may come before it.

    Source: https://api-docs.deepseek.com/quick_start/rate_limit (read 2026-11).
    """
    answer = Answer()
    start = body.lstrip()
    if start[:1] == b"{":
        answer.read_whole(body)
    elif start.startswith((b"data:", b"event:", b"id:", b":")):
        answer.read_events(body)
    return answer
