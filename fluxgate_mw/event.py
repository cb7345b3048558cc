"""The values that travel: one usage event per call, its user, its token counts, and what the caller is told.

Everything here is frozen and knows nothing of where it came from or where it goes. The wire format is msgpack of a
map with default fields left out, so old readers skip new fields and new readers fill in what old writers lacked.
"""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final

import msgspec

from fluxgate_mw.errors import EventDecodeError
from fluxgate_mw.semconv import FeatureSource, Status, UsageSource, UserSource

__all__ = [
    "MONEY",
    "NANOS_PER_USD",
    "TokenUsage",
    "Tracking",
    "UsageEvent",
    "User",
    "decode_event",
    "encode_event",
    "new_event_id",
    "spelled_out",
    "usd",
]

NANOS_PER_USD = 1_000_000_000
MONEY: Final = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[])
"""How we reckon with `Decimal`: the application's own context may keep but a few digits, or raise over lost ones."""
_RANDOM_BITS: Final = 0x0FFF_3FFF_FFFF_FFFF_FFFF
_VERSION_7: Final = 0x7000_8000_0000_0000_0000
_random: Final = random.Random()  # noqa: S311  (ids, not secrets)


class User(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who a call is billed to: the signed-in user of the host application.

    Args:
        id: The application's own key for the user; opaque to us.
        email: Shown beside the name on the dashboard; None when not known.
        name: Shown on the dashboard; None when not known.
        image: Address of a picture; None when not known.
        monthly_revenue: What the user pays a month, in USD; None when not known.
    """

    id: str
    email: str | None = None
    name: str | None = None
    image: str | None = None
    monthly_revenue: float | None = None


class TokenUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The token counts of one call, as reported. None means not reported; 0 means reported as zero.

    Totals include their subsets: cached, audio and image tokens are inside `input_tokens` or `output_tokens`, and
    reasoning is inside `output_tokens`. Nothing may ever be added on top of a total.

    `audio_seconds` is how long the audio was, of a call that is billed by that; `input_audio_seconds` the same of one
    whose input counts the audio's tokens, too. They price the call, and are no fields of the event.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_output_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    cache_read_input_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    audio_seconds: float | None = None
    input_audio_seconds: float | None = None


def new_event_id(at_s: float | None = None) -> str:
    """Return a new UUIDv7 in its text form: 48 bits of Unix milliseconds, then 74 random bits.

    Args:
        at_s: The Unix seconds that it tells; None = now.

    The bits come from a generator of our own, seeded by the operating system, in a forked child again, and not by
    what the application seeds: an id is unique, not a secret. The process's number is mixed in, for uWSGI forks without
    Python's hooks: two workers with one generator's state still make no id twice.

    Concurrency: any thread, a signal handler, before and after fork.

    Source: RFC 9562 section 5.7.
    """
    milliseconds = int((time.time() if at_s is None else at_s) * 1000) & 0xFFFF_FFFF_FFFF
    bits = _random.getrandbits(80) ^ os.getpid()
    text = f"{milliseconds << 80 | bits & _RANDOM_BITS | _VERSION_7:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


os.register_at_fork(after_in_child=_random.seed)


def _now() -> datetime:
    return datetime.now(UTC)


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One logical call to a model provider: who made it, for which feature, how it ended and what it cost.

    Token counts are reported totals that include their subsets (see `TokenUsage`), None where unknown. Durations are
    milliseconds of a monotonic clock. `cost_nanos` is an integer of nano-USD (1 USD = 10^9), None where the price or
    the usage is unknown, never 0 for unknown. `feature` and `route` are of low cardinality: a name or a route
    template with its method, never a raw path. `unpriced_reason` says why there is no cost. Prompts and answers
    (`input_content`, `output_content`) are kept only where `capture_content` is on: JSON, or the text that a stream
    delivered; where it delivered several, a JSON object of each by its place (`choices.0.content`).

    Example:
        >>> event = UsageEvent(provider_name="anthropic", request_model="claude-x", input_tokens=12)
        >>> event.input_tokens, event.output_tokens, event.status
        (12, None, 'SUCCESS')
    """

    event_id: str = msgspec.field(default_factory=new_event_id)
    occurred_at: datetime = msgspec.field(default_factory=_now)

    provider_name: str | None = None
    operation_name: str = "other"
    request_model: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    api_path: str | None = None

    feature: str | None = None
    feature_source: FeatureSource = "none"
    step: str | None = None
    user: User | None = None
    user_source: UserSource = "none"
    session_id: str | None = None
    conversation_id: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    route: str | None = None
    http_method: str | None = None
    request_id: str | None = None
    service: str | None = None
    environment: str | None = None

    status: Status = "SUCCESS"
    http_status: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    latency_ms: float | None = None
    time_to_first_chunk_ms: float | None = None
    stream: bool = False
    retries: int = 0

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_output_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    cache_read_input_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    usage_source: UsageSource = "none"
    service_tier: str | None = None

    cost_nanos: int | None = None
    price_version: str | None = None
    unpriced_reason: str | None = None
    input_content: str | None = None
    output_content: str | None = None

    @property
    def model(self) -> str | None:
        """The model that answered, else the one that was asked for; None when neither is known."""
        return self.response_model or self.request_model

    @property
    def cost(self) -> Decimal | None:
        """The cost in USD, exact to the nano-dollar; None when unknown."""
        return usd(self.cost_nanos)


class Tracking(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller may know of a tracked call: how it ended, what it cost, and the id of its event.

    `cost` is in USD and `cost_nanos` in nano-USD; both None when unknown. `created_at` is aware UTC.
    """

    status: Status
    cost: Decimal | None
    cost_nanos: int | None
    tracking_id: str
    created_at: datetime
    error_message: str | None = None


def usd(nanos: int | None) -> Decimal | None:
    """Return nano-USD as exact `Decimal` USD; None stays None.

    >>> usd(1_500_000)
    Decimal('0.001500000')
    """
    return None if nanos is None else Decimal(nanos).scaleb(-9, MONEY)


def spelled_out(text: str) -> str:
    r"""Return a text with its pairs of surrogates as characters and half ones replaced, for UTF-8 has neither.

    >>> spelled_out("\ud83d\ude00"), spelled_out("cut \ud83d")
    ('😀', 'cut �')
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


_ENCODER = msgspec.msgpack.Encoder(enc_hook=repr)
_DECODER = msgspec.msgpack.Decoder(UsageEvent)


def encode_event(event: UsageEvent) -> bytes:
    """Return the event's wire form. A metadata value of a foreign type is written as its `repr`.

    Raises:
        Exception: Whatever a metadata value's own `__repr__` raises, or msgspec's error for a value that has no
            wire form at all (a mapping with keys of mixed kinds, an integer past 64 bits).

    Concurrency: any thread.
    """
    return _ENCODER.encode(event)


def decode_event(data: bytes) -> UsageEvent:
    """Return the event that `encode_event` wrote.

    Raises:
        EventDecodeError: The bytes are not an event of a version that this one can read.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventDecodeError(str(error)) from error
