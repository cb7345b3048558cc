"""`fluxgate serve`, `flush`, `doctor` and `dead-letters` as a user runs them, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import anyio
import pytest

from fluxgate_mw import FluxGate, UsageEvent, User, cli
from fluxgate_mw.buffer.dead_letters import DeadLetter
from fluxgate_mw.buffer.memory import MemoryBuffer
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.types import Entry
from tests.servers import RedisServer, free_port, valkey_binary

COMMAND = [sys.executable, "-m", "fluxgate_mw.cli"]


def run(*arguments, **variables):
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture
def start() -> Iterator:
    """Start the command; it is killed at the end if it is still there."""
    started = []

    def begin(*arguments, stderr=subprocess.STDOUT, **variables):
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def shown(address):
    with urllib.request.urlopen(f"{address}/requests.json") as response:
        return json.load(response)["events"]


def record(count, **settings):
    with FluxGate(**settings) as fg:
        for number in range(count):
            fg.record(UsageEvent(feature=f"f-{number}", user=User("u-1"), cost_nanos=10))
        assert fg.flush(10)


def test_flush_once_stores_what_is_spooled(tmp_path):
    """It ends by itself with status 0, and a second time finds nothing."""
    record(5)
    assert run("flush", "--once").stdout.splitlines()[-1] == "Stored 5 events, 0 seen before, 0 set aside"
    assert run("flush", "--once").stdout.splitlines()[-1] == "Stored 0 events, 0 seen before, 0 set aside"


def test_flush_once_says_what_it_set_aside(tmp_path):
    """An entry that is no pack of events is counted as what it is: how many it held is not known."""

    async def spoil() -> None:
        spool = Spool(tmp_path / "spool")
        await spool.append(b"no pack", 1)
        await spool.aclose()

    anyio.run(spoil)
    done = run("flush", "--once", "--data-dir", tmp_path)
    assert done.stdout == "Stored 0 events, 0 seen before, 0 set aside; packs set aside whole: 1\n"


def test_flush_once_through_redis(redis_url, stream_key):
    """The stream is emptied into the store."""
    record(5, redis_url=redis_url, stream_key=stream_key)
    done = run("flush", "--once", "--redis-url", redis_url, FLUXGATE_STREAM_KEY=stream_key)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Stored 5 events, 0 seen before, 0 set aside")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_serve_shows_and_stores_until_it_is_stopped(start, stop):
    """The address is printed first; a signal ends it cleanly and in time."""
    process = start("serve", "--port", 0)
    address = process.stdout.readline().split()[1]
    record(3)
    deadline = time.monotonic() + 20
    while len(shown(address)) < 3:
        assert time.monotonic() < deadline
    process.send_signal(stop)
    rest, _ = process.communicate(timeout=8)
    assert process.returncode == 0
    assert rest.splitlines()[-1].startswith("Stored 3 events")


TERMINATED_AT_ITS_START = """
import os, signal, sys
from fluxgate_mw import cli, serving

serve = serving.serving

def terminated(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return serve(*arguments)

serving.serving = terminated
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["serve", "flush"])
def test_a_signal_while_the_pages_start_is_obeyed_once_they_have(command):
    """The flusher is at work by then: what it has in hand is brought to its end."""
    program = [sys.executable, "-c", TERMINATED_AT_ITS_START, command, "--port", "0"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["Stored 0 events, 0 seen before, 0 set aside"])


