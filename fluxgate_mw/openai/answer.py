"""Read what we need from an answer's bytes, whole or as server-sent events, and say how the call ended.

Only a few fields are decoded; texts are passed over, but for the length of what a stream delivered. Whatever the
bytes are, reading them never raises: what cannot be read is left out, and the event says so by what it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from fluxgate_mw.event import TokenUsage
from fluxgate_mw.openai.usage import read_usage
from fluxgate_mw.recorder import safe_message
from fluxgate_mw.semconv import Status

__all__ = ["Answer", "estimate_tokens", "split_events", "status_of", "text_bytes"]

_STATUS: Final[Mapping[str, Status]] = {
    "stop": "SUCCESS",
    "tool_calls": "SUCCESS",
    "function_call": "SUCCESS",
    "length": "MAX_TOKENS",
    "content_filter": "BLOCKED",
    "max_output_tokens": "MAX_TOKENS",
}
_GRAVITY: Final[tuple[Status, ...]] = ("BLOCKED", "ERROR", "MAX_TOKENS", "SUCCESS")
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
UTF8_BYTES_PER_TOKEN: Final = 4


class _Choice(msgspec.Struct):
    finish_reason: Any = None


class _Whole(msgspec.Struct):
    id: Any = None
    model: Any = None
    usage: Any = None
    service_tier: Any = None
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    choices: list[_Choice] | None = None


class _Delta(msgspec.Struct):
    finish_reason: Any = None
    delta: Any = None
    text: Any = None


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


_decode_whole = msgspec.json.Decoder(_Whole).decode
_decode_event = msgspec.json.Decoder(_Event).decode


def status_of(finish_reasons: Iterable[str]) -> Status:
    """Return the gravest status among the finish reasons; none at all is a success.

    Source: FluxGate's mapping for OpenAI: `stop`, `tool_calls`, `function_call` succeed, `length` is MAX_TOKENS,
    `content_filter` is BLOCKED, anything else is ERROR.
    """
    statuses = {_STATUS.get(reason, "ERROR") for reason in finish_reasons}
    return next((status for status in _GRAVITY if status in statuses), "SUCCESS")


def estimate_tokens(utf8_bytes: int) -> int:
    """Return about how many tokens a text of that many UTF-8 bytes has: a quarter, rounded up."""
    return -(-utf8_bytes // UTF8_BYTES_PER_TOKEN)


class Answer:
    """What is known of one answer so far.

    Attributes:
        ended: The provider said that the answer is complete, cut short or failed; False while it may go on.
        delivered_bytes: UTF-8 bytes of text, tool arguments and reasoning that a stream delivered.
    """

    __slots__ = (
        "delivered_bytes",
        "ended",
        "error_message",
        "error_type",
        "finish_reasons",
        "model",
        "response_id",
        "service_tier",
        "status",
        "usage",
    )

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.service_tier: str | None = None
        self.usage: TokenUsage | None = None
        self.finish_reasons: tuple[str, ...] = ()
        self.status: Status | None = None
        self.error_type: str | None = None
        self.error_message: str | None = None
        self.ended = False
        self.delivered_bytes = 0

    def outcome_status(self) -> Status:
        """Return how the call ended, as far as the answer says."""
        return self.status or status_of(self.finish_reasons)

    def read_whole(self, body: bytes) -> None:
        """Read a JSON answer."""
        try:
            whole = _decode_whole(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            whole = _tolerated(body, _Whole)
        if whole is not None:
            self._take(whole)
            self._finish(choice.finish_reason for choice in whole.choices or ())
        self.ended = True

    def read_event(self, event: bytes) -> bool:
        """Read one server-sent event, without its blank line; return whether it brings usage and nothing else."""
        data = _data(event)
        if data is None:
            return False
        if data == b"[DONE]":
            self.ended = True
            return False
        try:
            decoded: _Event | None = _decode_event(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            decoded = _tolerated(data, _Event)
        if decoded is None:
            return False
        if decoded.response is not None or isinstance(decoded.type, str):
            self._take_typed(decoded)
            return False
        self._take(decoded)
        self._take_deltas(decoded.choices or ())
        return decoded.choices == [] and isinstance(decoded.usage, dict)

    def _take_deltas(self, choices: Iterable[_Delta]) -> None:
        for choice in choices:
            if choice.finish_reason is not None:
                self._finish((choice.finish_reason,))
            self.delivered_bytes += text_bytes(choice.delta) + text_bytes(choice.text)

    def _take_typed(self, event: _Event) -> None:
        """Take an event of the responses API, or of another API that names its events."""
        kind = event.type if isinstance(event.type, str) else ""
        if event.response is not None:
            self._take(event.response)
            self.ended = self.ended or kind in ("response.completed", "response.incomplete", "response.failed")
        elif kind == "error":
            self._fail({"message": event.message, **(event.error if isinstance(event.error, dict) else {})})
        elif isinstance(event.usage, dict) or kind.endswith((".done", ".completed")):
            self._take(event)
            self.ended = self.ended or not kind.startswith("response.")
        if "audio.delta" not in kind:
            self.delivered_bytes += text_bytes(event.delta)

    def _take(self, part: _Whole | _Event) -> None:
        self.response_id = _text(part.id) or self.response_id
        self.model = _text(part.model) or self.model
        self.service_tier = _text(part.service_tier) or self.service_tier
        if isinstance(part.usage, dict):
            self.usage = read_usage(part.usage)
        if isinstance(part.error, dict):
            self._fail(part.error)
        if isinstance(part, _Whole):
            self._take_status(part)

    def _take_status(self, whole: _Whole) -> None:
        if whole.status == "incomplete":
            details = whole.incomplete_details
            reason = details.get("reason") if isinstance(details, dict) else None
            self.finish_reasons = (str(reason),)
            self.status = _STATUS.get(str(reason), "ERROR")
        elif whole.status == "failed":
            self.status = "ERROR"
        elif whole.status == "cancelled":
            self.status = "CANCELLED"

    def _fail(self, error: Mapping[str, Any]) -> None:
        self.status = "ERROR"
        self.error_type = _text(error.get("code")) or _text(error.get("type")) or "error"
        message = _text(error.get("message"))
        self.error_message = None if message is None else safe_message(message)

    def _finish(self, reasons: Iterable[Any]) -> None:
        self.finish_reasons += tuple(str(reason) for reason in reasons if reason is not None)


def _data(event: bytes) -> bytes | None:
    """Return the data of a server-sent event; None where it has none. Source: WHATWG HTML, section 9.2.6."""
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def split_events(buffered: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole events at the start of `buffered`, each with its blank line, and the rest."""
    if b"\r" not in buffered:
        pieces = buffered.split(b"\n\n")
        rest = pieces.pop()
        return [piece + b"\n\n" for piece in pieces], rest
    events, start = [], 0
    for match in _EVENT_END.finditer(buffered):
        events.append(buffered[start : match.end()])
        start = match.end()
    return events, buffered[start:]


def _tolerated(body: bytes, kind: type[Any]) -> Any:
    """Return what of an oddly shaped JSON object fits `kind`; None where it is no JSON object."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
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


def text_bytes(value: Any) -> int:
    """Return the UTF-8 bytes of the texts in a prompt or a delta: content, refusal, reasoning, tools; not images."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(text_bytes(part) for key, part in value.items() if key not in _NO_TEXT)
    if isinstance(value, list):
        return sum(map(text_bytes, value))
    return 0


_NO_TEXT: Final = frozenset({"role", "id", "type", "index", "audio", "input_audio", "image_url", "file", "file_data"})
