"""Every example runs as it stands, against a loopback provider, and shows what the seed's actions show."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from fluxgate_mw.testing import capture_events
from tests.openai_server import RunningOpenAI, running_openai

ROOT = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(ROOT.glob("*/*.py"))
ANN = {"Authorization": "Bearer ann-token"}
ASKED = [
    ("/summarize", {"text": "A long text."}),
    ("/chat", {"messages": [{"role": "user", "content": "Hello!"}], "conversation_id": "c-1"}),
    ("/analyze-image", {"image_base64": "iVBORw0KGgo="}),
]
SHOWN = [
    ("summarizer", "gpt-4o-mini", None),
    ("chat-assistant", "gpt-4o", "c-1"),
    ("image-analysis", "gpt-4o", None),
]


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A loopback provider that the examples' own clients are pointed at by the environment."""
    with running_openai(tmp_path) as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        yield server


def environment(server: RunningOpenAI) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": server.base_url,
        "OPENAI_API_KEY": "unused",
        "FLUXGATE_PROVIDER_HOSTS": f"{server.host}=openai",
    }


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"example_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(events):
    return [(event.feature, event.request_model, event.conversation_id) for event in events]


def test_the_examples_are_short():
    """One file each, of at most 60 lines."""
    assert {path.parent.name for path in EXAMPLES} == {"explicit", "fastapi", "flask"}
    assert [path for path in EXAMPLES if len(path.read_text().splitlines()) > 60] == []


def test_fastapi_example(provider):
    """Three requests of a signed-in user are three events with feature, user, model, tokens and cost."""
    with capture_events() as events, TestClient(load(ROOT / "fastapi" / "app.py").app) as client:
        assert client.post("/summarize", json={"text": "x"}).status_code == 401
        assert [client.post(path, json=body, headers=ANN).status_code for path, body in ASKED] == [200, 200, 200]
    assert shown(events) == SHOWN
    assert {(event.user.id, event.user.email, event.user.name, event.user_source) for event in events} == {
        ("user-123", "ann@example.com", "Ann", "identify")
    }
    assert all(event.cost_nanos > 0 and event.latency_ms > 0 for event in events)
    assert {event.feature_source for event in events} == {"decorator"}


def test_flask_example(provider):
    """The same under Flask, with sync views."""
    client = load(ROOT / "flask" / "app.py").app.test_client()
    with capture_events() as events:
        assert client.post("/summarize", json={"text": "x"}).status_code == 401
        assert [client.post(path, json=body, headers=ANN).status_code for path, body in ASKED] == [200, 200, 200]
    assert shown(events) == SHOWN
    assert {event.user.name for event in events} == {"Ann"}
    assert [event.route for event in events] == ["POST /summarize", "POST /chat", "POST /analyze-image"]


def test_explicit_example(provider, tmp_path):
    """Run as a program it prints three trackings, and what it recorded is in the store after a flush."""
    variables = os.environ | environment(provider) | {"FLUXGATE_DATA_DIR": str(tmp_path / "data")}
    program = [sys.executable, str(ROOT / "explicit" / "actions.py")]
    printed = subprocess.run(program, env=variables, capture_output=True, text=True, check=True).stdout
    assert printed.count("Tracking(status='SUCCESS', cost=Decimal(") == 3
    command = [sys.executable, "-m", "fluxgate_mw.cli", "flush", "--once"]
    flushed = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    assert flushed.startswith("Stored 3 events")
    with closing(sqlite3.connect(tmp_path / "data" / "fluxgate.sqlite3")) as connection:
        rows = connection.execute("SELECT feature, user_id, user_source FROM events ORDER BY event_id").fetchall()
    assert rows == [(name, "user-123", "explicit") for name, _, _ in SHOWN]