def test_a_port_in_use_is_one_clear_line(start):
    """It names the address and what to do."""
    process = start("serve", "--port", 0)
    port = process.stdout.readline().rsplit(":", 1)[1].strip()
    done = run("serve", "--port", port)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fluxgate: cannot listen on 127.0.0.1:{port}: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "message"),
    [
        (["serve", "--host", "0.0.0.0"], {}, 2, "needs a secret in FLUXGATE_DASHBOARD_TOKEN"),
        (["flush", "--once", "--redis-url", "cache:6379"], {}, 2, "redis_url (from the argument): expected an address"),
        (["serve", "--port", "99999"], {}, 2, "--port 99999: a port is a number up to 65535; 0 takes a free one\n"),
        (["flush", "--port", "99999"], {}, 2, "--port 99999: a port is a number up to 65535; 0 takes a free one\n"),
        (["serve", "--host", "192.0.2.1"], {"FLUXGATE_DASHBOARD_TOKEN": "hunter2"}, 2, "; give an address of this"),
        (["flush", "--once", "--redis-url", "redis://127.0.0.1:1/0"], {}, 1, "refused); start the server there, or"),
        (["flush", "--once"], {"FLUXGATE_SPOOL_DIR": "/proc/nowhere"}, 1, "; set FLUXGATE_SPOOL_DIR to a folder"),
        (["flush", "--once"], {"FLUXGATE_SPOOL_DIR": __file__}, 1, "; set FLUXGATE_SPOOL_DIR to a folder"),
        (["flush", "--once"], {"FLUXGATE_REDIS_URL": "redis://:hunter2@127.0.0.1:1/0"}, 1, "redis: "),
        (["flush", "--once", "--data-dir", "/proc/nowhere"], {}, 1, "sqlite: /proc/nowhere/fluxgate.sqlite3: No such"),
        (
            ["flush", "--once", "--store-url", f"sqlite:///{__file__}"],
            {},
            1,
            "not a database; set FLUXGATE_DATA_DIR or",
        ),
        (["flush", "--once", "--store-url", "sqlite:////proc"], {}, 1, "/proc: unable to open database file; set"),
        (["serve", "--data-dir", "/proc/nowhere", "--port", "0"], {}, 1, "sqlite: "),
        (["doctor", "--redis-url", "redis://127.0.0.1:1?colour=hunter2"], {}, 2, "redis-py knows no option 'colour'"),
        (["doctor", "--redis-url", "redis+cluster://"], {}, 2, "the name of a host is missing"),
        (["doctor"], {"FLUXGATE_REDIS_URL": "unix://"}, 2, "REDIS_URL (from the environment): expected unix:///path"),
        (["doctor"], {"FLUXGATE_DATA_DIR": "~nobody-here/x"}, 2, "DATA_DIR (from the environment): expected a path; ~"),
        (["flush", "--store-url", "postgresql://db/x"], {}, 2, "not supported by this version yet"),
        (["flush", "--once", "--port", "0"], {}, 2, "flush --once --port: nothing is served by what ends by itself"),
        (["dead-letters", "drop"], {}, 2, "give ids, or --all"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, variables, status, message):
    """No traceback, no secret, and a status that a script can read."""
    done = run(*arguments, **variables)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
    assert done.stderr.startswith("fluxgate: ")
    assert message in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_doctor_finds_nothing_wrong(tmp_path):
    """Every part of a machine with no settings is fine."""
    done = run("doctor", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0
    assert {finding["part"]: finding["verdict"] for finding in findings} == dict.fromkeys(
        ["openai client", "prices", "data folder", "spool", "store"], "ok"
    )


def test_doctor_says_what_is_wrong(tmp_path):
    """An unreachable Redis and a folder that cannot be made, each with its own line and what to do."""
    done = run("doctor", FLUXGATE_REDIS_URL="redis://127.0.0.1:1/0", FLUXGATE_DATA_DIR="/proc/nowhere")
    failed = [line.split() for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 1
    assert [words[1] for words in failed] == ["data", "redis", "spool", "store"]
    assert all({"mend", "set"} & set(words) for words in failed)
    assert done.stdout.count("redis://127.0.0.1:1/0") == 1


def test_doctor_reads_the_price_file(tmp_path):
    """A list that `FluxGate()` would refuse is told with what is wrong in it; a good one with its name."""
    prices = tmp_path / "prices.toml"
    for content, status, verdict in (
        ("[[prices]]\nmodel = 'm'\n", 1, "FAILED"),
        ("[[prices]]\nmodel = 'm'\ninput_cost_per_1m_tokens = 1\n", 0, "ok"),
    ):
        prices.write_text(content)
        done = run("doctor", FLUXGATE_PRICE_FILE=prices, FLUXGATE_DATA_DIR=tmp_path)
        line = next(line for line in done.stdout.splitlines() if line.split()[1] == "prices")
        assert (done.returncode, line.split()[0], "prices.toml" in line) == (status, verdict, True)


def test_doctor_says_that_nothing_goes_to_an_http_api(tmp_path):
    """In the words of the application's log, and without the key."""
    done = run("doctor", FLUXGATE_API_KEY="hunter2", FLUXGATE_DATA_DIR=tmp_path)
    assert "this version does not send events to an HTTP API yet" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_doctor_warns_of_damaged_parts_of_the_spool(tmp_path):
    """Events may be in them; who looks for what is missing is told where it lies."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "1-1-000000-0.bad").write_bytes(b"garbage")
    done = run("doctor", "--data-dir", tmp_path)
    [line] = [line for line in done.stdout.splitlines() if " spool " in line]
    assert line.startswith("WARNING")
    assert line.endswith("1 quarantined; damaged parts lie there as *.bad: keep or delete them")


def test_doctor_warns_of_a_redis_that_may_lose_entries(tmp_path):
    """Eviction and no persistence are named as what they can cost."""
    options = ("--save", "", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    server = RedisServer(valkey_binary(), tmp_path / "r", *options)
    server.start()
    try:
        done = run("doctor", "--redis-url", server.url)
    finally:
        server.kill()
    line = next(line for line in done.stdout.splitlines() if "redis policy" in line)
    assert line.startswith("WARNING")
    assert "maxmemory-policy is allkeys-lru" in line
    assert "AOF is off" in line


def test_doctor_names_no_policy_that_a_redis_without_a_limit_does_not_have(tmp_path):
    """Nothing is evicted there, whatever the policy; it becomes a risk with `maxmemory`."""
    server = RedisServer(valkey_binary(), tmp_path / "r", "--appendonly", "yes", "--maxmemory-policy", "allkeys-lru")
    server.start()
    try:
        done = run("doctor", "--redis-url", server.url)
    finally:
        server.kill()
    [line] = [line for line in done.stdout.splitlines() if "redis policy" in line]
    assert line.split(None, 3) == ["ok", "redis", "policy", "nothing is evicted, persisted"]


@pytest.fixture
def letters(tmp_path) -> list[str]:
    """The ids of three dead letters in the spool of the folder `tmp_path`."""

    async def give_up() -> list[str]:
        spool = Spool(tmp_path / "spool")
        for number in range(3):
            await spool.dead_letter(Entry(f"e-{number}", b"pack"), b"pack", f"reason {number}")
        found = [letter.letter_id for letter in await spool.dead_letters(9)]
        await spool.aclose()
        return found

    return anyio.run(give_up)


def test_dead_letters_are_listed_sent_again_and_deleted(tmp_path, letters):
    """Oldest first, one a line, with the reason and for scripts as JSON; what an id does not name stays."""
    folder = ("--data-dir", tmp_path)
    lines = run("dead-letters", "list", *folder).stdout.splitlines()
    assert lines == [f"{each}  spool  4 bytes  reason {number}" for number, each in enumerate(letters)]
    shown = [
        json.loads(line) for line in run("dead-letters", "list", "--json", "--limit", 2, *folder).stdout.splitlines()
    ]
    assert [(line["letter_id"], line["payload"], line["buffer"]) for line in shown] == [
        (letters[0], 4, "spool"),
        (letters[1], 4, "spool"),
    ]
    done = [
        run("dead-letters", *action, *folder) for action in (("replay", letters[1]), ("drop", "x"), ("drop", "--all"))
    ]
    assert [(each.stdout, each.returncode) for each in done] == [
        ("1 replayed\n", 0),
        ("0 dropped\n", 1),
        ("2 dropped\n", 0),
    ]
    assert run("dead-letters", "list", *folder).stdout == ""


@pytest.mark.parametrize("limit", ["0", "-1", "some", "1.5"])
def test_a_list_of_no_length_is_refused(limit):
    """In one line, not in the traceback of whichever buffer is asked first."""
    done = run("dead-letters", "list", "--limit", limit)
    assert done.returncode == 2
    assert f"expected a whole number from 1, got {limit}" in done.stderr.splitlines()[-1]


def test_a_reader_that_goes_away_is_no_error(start, tmp_path, letters):
    """`fluxgate dead-letters list | head -1` ends without a traceback."""
    process = start("dead-letters", "list", "--data-dir", tmp_path, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(20)) == ("", 1)


class _Keeper(MemoryBuffer):
    """A buffer of one dead letter that can fail, and says whether it was closed."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails, self.closed = fails, False
        self._stream.dead["1"] = DeadLetter.of("1", Entry("e", b"pack"), b"pack", "why")

    async def dead_letters(self, limit: int):
        if self.fails:
            raise BackendUnavailable("memory", "it is gone") from None
        return await super().dead_letters(limit)

    async def aclose(self) -> None:
        self.closed = True
        if self.fails:
            raise BackendUnavailable("memory", "it is gone") from None


@pytest.mark.parametrize("failing", [None, 0, 1, 2])
def test_dead_letters_closes_every_buffer(monkeypatch, capsys, failing):
    """Also where one cannot be asked, and not even be closed; the others' letters count against one limit."""
    buffers = [_Keeper(fails=place == failing) for place in range(3)]
    monkeypatch.setattr(cli, "make_buffers", lambda _: buffers)
    status = cli.main(["dead-letters", "list", "--limit", "2"])
    asked_in_vain = failing in (0, 1)
    assert [buffer.closed for buffer in buffers] == [True] * 3
    said = capsys.readouterr()
    assert (status, len(said.out.splitlines())) == (int(failing is not None), failing if asked_in_vain else 2)
    assert said.err == ("" if failing is None else "fluxgate: memory: it is gone\n")


def test_a_dead_redis_does_not_stop_serve(start):
    """It says so once and serves what is stored."""
    process = start("serve", "--port", free_port(), "--redis-url", "redis://127.0.0.1:1/0")
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("Waiting: redis: ") for line in lines)
    address = next(line.split()[1] for line in lines if line.startswith("Dashboard  "))
    with urllib.request.urlopen(f"{address}/requests") as page:
        assert page.status == 200


@pytest.mark.parametrize("seconds", ["-3", "0", "nan", "inf", "soon"])
def test_a_demo_of_no_length_is_refused(seconds):
    """In the words of the command line, before anything is started."""
    done = run("demo", f"--seconds={seconds}")
    assert done.returncode == 2
    assert f"argument --seconds: expected a number of seconds above 0 and below 1,000,000, got {seconds}" in done.stderr
    assert "Traceback" not in done.stderr
