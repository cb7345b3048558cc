"""`fluxgate demo` as a user runs it: the command in a process of its own, judged by its files."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import redis

from tests.openai_server import running_openai
from tests.servers import free_port

DEMO = [sys.executable, "-m", "fluxgate_mw.cli", "demo"]
SECONDS = 5
KEYS = ["response_id", "path", "stream", "http_status", "user", "feature", "prompt_tokens", "completion_tokens"]


@pytest.fixture
def start():
    """Start the command with arguments; whatever is left of it is killed at the end."""
    started = []

    def start_demo(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        command = [*DEMO, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start_demo
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ledger_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def events_of(folder: Path) -> list[dict]:
    with closing(sqlite3.connect(folder / "fluxgate.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM events")]


def assert_equal_sides(folder: Path) -> None:
    """Compare ledger and store row by row, with nothing of the demo's own comparison."""
    rows, events = ledger_of(folder), events_of(folder)
    assert {tuple(row) for row in rows} == {tuple(KEYS)}
    stored = {event["response_id"]: event for event in events if event["response_id"]}
    answered = {row["response_id"]: row for row in rows if row["response_id"]}
    assert set(stored) == set(answered)
    assert len(stored) == sum(1 for event in events if event["response_id"])
    for response_id, row in answered.items():
        event = stored[response_id]
        assert row["user"] == event["user_id"], (row, event)
        assert row["feature"] == event["feature"], (row, event)
        assert (row["path"], row["stream"], row["http_status"]) == (
            event["api_path"],
            bool(event["stream"]),
            event["http_status"],
        )
        if row["prompt_tokens"] is None:
            assert event["usage_source"] != "provider"
        else:
            counts = (event["input_tokens"], event["output_tokens"])
            assert (row["prompt_tokens"], row["completion_tokens"]) == counts, (row, event)
    without_id = [event for event in events if not event["response_id"]]
    assert Counter(
        (row["path"], row["user"], row["feature"], row["prompt_tokens"])
        for row in rows
        if not row["response_id"] and row["http_status"] < 400
    ) == Counter(
        (event["api_path"], event["user_id"], event["feature"], event["input_tokens"])
        for event in without_id
        if event["http_status"] < 400
    )
    refused = Counter((row["path"], row["user"], row["feature"]) for row in rows if row["http_status"] >= 400)
    explained: Counter = Counter()
    for event in events:
        tries = event["retries"] + (event["http_status"] >= 400)
        explained[event["api_path"], event["user_id"], event["feature"]] += tries
    assert refused == +explained
    assert len(rows) == sum(1 + event["retries"] for event in events)


def assert_rich(folder: Path) -> None:
    """The traffic is what the demo promises: its rate, its people, its features, and every kind of call."""
    rows, events = ledger_of(folder), events_of(folder)
    calls = [row for row in rows if row["path"] in ("/chat/completions", "/responses")]
    assert len(calls) >= 10 * SECONDS
    assert len({row["user"] for row in rows if row["user"]}) >= 3
    assert None in {row["user"] for row in rows}
    features = {row["feature"] for row in rows}
    assert {
        "summarizer",
        "chat-assistant",
        "image-analysis",
        "POST /translate/{lang}",
        "POST /translate/<lang>",
    } <= features
    assert {row["path"] for row in rows} == {"/chat/completions", "/responses", "/embeddings"}
    assert {200, 400, 429, 500} <= {row["http_status"] for row in rows}
    assert any(row["stream"] and row["prompt_tokens"] for row in rows)
    assert any(row["stream"] and row["response_id"] and row["prompt_tokens"] is None for row in rows)
    assert {"SUCCESS", "ERROR", "CANCELLED", "MAX_TOKENS"} <= {event["status"] for event in events}
    assert any(event["cache_read_input_tokens"] for event in events)
    assert any(event["reasoning_output_tokens"] for event in events)
    assert any(event["cost_nanos"] for event in events)
    assert {event["cost_nanos"] for event in events if event["feature"] == "POST /experiment"} == {None}
    assert {event["user_name"] for event in events if event["user_id"] == "u-ann"} == {"Ann Lindqvist"}


def test_every_call_is_stored_for_the_right_user_and_feature(start, tmp_path):
    """Without any server the ledger and the store agree row by row, and the summary says so."""
    process = start("--seconds", SECONDS, "--data-dir", tmp_path / "d")
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 0, output
    lines = output.splitlines()
    assert re.fullmatch(r"Dashboard  http://127\.0\.0\.1:\d+", lines[0])
    assert sum("events stored" in line for line in lines) >= 2, output
    assert re.search(rf"^stored +{len(events_of(tmp_path / 'd'))}$", output, re.MULTILINE), output
    assert "POST /translate/{lang}" in output
    assert_equal_sides(tmp_path / "d")
    assert_rich(tmp_path / "d")


