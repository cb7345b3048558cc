"""Each test has the patch on, its events in a list, and leaves openai as it found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import openai
import pytest
from openai import BaseModel
from openai._base_client import AsyncAPIClient, SyncAPIClient
from openai._legacy_response import LegacyAPIResponse
from openai._resource import AsyncAPIResource, SyncAPIResource
from openai._response import APIResponse, AsyncAPIResponse

from fluxgate_mw import FluxGate, UsageEvent, diagnostics, uninstrument_openai
from fluxgate_mw.openai import unfinished
from fluxgate_mw.recorder import in_hand
from fluxgate_mw.testing import capture_events

_PATCHED = [
    (SyncAPIClient, "request"),
    (SyncAPIClient, "_process_response"),
    (AsyncAPIClient, "request"),
    (AsyncAPIClient, "_process_response"),
    (LegacyAPIResponse, "parse"),
    (APIResponse, "parse"),
    (AsyncAPIResponse, "parse"),
    (BaseModel, "fluxgate"),
    (openai.Stream, "fluxgate"),
    (SyncAPIResource, "__init_subclass__"),
    (AsyncAPIResource, "__init_subclass__"),
    *(
        (getattr(sys.modules[name], kind), "send")
        for name in ("httpx", "httpx2")
        if name in sys.modules
        for kind in ("Client", "AsyncClient")
    ),
]
_FOUND = [owner.__dict__.get(name) for owner, name in _PATCHED]


@pytest.fixture(autouse=True)
def _openai_as_found() -> Iterator[None]:
    """Every attribute of openai is the very object that was there, no call is left open, and no bug of ours noted."""
    yield
    bugs = [kind for kind in diagnostics.counts() if kind.startswith(("bug_", "failed_"))]
    for fg in FluxGate._default:
        fg.stop()
    uninstrument_openai()
    assert [owner.__dict__.get(name) for owner, name in _PATCHED] == _FOUND
    assert in_hand.get() is None
    assert not unfinished.any_open()
    assert bugs == []


@pytest.fixture
def fg(_openai_as_found: None) -> FluxGate:
    """The process's default, with the patch on."""
    return FluxGate()


@pytest.fixture
def events(fg: FluxGate) -> Iterator[list[UsageEvent]]:
    """The events of this test."""
    with capture_events() as captured:
        yield captured
