"""Virtual environments of their own for the libraries that ours is measured beside, made by the benchmark itself.

Each peer gets what we need in the version that runs here, and itself; the benchmark then runs in there with
`--only NAME`, so that the bare contender, ours and the peer share one process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Peer", "add_options", "run_peers"]

ROOT = Path(__file__).resolve().parent.parent
_PINNED = ("openai", "starlette")


@dataclass(frozen=True)
class Peer:
    """A library to measure beside ours.

    Args:
        requirements: What to install; the first is the library itself. Empty: it is here already.
        start: Run in the peer's environment: sets it up as its documentation says, with exporters that send nothing,
            and returns what the benchmark takes from it.
    """

    requirements: tuple[str, ...]
    start: Callable[[], Any]


def add_options(parser: argparse.ArgumentParser, peers: Mapping[str, Peer]) -> None:
    """Add the flags that choose peers."""
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=f"also measure these, or all of: {', '.join(peers)}")
    parser.add_argument("--peers-dir", type=Path, help="keep the environments here (default: a temporary folder)")
    parser.add_argument("--only", choices=peers, help="measure this one in this process; it must be installed")


def run_peers(script: str, peers: Mapping[str, Peer], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the benchmark prints in each peer's environment; `{"error": ...}` where it cannot be had.

    Args:
        script: The benchmark's own file.
        peers: All there are.
        arguments: As parsed: which of them, where, and what to pass on.

    Raises:
        SystemExit: A name is not among the peers.
    """
    wanted = arguments.peers or list(peers)
    if unknown := set(wanted) - set(peers):
        raise SystemExit(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(peers)}")
    passed_on = ["--rounds", str(arguments.rounds), "--clock", arguments.clock] + ["--quick"] * arguments.quick
    with tempfile.TemporaryDirectory(prefix="fluxgate-peers-") as temporary:
        folder = (arguments.peers_dir or Path(temporary)).absolute()
        return {name: _measure(script, name, peers[name], folder, passed_on) for name in wanted}


def _measure(script: str, name: str, peer: Peer, folder: Path, passed_on: Sequence[str]) -> Any:
    try:
        print(f"peer {name}: installing", file=sys.stderr)
        python = _environment(folder / name, peer.requirements)
        print(f"peer {name}: running", file=sys.stderr)
        return json.loads(_output([str(python), script, "--only", name, *passed_on]))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"status {error.returncode}"}


def _output(command: Sequence[str]) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=variables, timeout=1_800)
    return done.stdout


def _environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Return the interpreter of the peer's environment, made unless it was made for the same requirements before."""
    needed = [*_ours(), *requirements]
    made_for = folder / "requirements.json"
    python = folder / "bin" / "python"
    if not made_for.exists() or json.loads(made_for.read_text()) != needed:
        venv.create(folder, clear=True, with_pip=False)
        _output([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *needed])
        made_for.write_text(json.dumps(needed))
    return python


def _ours() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(f"{name}=={version(name)}" for name in _PINNED)]
