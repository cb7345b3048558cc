"""The values: ids, wire form, money."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from decimal import Inexact, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.errors import EventDecodeError
from fluxgate_mw.event import UsageEvent, User, decode_event, encode_event, new_event_id, usd

texts = st.text(max_size=40)
counts = st.none() | st.integers(min_value=0, max_value=2**53)


def test_event_ids_are_uuid7_and_sort_by_time():
    """An id is a valid UUIDv7, and a later millisecond gives a greater one."""
    ids = [uuid.UUID(new_event_id()) for _ in range(500)]
    assert {(i.version, i.variant) for i in ids} == {(7, uuid.RFC_4122)}
    assert len(set(ids)) == 500
    milliseconds = [i.int >> 80 for i in ids]
    assert milliseconds == sorted(milliseconds)


def test_ids_stay_unique_whatever_the_application_seeds_and_forks():
    """Neither `random.seed` nor a fork makes two processes draw the same ids."""
    program = (
        "import os, random, sys; from fluxgate_mw.event import new_event_id as new\n"
        "random.seed(1); first = new(); random.seed(1); second = new()\n"
        "child = os.fork() == 0; print([first, second, new()] if child else [new()], flush=True)\n"
        "child or os.wait()"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    ids = re.findall(r"'([0-9a-f-]{36})'", printed)
    assert len(ids) == 4
    assert len({text[-12:] for text in ids}) == 4


@given(
    user=st.none() | st.builds(User, id=texts, email=st.none() | texts),
    feature=st.none() | texts,
    tokens=counts,
    metadata=st.dictionaries(texts, st.none() | st.booleans() | texts | st.integers(-(2**63), 2**63 - 1), max_size=4),
)
def test_wire_form_is_identity(user, feature, tokens, metadata):
    """What is encoded is what is decoded, for any text and any count."""
    event = UsageEvent(user=user, feature=feature, input_tokens=tokens, metadata=metadata)
    assert decode_event(encode_event(event)) == event


def test_foreign_metadata_is_written_as_its_repr():
    """A value that has no wire form does not lose the event."""
    assert decode_event(encode_event(UsageEvent(metadata={"path": 1j}))).metadata == {"path": "1j"}


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa6status\xa4NOPE", b"\x90", b"\x81\xa4step\xa2\xff\xff"])
def test_bytes_that_are_no_event_are_a_decode_error(data):
    """Whatever the bytes are, the error is ours."""
    with pytest.raises(EventDecodeError):
        decode_event(data)


def test_unknown_money_stays_unknown():
    """None is not zero."""
    assert usd(None) is None
    assert str(usd(1)) == "1E-9"
    assert usd(0) == 0


def test_money_is_exact_whatever_the_applications_decimals_are():
    """It may keep three digits, and raise over those that are lost: that is for its own sums."""
    with localcontext(prec=3) as own:
        own.traps[Inexact] = True
        assert str(usd(1_234_567_890)) == "1.234567890"


def test_processes_that_fork_unseen_make_no_id_twice():
    """A fork that Python hears nothing of, as uWSGI's, copies the generator, and not the ids."""
    script = (
        "import ctypes, os\n"
        "from fluxgate_mw.event import new_event_id\n"
        "child = ctypes.PyDLL(None).fork()\n"
        "os.waitpid(child, 0) if child else None\n"
        "os.write(1, (new_event_id(1.0) + '\\n').encode())\n"
        "os._exit(0)\n"
    )
    made = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert len(made) == len(set(made)) == 2
