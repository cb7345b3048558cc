"""The seeded chaos run, short enough for every change; `python -m tests.faults.chaos --seconds 3600` is a long one."""

from __future__ import annotations

import os

import pytest

from tests.faults.chaos import Chaos

pytestmark = [pytest.mark.faults, pytest.mark.redis, pytest.mark.timeout(400)]

SECONDS = float(os.environ.get("FLUXGATE_TEST_CHAOS_SECONDS", "60"))
LEAST_EVENTS, LEAST_KILLS = 100_000, 30


@pytest.mark.parametrize("seed", [20_261_123])
def test_whatever_goes_wrong_every_event_is_accounted_for(tmp_path, seed):
    """Kills, freezes, starvation, a full disk, an emptied server and a locked store at once: the law holds.

    A slow machine is given longer, until so much has happened. otel-contrib#20552: no such test there.
    """
    report = Chaos(tmp_path, seed=seed).run(SECONDS, least_events=LEAST_EVENTS, least_kills=LEAST_KILLS)
    assert report.wrong == [], report
    assert report.kills >= LEAST_KILLS, report
    assert report.emitted >= LEAST_EVENTS, report
    assert report.stored > report.emitted * 0.7, report


def test_durable_events_outlive_every_kill(tmp_path):
    """With `durable` no killed worker loses an event whose `emit` returned, whatever else goes wrong."""
    report = Chaos(tmp_path, seed=7, durable=True, rate=200, pace_s=0.4).run(25)
    assert report.wrong == [], report
    assert report.faults["kill worker"] >= 5, report