@pytest.mark.redis
def test_the_same_over_redis(start, tmp_path, redis_url):
    """Delivered through a real server, nothing is missing either, and nothing is left on the server."""
    process = start("--seconds", SECONDS, "--data-dir", tmp_path / "d", "--redis-url", redis_url)
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 0, output
    with redis.Redis.from_url(redis_url, protocol=2) as server:
        assert server.keys("fluxgate:demo:*") == []
    assert_equal_sides(tmp_path / "d")
    assert_rich(tmp_path / "d")


def test_a_second_run_in_the_same_folder_is_judged_by_itself(start, tmp_path):
    """Ledger and store grow together, and the second summary counts its own calls only."""
    totals = []
    for _ in range(2):
        output, _ = start("--seconds", 2, "--data-dir", tmp_path).communicate(timeout=50)
        stored = re.search(r"^stored +([\d,]+)$", output, re.MULTILINE)
        assert stored is not None, output
        totals.append(int(stored[1].replace(",", "")))
    assert len(events_of(tmp_path)) == sum(totals)
    assert_equal_sides(tmp_path)


def progressed(process: subprocess.Popen[str], pattern: str) -> str:
    """Return the first line of output that matches, waiting for it; a thread goes on reading."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + 30
    while (line := lines.get(timeout=max(deadline - time.monotonic(), 0.01))) is not None:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"ended without a line like {pattern}")


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while living(processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not living(processes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_soon(start, tmp_path, number):
    """Ctrl-C and SIGTERM stop the visitors, keep what was done, and leave no process behind."""
    process = start("--data-dir", tmp_path)
    progressed(process, r"[1-9]\d* events stored")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    asked = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=20) == 0
    assert time.monotonic() - asked < 2 * patience()
    assert gone(children, 1)
    assert_equal_sides(tmp_path)


def patience() -> float:
    """How much slower than free this machine is now; the promise of two seconds is for a machine that is free."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_no_child_outlives_a_killed_demo(start, tmp_path):
    """A kill -9 of the demo itself ends the two apps too."""
    process = start("--data-dir", tmp_path)
    progressed(process, "calls answered")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert gone(children, 15)


def test_the_dashboard_fills_while_you_look(start, tmp_path):
    """The printed address serves the explorer with rows of this run while the visitors are there."""
    port = free_port()
    process = start("--data-dir", tmp_path, "--port", port)
    progressed(process, r"[1-9]\d* events stored")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/requests") as response:
        page = response.read().decode()
    assert "summarizer" in page or "chat-assistant" in page
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--live"], "OPENAI_API_KEY"),
        (["--redis-url", "redis://127.0.0.1:1/0"], "redis"),
        (["--redis-url", "http://x"], "redis_url"),
        (["--data-dir", "/dev/null/x"], "/dev/null/x"),
        (["--port", "70000"], "70000"),
    ],
)
def test_a_wrong_option_is_one_clear_line(start, arguments, said):
    """What cannot work ends at once with one line that names it, and a status that is not 0."""
    process = start("--seconds", 1, *arguments)
    output, _ = process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    assert said in output
    assert len(output.splitlines()) == 1, output


def test_a_port_in_use_is_one_clear_line(start):
    """The port that somebody else has is named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output, _ = start("--seconds", 1, "--port", port).communicate(timeout=30)
    assert str(port) in output
    assert len(output.splitlines()) == 1, output


def test_an_app_that_cannot_start_is_one_clear_line(start, tmp_path):
    """An app that ends at once ends the demo, with the place where it said why, and leaves nobody behind."""
    (tmp_path / "flask.py").write_text("raise RuntimeError('broken on purpose')")
    process = start("--seconds", 1, "--data-dir", tmp_path / "d", PYTHONPATH=str(tmp_path))
    output, _ = process.communicate(timeout=50)
    assert process.returncode not in (0, None)
    assert output.splitlines()[-1].endswith(f"its output is in {tmp_path / 'd' / 'flask.log'}"), output
    assert "Traceback" not in output
    assert "broken on purpose" in (tmp_path / "d" / "flask.log").read_text()


def test_live_calls_the_service_that_the_environment_names(start, tmp_path):
    """With `--live` the apps call whatever the OpenAI client calls, no behaviour is asked for, and all is stored."""
    with running_openai(tmp_path) as service:
        process = start(
            "--live",
            "--seconds",
            4,
            "--data-dir",
            tmp_path / "d",
            OPENAI_API_KEY="sk-x",
            OPENAI_BASE_URL=service.base_url,
        )
        output, _ = process.communicate(timeout=50)
        assert process.returncode == 0, output
        rows = service.rows(1)
    assert not (tmp_path / "d" / "ledger.jsonl").exists()
    assert {row.http_status for row in rows} == {200}
    assert len(events_of(tmp_path / "d")) == len(rows)
