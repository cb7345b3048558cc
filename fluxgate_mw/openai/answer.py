"""Read what we need from an answer's bytes, whole or as server-sent events, and say how the call ended.

Only a few fields are decoded; texts are passed over, but for the length of what a stream delivered. Whatever the
bytes are, reading them never raises: what cannot be read is left out, and the event says so by what it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from fluxgate_mw.event import TokenUsage
from fluxgate_mw.openai.estimate import placed_texts, text_bytes
from fluxgate_mw.openai.sse import event_data, split_events
from fluxgate_mw.openai.usage import billed_beside, continued, read_usage, reported_cost_nanos, usual_usage
from fluxgate_mw.semconv import Status

__all__ = ["Answer", "status_of"]

_STATUS: Final[Mapping[str, Status]] = {
    "stop": "SUCCESS",
    "eos": "SUCCESS",
    "tool_calls": "SUCCESS",
    "function_call": "SUCCESS",
    "length": "MAX_TOKENS",
    "model_length": "MAX_TOKENS",
    "content_filter": "BLOCKED",
    "max_output_tokens": "MAX_TOKENS",
}
_STOPPED: Final = ("stop",)
_GOES_ON: Final = (None, "", "null")
"""What servers say as the finish reason of a choice that has none yet.

Source: sgl-project/sglang#3912, ollama/ollama#4357; KoboldCpp in PowerShell/AIShell#350 (read 2026-11).
"""
_GRAVITY: Final[tuple[Status, ...]] = ("BLOCKED", "ERROR", "MAX_TOKENS", "SUCCESS")
_TYPED_ENDS: Final = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
_BILLED_PER_CALL: Final = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "shell_call"}
)
"""Source: OpenAI's price list, "Built-in tools": searches by the call, containers by the session."""
_SVG: Final = "the authoring of an SVG"
"""Tokens of a second model, told apart from those of the image. Source: `ImagesResponse.svg_usage` of openai 3.57."""

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Choice(msgspec.Struct):
    finish_reason: Any = None


class _Item(msgspec.Struct):
    type: Any = None
    environment: Any = None

    def is_billed(self) -> bool:
        """Say whether it costs more than its tokens; a shell on the caller's own machine does not."""
        local = isinstance(self.environment, dict) and self.environment.get("type") == "local"
        return isinstance(self.type, str) and self.type in _BILLED_PER_CALL and not local


class _Whole(msgspec.Struct):
    id: Any = None
    model: Any = None
    usage: Any = None
    service_tier: Any = None
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    output: list[_Item] | None = None
    choices: list[_Choice] | None = None
    svg_usage: Any = None


class _Delta(msgspec.Struct):
    index: Any = None
    finish_reason: Any = None
    delta: Any = None
    text: Any = None
    usage: Any = None


class _Event(msgspec.Struct):
    id: Any = None
    type: Any = None
    model: Any = None
    usage: Any = None
    service_tier: Any = None
    error: Any = None
    choices: list[_Delta] | None = None
    delta: Any = None
    response: _Whole | None = None
    message: Any = None
    code: Any = None
    x_groq: Any = None
    item: _Item | None = None
    output_index: Any = None
    content_index: Any = None
    summary_index: Any = None

    def place(self, kind: str) -> str:
        """Return where in a response of the responses API the delta of an event of this kind belongs."""
        indexes = (self.output_index, self.content_index, self.summary_index)
        return ".".join([kind.removesuffix(".delta"), *(str(index) for index in indexes if isinstance(index, int))])

    def usage_inside(self) -> Any:
        """Return the usage that some tell inside of a field of their own, or of a choice.

        Source: Groq's `x_groq` in vercel/ai#1651; Moonshot's `choices[0].usage` in northes/go-moonshot#17 and
        earendil-works/pi#2017 (read 2026-12).
        """
        if isinstance(self.x_groq, dict):
            return self.x_groq.get("usage")
        return next((choice.usage for choice in self.choices or () if isinstance(choice.usage, dict)), None)


_decode_whole = msgspec.json.Decoder(_Whole).decode
_decode_event = msgspec.json.Decoder(_Event).decode


