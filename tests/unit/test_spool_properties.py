"""Laws of the spool: whatever happens to its bytes or its processes, what was intact is read and nothing else."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fluxgate_mw.buffer.pack import count, pack, unpack
from fluxgate_mw.buffer.segments import frame, next_frame
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import EventDecodeError

PAYLOADS = st.lists(st.binary(max_size=60), min_size=1, max_size=12)


@given(events=st.lists(st.sampled_from([b"\x80", b"\x81\xa1a\x01", b"\xc0"]), max_size=70))
def test_a_pack_gives_back_what_went_in(events):
    """`unpack` is the inverse of `pack`, and `count` knows the number without looking inside."""
    payload = pack(events)
    assert unpack(payload) == events
    assert count(payload) == len(events)


def test_large_packs_have_large_headers():
    """The array header grows with the number of events."""
    for size in (15, 16, 65_535, 65_536):
        payload = pack([b"\x80"] * size)
        assert len(unpack(payload)) == count(payload) == size


@given(data=st.binary(max_size=200))
def test_no_bytes_make_unpack_raise_anything_else(data):
    """Bytes that are no pack raise `EventDecodeError` and nothing else."""
    with contextlib.suppress(EventDecodeError):
        unpack(data)
    assert count(data) >= 0


@given(payloads=PAYLOADS, data=st.data())
def test_damage_costs_only_what_it_touches(payloads, data):
    """Flip, cut or insert bytes anywhere: nothing raises, and every frame before the damage is read as it was."""
    frames = [frame(payload) for payload in payloads]
    whole = b"".join(frames)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                whole[:at],
                whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
                whole[:at] + data.draw(st.binary(min_size=1, max_size=30)) + whole[at:],
            ]
        )
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "00000000000000000001-1-000000.seg").write_bytes(damaged)
        spool = Spool(folder)
        entries = spool.read_nowait(100)
        spool.ack_nowait(entries)
        assert spool.read_nowait(100) == []
        read = [entry.payload for entry in entries]
        intact = 0
        while sum(map(len, frames[: intact + 1])) <= at:
            intact += 1
        assert read[:intact] == payloads[:intact]
        kept = sum(path.stat().st_size for path in folder.glob("*.bad"))
        assert kept + sum(len(frame(payload)) for payload in read) == len(damaged)
        assert not list(folder.glob("*.seg"))
        spool.stop_reading()


@given(data=st.binary(max_size=400), start=st.integers(0, 500))
def test_no_bytes_make_the_frame_reader_raise(data, start):
    """Looking for a frame in any bytes finds one or none."""
    found = next_frame(data, start)
    assert found is None or frame(found[2]) == data[found[0] : found[1]]


class SpoolMachine(RuleBasedStateMachine):
    """Writers that seal, die and come back, and readers that read, acknowledge, close and die."""

    @initialize()
    def begin(self) -> None:
        """Start with an empty folder."""
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.writer, self.reader = Spool(self.folder, segment_bytes=60), Spool(self.folder)
        self.written: list[bytes] = []
        self.acknowledged: set[bytes] = set()
        self.in_hand: list = []

    @rule(size=st.integers(0, 40))
    def append(self, size: int) -> None:
        """Write one pack."""
        payload = len(self.written).to_bytes(4, "big") + b"x" * size
        self.writer.append_nowait(payload)
        self.written.append(payload)

    @rule()
    def seal(self) -> None:
        """Seal what is open."""
        self.writer.seal()

    @rule()
    def writer_dies(self) -> None:
        """End the writing process without sealing."""
        self.writer.abandon()
        self.writer = Spool(self.folder, segment_bytes=60)

    @rule(most=st.integers(1, 5))
    def read(self, most: int) -> None:
        """Read some; nothing that was acknowledged comes to the reader that acknowledged it."""
        entries = self.reader.read_nowait(most)
        assert len(entries) <= most
        self.in_hand += entries

    @rule(data=st.data())
    def acknowledge(self, data) -> None:
        """Acknowledge some of what is in hand."""
        if self.in_hand:
            chosen = data.draw(st.lists(st.sampled_from(self.in_hand), unique_by=lambda entry: entry.entry_id))
            self.reader.ack_nowait(chosen)
            self.acknowledged |= {entry.payload for entry in chosen}
            self.in_hand = [entry for entry in self.in_hand if entry not in chosen]

    @rule(orderly=st.booleans())
    def reader_ends(self, orderly: bool) -> None:  # noqa: FBT001  (Hypothesis gives it)
        """End the reading process, in an orderly way or not."""
        if orderly:
            self.reader.stop_reading()
        else:
            self.reader.abandon()
            self.reader = Spool(self.folder)
        self.in_hand = []

    @invariant()
    def nothing_is_damaged(self) -> None:
        """No step leaves a damaged part."""
        assert not list(self.folder.glob("*.bad"))

    def teardown(self) -> None:
        """In the end everything that was not acknowledged is read, in order, and the folder is empty of segments."""
        self.writer.seal()
        self.reader.abandon()
        reader = Spool(self.folder)
        rest: list[bytes] = []
        while entries := reader.read_nowait(100):
            rest += [entry.payload for entry in entries]
            reader.ack_nowait(entries)
        assert set(rest) | self.acknowledged == set(self.written)
        assert rest == sorted(rest)
        assert not [path for path in self.folder.iterdir() if path.suffix in {".seg", ".open"}]
        reader.stop_reading()
        self.temporary.cleanup()


SpoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
test_no_step_of_writers_and_readers_loses_anything = SpoolMachine.TestCase
