"""What one response in flight has brought so far, chunk by chunk, and what of it the caller gets.

Knows nothing of how the bytes come; see `follow`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from fluxgate_mw import diagnostics
from fluxgate_mw.openai.answer import Answer
from fluxgate_mw.openai.plain import Glance, alike, plain_event
from fluxgate_mw.openai.sse import blank_lines_before, is_comment, split_events, without_null_usage
from fluxgate_mw.recorder import guarded

__all__ = ["Watch"]

MOST_HELD_BYTES: Final = 8 * 1024 * 1024
"""An event or a JSON answer larger than this passes unread; its call ends with what is known."""

MOST_LEARNED: Final = 64
"""How often it is worth learning what plain events look like, in a stream where each looks different."""

_T = TypeVar("_T")

_KINDS: Final = 4
"""How many kinds of plain events may take turns: those of the choices, where several were asked for."""

End = Callable[[Answer, "BaseException | None", bool], None]


def _nobody(_answer: Answer, _error: BaseException | None, _exhausted: bool) -> None:  # noqa: FBT001
    """Be told of no end."""


def _unknown(_chunk: bytes) -> None:
    """Know no chunk at a glance."""


class Watch:
    """What one response in flight has brought so far.

    Args:
        end: Called once, with the answer, the error that broke it (or None), and whether it was read to its end.
        first: Called at the first chunk that is more than a comment.
        sse: The body is server-sent events; else JSON.
        hide_usage: We asked for usage on the caller's behalf: keep what that adds from him.
        keep_texts: Keep the texts that a stream delivers.
        blind: Of the body nothing is to be read but when it began and ended.

    Attributes:
        glance: What tells a plain event at once; see `plain`.
        answer: What has been read so far.
        seen: A chunk has come.
        done: Nothing more of it is read.
        closed_elsewhere: It was closed while a chunk was being waited for, and not by who waits.

    Concurrency: one reader at a time, as for the response itself.
    """

    __slots__ = (
        "_blind",
        "_body",
        "_end",
        "_first",
        "_glances",
        "_held",
        "_hide_usage",
        "_last",
        "_learned",
        "_readers",
        "_sse",
        "answer",
        "closed_elsewhere",
        "done",
        "glance",
        "seen",
    )

    def __init__(
        self,
        end: End,
        first: Callable[[], None],
        *,
        sse: bool,
        hide_usage: bool,
        keep_texts: bool = False,
        blind: bool = False,
    ) -> None:
        self._end = end
        self._first: Callable[[], None] | None = first
        self._sse = sse
        self._hide_usage = hide_usage
        self._held = bytearray()
        self._body = bytearray()
        self._blind = blind
        self._readers: list[weakref.ref[Any]] = []
        self._glances: deque[Glance] = deque(maxlen=_KINDS)
        self._learned = 0
        self._last: Glance = _unknown
        self.glance: Glance = _unknown
        self.answer = Answer(keep_texts=keep_texts)
        self.done = self.closed_elsewhere = False
        self.seen = False

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk and return what of it the caller gets now."""
        return self.glance(chunk) or self.look(chunk)

    def look(self, chunk: bytes) -> bytes:
        """Read a chunk that is not known at a glance, and return what of it the caller gets now."""
        self.seen = True
        if self._first is not None and not (self._sse and is_comment(chunk)):
            self._first()
            self._first = None
        if self._blind:
            return chunk
        held, passed = self._held, None
        if len(held) + len(self._body) + len(chunk) > MOST_HELD_BYTES:
            diagnostics.note("answer_too_large", "an answer is too large to be looked at; its usage is not known")
        else:
            passed = guarded("openai_stream", self._read, chunk)
        if passed is None:
            self._held, self._body, self._blind, self.glance = bytearray(), bytearray(), True, _unknown
            return bytes(held) + chunk if self._hide_usage else chunk
        return passed

    def flush(self, *, broken: bool = False) -> bytes:
        """Return what is still held back from the caller at the end of the body, or where it breaks off."""
        held, self._held = bytes(self._held), bytearray()
        if self._blind:
            return b""
        if not self._sse:
            if not broken:
                guarded("openai_stream", self.answer.read_whole, bytes(self._body))
            return b""
        passed = guarded("openai_stream", self._read_last, held, broken=broken)
        return (held if passed is None else passed) if self._hide_usage else b""

    def finish(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        """End the call, the first time."""
        if not self.done:
            self.done = True
            self._body = bytearray()
            guarded("openai_stream", self._end, self.answer, error, exhausted)

    def give_up(self) -> None:
        """Tell of the end as if the answer were left here; whoever reads on gets what he would get."""
        end, self._end = self._end, _nobody
        if not self.done:
            guarded("openai_stream", end, self.answer, None, False)

    def leave(self) -> None:
        """Tell nobody of the end."""
        self._end = _nobody

    def read_by(self, reader: _T) -> _T:
        """Return a generator through which the caller may read, and remember it."""
        self._readers.append(weakref.ref(reader))
        return reader

    @property
    def hides(self) -> bool:
        """Whether the caller gets less than what comes."""
        return self._hide_usage

    @property
    def inside(self) -> bool:
        """Whether the next chunk is being waited for; else the caller has the last one."""
        readers = [known() for known in self._readers]
        return any(getattr(reader, "gi_running", False) or getattr(reader, "ag_running", False) for reader in readers)

    def _read(self, chunk: bytes) -> bytes:
        if not self._sse:
            self._body += chunk
            return chunk
        held = self._held
        if held and not (b"\n" in chunk or b"\r" in chunk or held.endswith(b"\r")):
            held += chunk
            return b"" if self._hide_usage else chunk
        events, rest = split_events(bytes(held) + chunk if held else chunk)
        self._held = bytearray(rest)
        passed = b"".join([self._read_event(event) for event in events])
        self.glance = _unknown if rest else self._last
        return passed if self._hide_usage else chunk

    def _read_last(self, held: bytes, *, broken: bool) -> bytes:
        events, rest = split_events(held, ended=True)
        passed = b"".join([self._read_event(event) for event in events])
        if rest.lstrip()[:1] == b"{":
            if not broken:
                self.answer.read_whole(rest)
            return passed + rest
        if rest:
            self.answer.read_event(rest, torn=True)
        return passed + self._shown(rest)

    def _read_event(self, event: bytes) -> bytes:
        for glance in self._glances:
            if (passed := glance(event)) is not None:
                self._last = glance
                return passed
        answer = self.answer
        known = None if answer.response_id is None or answer.texts is not None else plain_event(event)
        if known is None:
            brings_usage = answer.read_event(event)
            return blank_lines_before(event) if brings_usage and self._hide_usage else self._shown(event)
        answer.delivered_bytes += known[2]
        if self._learned < MOST_LEARNED:
            self._learned += 1
            if (learned := alike(event, known, answer, hide_usage=self._hide_usage)) is not None:
                self._glances.append(learned)
                self._last = learned
        return self._shown(event)

    def _shown(self, event: bytes) -> bytes:
        return without_null_usage(event) if self._hide_usage else event