def status_of(finish_reasons: Iterable[str]) -> Status:
    """Return the gravest status among the finish reasons; none at all is a success.

    Source: FluxGate's mapping for OpenAI: `stop`, `tool_calls`, `function_call` succeed, `length` is MAX_TOKENS,
    `content_filter` is BLOCKED, anything else is ERROR. Together says `eos` for `stop` (openai/openai-dotnet#267),
    Mistral `model_length` for the end of the context (`FinishReason` of its OpenAPI document, as in
    https://docs.rs/crate/mistral-openapi-client, read 2026-12).
    """
    if finish_reasons == _STOPPED:
        return "SUCCESS"
    statuses = {_STATUS.get(reason, "ERROR") for reason in finish_reasons}
    return next((status for status in _GRAVITY if status in statuses), "SUCCESS")


class Answer:
    """What is known of one answer so far.

    Attributes:
        ended: The provider said that the answer is complete, cut short or failed; False while it may go on.
        delivered_bytes: UTF-8 bytes of text, tool arguments and reasoning that a stream delivered.
        texts: The pieces of what a stream delivered, by their places, where content is captured; else None.
        cost_nanos: What the provider says that the call cost; None where it does not say.
        error_message: As the provider says it: it may repeat the prompt.
        fee: What of its output is billed beside its tokens, per call or as another model's; None for nothing.
        state: `status` of an answer that has one (`queued`, `completed`, ...); None elsewhere.
    """

    __slots__ = (
        "cost_nanos",
        "delivered_bytes",
        "ended",
        "error_message",
        "error_type",
        "fee",
        "finish_reasons",
        "model",
        "response_id",
        "service_tier",
        "state",
        "status",
        "texts",
        "usage",
    )

    def __init__(self, *, keep_texts: bool = False) -> None:
        self.texts: dict[str, list[str]] | None = {} if keep_texts else None
        self.cost_nanos: int | None = None
        self.state: str | None = None
        self.response_id: str | None = None
        self.model: str | None = None
        self.service_tier: str | None = None
        self.usage: TokenUsage | None = None
        self.finish_reasons: tuple[str, ...] = ()
        self.status: Status | None = None
        self.error_type: str | None = None
        self.error_message: str | None = None
        self.fee: str | None = None
        self.ended = False
        self.delivered_bytes = 0

    def outcome_status(self) -> Status:
        """Return how the call ended, as far as the answer says."""
        return self.status or status_of(self.finish_reasons)

    def delivered_texts(self) -> dict[str, str]:
        """Return what a stream delivered: each text whole, by its place. Nothing where content is not captured."""
        return {place: "".join(pieces) for place, pieces in (self.texts or {}).items()}

    def read_whole(self, body: bytes) -> None:
        """Read a JSON answer."""
        try:
            whole = _decode_whole(body)
        except _UNREADABLE:
            whole = _tolerated(body, _Whole)
        if whole is not None:
            self._take(whole)
            if whole.choices:
                self._finish([choice.finish_reason for choice in whole.choices])
        self.ended = True

    def read_events(self, body: bytes) -> None:
        """Read the body of a stream that is there as a whole."""
        for event in split_events(body + b"\n\n")[0]:
            self.read_event(event)

    def read_event(self, event: bytes, *, torn: bool = False) -> bool:
        """Read one server-sent event; return whether it brings usage and nothing else.

        Args:
            event: With its blank line.
            torn: The body ended in it, before that line: the client passes it over.
        """
        data = event_data(event)
        if data is None:
            return False
        if data.startswith(b"[DONE]"):
            self.ended = self.ended or self.status != "ERROR"
            return False
        decoded = self._decoded(data, torn=torn)
        if decoded is None:
            return False
        if decoded.response is not None or (isinstance(decoded.type, str) and decoded.choices is None):
            self._take_typed(decoded)
            return False
        if decoded.usage is None:
            decoded.usage = decoded.usage_inside()
        self._take(decoded)
        self._take_deltas(decoded.choices or ())
        return decoded.choices == [] and isinstance(decoded.usage, dict)

    def _decoded(self, data: bytes, *, torn: bool) -> _Event | None:
        """Return what can be read of an event's data; None for what the client makes nothing of."""
        try:
            return _decode_event(data if data.isascii() else data.decode())
        except _UNREADABLE:
            decoded: _Event | None = _tolerated(data, _Event)
        if decoded is None and not torn:
            self._refuse(data)
        return decoded

    def _refuse(self, data: bytes) -> None:
        """Take note of an event over which the client raises: one that is no JSON."""
        try:
            json.loads(data.decode())
        except UnicodeDecodeError as error:
            self._fail({"type": type(error).__name__})
        except (ValueError, RecursionError):
            self._fail({"type": "JSONDecodeError"})

    def _take_deltas(self, choices: Iterable[_Delta]) -> None:
        for position, choice in enumerate(choices):
            if choice.finish_reason is not None:
                self._finish((choice.finish_reason,))
            self.delivered_bytes += text_bytes(choice.delta) + text_bytes(choice.text)
            if self.texts is not None:
                place = f"choices.{choice.index if isinstance(choice.index, int) else position}"
                self._keep(self.texts, choice.delta, place)
                self._keep(self.texts, choice.text, f"{place}.text")

    @staticmethod
    def _keep(texts: dict[str, list[str]], delta: Any, place: str) -> None:
        for where, text in placed_texts(delta, place):
            texts.setdefault(where, []).append(text)

    def _take_typed(self, event: _Event) -> None:
        """Take an event of the responses API, or of another API that names its events."""
        kind = event.type if isinstance(event.type, str) else ""
        if event.response is not None:
            self._take(event.response)
            self.ended = self.ended or kind in _TYPED_ENDS
        elif kind == "error":
            self._fail(
                {"message": event.message, "code": event.code, **(event.error if isinstance(event.error, dict) else {})}
            )
        elif isinstance(event.usage, dict) or kind.endswith((".done", ".completed")):
            self._take(event)
            self.ended = self.ended or not kind.startswith("response.")
        if event.item is not None:
            self._charge((event.item,))
        if "audio.delta" not in kind:
            self.delivered_bytes += text_bytes(event.delta)
            if self.texts is not None:
                self._keep(self.texts, event.delta, event.place(kind))

    def _take(self, part: _Whole | _Event) -> None:
        self.response_id = _text(part.id) or self.response_id
        self.model = _text(part.model) or self.model
        self.service_tier = _text(part.service_tier) or self.service_tier
        if isinstance(part.usage, dict):
            self._take_usage(part.usage)
        if part.error:
            self._fail(part.error if isinstance(part.error, dict) else {})
        if isinstance(part, _Whole):
            self._take_status(part)
            self._charge(part.output or ())
            if isinstance(part.svg_usage, dict):
                self.fee = _SVG

    def _take_usage(self, block: Mapping[str, Any]) -> None:
        usual, known = usual_usage(block), self.usage
        read = usual or read_usage(block)
        if read is not None:
            self.usage = read if known is None else continued(known, read)
        if usual is not None:
            return
        self.fee = billed_beside(block) or self.fee
        if "cost" in block or "cost_in_usd_ticks" in block:
            nanos = reported_cost_nanos(block)
            if nanos or known is None or self.usage is not known:
                self.cost_nanos = nanos

    def _charge(self, items: Iterable[_Item]) -> None:
        self.fee = next((item.type for item in items if item.is_billed()), self.fee)

    def _take_status(self, whole: _Whole) -> None:
        self.state = _text(whole.status)
        if whole.status == "incomplete":
            details = whole.incomplete_details
            reason = details.get("reason") if isinstance(details, dict) else None
            self.finish_reasons = ()
            self._finish((reason,))
            self.status = _STATUS.get(str(reason), "ERROR")
        elif whole.status == "failed":
            self.status = "ERROR"
        elif whole.status == "cancelled":
            self.status = "CANCELLED"

    def _fail(self, error: Mapping[str, Any]) -> None:
        self.status = "ERROR"
        self.error_type = _text(error.get("code")) or _text(error.get("type")) or "error"
        self.error_message = _text(error.get("message"))

    def _finish(self, reasons: Iterable[Any]) -> None:
        self.finish_reasons += tuple([str(reason) for reason in reasons if reason not in _GOES_ON])


def _tolerated(body: bytes, kind: type[Any]) -> Any:
    """Return what of an oddly shaped JSON object fits `kind`; None where it is none for the client, who asks `json`."""
    try:
        decoded = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(decoded, dict):
        return None
    kept = {}
    for field in msgspec.structs.fields(kind):
        try:
            kept[field.name] = msgspec.convert(decoded.get(field.name), field.type)
        except msgspec.ValidationError:
            continue
    return kind(**kept)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
