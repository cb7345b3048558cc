"""The spool's own behaviour: sealing, adoption, one reader at a time, poison, the cap, forks, bad files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.buffer.segments import frame
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import BackendUnavailable, BufferFull, ClosedError
from fluxgate_mw.event import encode_event
from tests.buffers import numbered, spooled_numbers


def one(number: int) -> bytes:
    """Return a pack of one numbered event."""
    return pack([encode_event(numbered(number))])


@pytest.fixture
def folder(tmp_path):
    """The spool's folder, which does not exist yet."""
    return tmp_path / "deep" / "spool"


def names(folder, suffix: str) -> list[str]:
    """Return the names of the files with this suffix."""
    return sorted(path.name for path in folder.glob(f"*{suffix}"))


def test_nothing_is_touched_before_the_first_write(folder):
    """Making, reading, sealing and closing a spool creates nothing."""
    spool = Spool(folder)
    assert spool.read_nowait(10) == []
    spool.seal()
    assert spool.seal_due() is None
    assert anyio.run(spool.backlog)["entries"] == 0
    anyio.run(spool.aclose)
    assert not folder.exists()


def test_only_this_user_may_read(folder):
    """The folder is made 0700 and its files 0600."""
    spool = Spool(folder)
    spool.append_nowait(one(0))
    spool.seal()
    spool.read_nowait(1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_an_open_segment_of_a_living_process_is_not_read(folder):
    """What a living process still writes is left to it until it seals."""
    writer, reader = Spool(folder), Spool(folder)
    writer.append_nowait(one(0))
    assert reader.read_nowait(10) == []
    writer.seal()
    assert len(reader.read_nowait(10)) == 1


def test_a_segment_is_sealed_when_it_is_old_enough(folder):
    """`seal_due` seals by age, and says when it should be asked again."""
    spool = Spool(folder, seal_after_s=9)
    spool.append_nowait(one(0))
    assert 8 < spool.seal_due() <= 9
    assert names(folder, ".seg") == []
    hasty = Spool(folder, seal_after_s=0)
    hasty.append_nowait(one(1))
    assert hasty.seal_due() is None
    assert len(names(folder, ".seg")) == 1


def test_a_segment_is_sealed_when_it_is_large_enough(folder):
    """A segment past its size is sealed by the write itself."""
    spool = Spool(folder, segment_bytes=500)
    for number in range(20):
        spool.append_nowait(one(number))
    assert len(names(folder, ".seg")) > 2
    spool.seal()
    assert spooled_numbers(folder) == list(range(20))


def test_segments_of_a_dead_process_are_adopted(folder):
    """What a process left open when it died is read, whatever it had not sealed."""
    code = (
        "import os, sys; from pathlib import Path; from fluxgate_mw.buffer.spool import Spool; "
        "from tests.unit.test_spool import one; spool = Spool(Path(sys.argv[1])); "
        "[spool.append_nowait(one(n)) for n in range(5)]; os._exit(9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert process.returncode == 9
    assert len(names(folder, ".open")) == 1
    assert spooled_numbers(folder) == list(range(5))
    assert names(folder, ".open") == names(folder, ".seg") == []


def test_one_process_reads_at_a_time(folder):
    """While one has the reader's lock another reads nothing, and can once it is let go."""
    first, second = Spool(folder), Spool(folder)
    first.append_nowait(one(0))
    first.append_nowait(one(1))
    first.seal()
    [entry] = first.read_nowait(1)
    assert second.read_nowait(10) == []
    first.ack_nowait([entry])
    first.stop_reading()
    assert len(second.read_nowait(10)) == 1


def test_files_are_deleted_when_all_their_entries_are_acknowledged(folder):
    """A segment stays until its last entry is acknowledged, in whatever order, and is gone then."""
    spool = Spool(folder)
    for number in range(3):
        spool.append_nowait(one(number))
    spool.seal()
    entries = spool.read_nowait(10)
    assert spool.read_nowait(10) == []
    spool.ack_nowait(entries[1:])
    assert len(names(folder, ".seg")) == 1
    spool.ack_nowait(entries[:1])
    assert names(folder, ".seg") == []


@pytest.mark.parametrize("killed_before", [0, 3], ids=["at-first", "suspect"])
def test_what_is_acknowledged_is_gone_though_its_reader_is_killed_then(folder, killed_before):
    """A reader that was given exactly what a segment holds, and dies before it reads on, leaves nothing to come again.

    Whether the segment was read before by readers that died over it, or not.
    """
    spool = Spool(folder)
    spool.append_nowait(one(0))
    spool.seal()
    for _ in range(killed_before):
        doomed = Spool(folder)
        assert len(doomed.read_nowait(1)) == 1
        doomed.abandon()
    reader = Spool(folder)
    reader.ack_nowait(reader.read_nowait(1))
    reader.abandon()
    assert names(folder, ".seg") == []


def test_a_reader_that_closes_leaves_no_mark(folder):
    """An orderly end is not counted against the entries: the next reader has them as the first did."""
    for _ in range(10):
        spool = Spool(folder)
        if not folder.exists():
            spool.append_nowait(one(0))
            spool.seal()
        [entry] = spool.read_nowait(10)
        assert entry.delivery_count == 1
        spool.stop_reading()


def test_a_reader_that_closes_midway_leaves_only_the_rest(folder):
    """Of one segment, what was acknowledged before an orderly end does not come again; what was not does."""
    spool = Spool(folder)
    for number in range(6):
        spool.append_nowait(one(number))
    spool.seal()
    entries = spool.read_nowait(4)
    spool.ack_nowait(entries[:2])
    spool.stop_reading()
    assert spooled_numbers(folder) == [2, 3, 4, 5]


def crash(folder, wanted: int) -> list[tuple[int, int]]:
    """Read and acknowledge until event `wanted` kills the reader; return numbers with their delivery counts."""
    spool = Spool(folder)
    seen = []
    while entries := spool.read_nowait(100):
        seen += [(int(entry.payload.split(b"number")[1][0]), entry.delivery_count) for entry in entries]
        if any(number == wanted for number, _ in seen):
            spool.abandon()
            return seen
        spool.ack_nowait(entries)
    return seen


def test_a_poison_that_kills_its_reader_is_found(folder):
    """Counts outlive the reader, and from the third time on they are the entry's own, not its neighbours'."""
    spool = Spool(folder)
    for number in range(5):
        spool.append_nowait(one(number))
    spool.seal()
    runs = [crash(folder, 2) for _ in range(6)]
    assert runs[0] == [(number, 1) for number in range(5)]
    assert runs[1] == [(number, 2) for number in range(5)]
    assert runs[2] == [(0, 3), (1, 3), (2, 3)]
    assert runs[3:] == [[(2, 4)], [(2, 5)], [(2, 6)]]
    assert [number for number, _ in crash(folder, 99)] == [2, 3, 4]
    assert names(folder, ".seg") == []


def test_the_cap_refuses_the_newest(folder):
    """At the cap new packs are refused; what was taken stays, and drained room is used again.

    getsentry/relay#3288, vector#8650: a cap that was not kept, and room that never came back.
    """
    spool = Spool(folder, max_bytes=2000)
    taken = []
    with pytest.raises(BufferFull):
        fill(spool, taken)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2000
    spool.seal()
    assert spooled_numbers(folder) == taken
    time_of_look = spool._looked_at
    spool._looked_at = time_of_look - 10
    spool.append_nowait(one(99))


def fill(spool: Spool, taken: list[int]) -> None:
    """Append numbered packs until refused."""
    for number in range(1000):
        spool.append_nowait(one(number))
        taken.append(number)


def test_the_cap_counts_what_others_wrote(folder):
    """Segments of other processes count against the cap."""
    other = Spool(folder)
    for number in range(50):
        other.append_nowait(one(number))
    other.seal()
    with pytest.raises(BufferFull):
        Spool(folder, max_bytes=2000).append_nowait(one(0))


def test_a_damaged_part_is_set_aside_and_the_rest_is_read(folder, caplog):
    """Bytes that are no intact frame are kept in a `.bad` file, which is said; frames before and after are read."""
    folder.mkdir(parents=True)
    torn = frame(one(2))[:-3]
    data = frame(one(0)) + b"garbage" + frame(one(1)) + torn
    (folder / "00000000000000000001-1-000000.seg").write_bytes(data)
    assert spooled_numbers(folder) == [0, 1]
    [first, last] = sorted(folder.glob("*.bad"), key=lambda path: path.stat().st_size)
    assert first.read_bytes() == b"garbage"
    assert last.read_bytes() == torn
    assert anyio.run(Spool(folder).backlog)["quarantined"] == 2
    assert f"7 damaged bytes of the spool were set aside as {first.name}" in caplog.text


def test_a_segment_that_is_no_file_does_not_stop_the_others(folder, caplog):
    """What cannot be read is set aside by its name, which is said, and the next segment is read."""
    (folder / "00000000000000000001-1-000000.seg").mkdir(parents=True)
    spool = Spool(folder)
    spool.append_nowait(one(0))
    spool.seal()
    assert anyio.run(spool.backlog)["entries"] == 2  # so that who waits for it to be empty has it read
    assert anyio.run(spool.oldest) is not None
    assert spooled_numbers(folder) == [0]
    assert len(names(folder, ".bad")) == 1
    assert "00000000000000000001-1-000000.seg was set aside as .bad: Is a directory" in caplog.text


def test_foreign_files_are_left_alone(folder):
    """Files of other names are neither read nor deleted nor counted."""
    folder.mkdir(parents=True)
    for name in ("README", "x.tmp", "00000000000000000001-1-000000.new"):
        (folder / name).write_bytes(frame(one(7)))
    spool = Spool(folder)
    spool.append_nowait(one(0))
    spool.seal()
    assert spooled_numbers(folder) == [0]
    assert {"README", "x.tmp"} <= {path.name for path in folder.iterdir()}


def test_a_folder_that_was_deleted_is_made_again(folder):
    """What was written to a segment that somebody deleted since is there again when it is sealed, and what came after.

    Nothing of a segment that was sealed, and so no longer ours, comes back.
    """
    spool = Spool(folder)
    spool.append_nowait(one(9))
    spool.seal()
    spool.append_nowait(one(0))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    spool.append_nowait(one(1))
    spool.seal()
    spool.append_nowait(one(2))
    spool.seal()
    assert [path.stat().st_mode & 0o777 for path in folder.glob("*.seg")] == [0o600] * 2
    assert spooled_numbers(folder) == [0, 1, 2]


def test_a_deleted_segment_that_cannot_be_written_again_is_an_error_of_ours(folder):
    """Where not even the folder can be made, sealing says so, keeps what it has, and tries anew."""
    spool = Spool(folder)
    spool.append_nowait(one(0))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_bytes(b"")
    with pytest.raises(BackendUnavailable):
        spool.seal()
    folder.unlink()
    assert spool.seal_due() is not None
    spool.append_nowait(one(1))
    spool.seal()
    assert spooled_numbers(folder) == [0, 1]


def test_what_is_written_after_the_folder_was_deleted_survives_a_kill(folder):
    """Where a file is looked for at each write, as in durable mode, nothing is written to one that is gone."""
    code = (
        "import os, shutil, sys; from pathlib import Path; from fluxgate_mw.buffer.spool import Spool; "
        "from tests.unit.test_spool import one; folder = Path(sys.argv[1]); spool = Spool(folder, trusted_s=0); "
        "spool.append_nowait(one(0)); shutil.rmtree(folder); [spool.append_nowait(one(n)) for n in (1, 2)]; os._exit(9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert process.returncode == 9
    assert spooled_numbers(folder) == [0, 1, 2]


def test_a_frame_that_was_written_is_not_refused_for_its_seal(folder, monkeypatch):
    """Where a full segment cannot be sealed, what it holds was accepted all the same, and is read later."""
    rename, failures = Path.rename, [OSError(errno.EIO, "I/O error")]

    def failing(path, target):
        if str(target).endswith(".seg") and failures:
            raise failures.pop()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    spool = Spool(folder, segment_bytes=1)
    spool.append_nowait(one(0))
    spool.append_nowait(one(1))
    assert failures == []
    assert spooled_numbers(folder) == [0, 1]


def test_a_crowded_folder_is_looked_at_less_often(folder, monkeypatch):
    """Looking at the folder takes at most a fiftieth of the time, however many files there are."""
    spool, now, looks = Spool(folder), [1000.0], []

    def look():
        looks.append(now[0])
        now[0] += 0.5
        return iter(())

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(spool, "_segments", look)
    for _ in range(200):
        spool.append_nowait(one(0))
        now[0] += 0.5
    assert 4 <= len(looks) <= 5


def test_an_unusable_folder_is_an_error_of_ours(tmp_path):
    """A folder that cannot be made or written raises `BackendUnavailable`, naming no path."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BackendUnavailable) as caught:
        Spool(tmp_path / "file" / "spool").append_nowait(one(0))
    assert str(tmp_path) not in str(caught.value)


def test_order_holds_when_the_clock_is_set_back(folder, monkeypatch):
    """Segments of one process are read in the order they were written, whatever the clock does."""
    spool = Spool(folder)
    clock = iter(range(10**18, 0, -(10**15)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    for number in range(10):
        spool.append_nowait(one(number))
        spool.seal()
    assert spooled_numbers(folder) == list(range(10))


def test_a_forked_child_leaves_the_parents_segment_alone(folder):
    """A child that abandons its inherited spool closes it without taking the parent's lock or file away."""
    spool = Spool(folder)
    spool.append_nowait(one(0))
    child = os.fork()
    if not child:
        spool.abandon()
        os._exit(len(Spool(folder).read_nowait(10)))
    _, status = os.waitpid(child, 0)
    assert status == 0
    spool.append_nowait(one(1))
    spool.seal()
    assert spooled_numbers(folder) == [0, 1]


def test_reading_takes_no_more_memory_than_one_segment(folder):
    """A backlog of many segments is read one at a time."""
    spool = Spool(folder, segment_bytes=200)
    for number in range(50):
        spool.append_nowait(one(number))
    spool.seal()
    reader = Spool(folder)
    for _ in range(10):
        reader.ack_nowait(reader.read_nowait(1))
    assert len(reader._reader._readings) <= 2


def test_a_closed_spool_refuses(folder):
    """After `aclose` neither writing nor reading is possible, and what was written is sealed."""
    spool = Spool(folder)
    spool.append_nowait(one(0))
    anyio.run(spool.aclose)
    with pytest.raises(ClosedError):
        spool.append_nowait(one(1))
    with pytest.raises(ClosedError):
        spool.read_nowait(1)
    assert spooled_numbers(folder) == [0]
