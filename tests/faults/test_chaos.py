"""The seeded chaos run, short enough for every change; `python -m tests.faults.chaos --seconds 3600` is a long one."""

from __future__ import annotations

import os

import pytest

from tests.faults.chaos import Chaos

pytestmark = [pytest.mark.faults, pytest.mark.redis, pytest.mark.timeout(240)]

SECONDS = float(os.environ.get("FLUXGATE_TEST_CHAOS_SECONDS", "45"))
LEAST_EVENTS_A_SECOND = 500
"""What even a busy machine emits; the long form asserts the whole 100,000."""


@pytest.mark.parametrize("seed", [20_261_123])
def test_whatever_goes_wrong_every_event_is_accounted_for(tmp_path, seed):
    """Kills, freezes, starvation, an emptied server and a locked store at once: the law holds to the last event."""
    report = Chaos(tmp_path, seed=seed).run(SECONDS)
    assert report.wrong == [], report
    assert report.kills >= SECONDS / 3, report
    assert report.emitted >= min(SECONDS * LEAST_EVENTS_A_SECOND, 100_000), report
    assert report.stored > report.emitted * 0.7, report


def test_durable_events_outlive_every_kill(tmp_path):
    """With `durable` no killed worker loses an event whose `emit` returned, whatever else goes wrong."""
    report = Chaos(tmp_path, seed=7, durable=True, rate=200, pace_s=0.4).run(25)
    assert report.wrong == [], report
    assert report.faults["kill worker"] >= 5, report
