"""The `fluxgate` command: arguments in, one of the other modules run, every error in one clear line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from fluxgate_mw.buffer.dead_letters import DeadLetters
from fluxgate_mw.doctor import examine, with_cure
from fluxgate_mw.errors import ConfigurationError, FluxGateError
from fluxgate_mw.extras import load
from fluxgate_mw.runtime import make_buffers
from fluxgate_mw.serve import LOOPBACK, flush, serve
from fluxgate_mw.settings import Settings

__all__ = ["main"]

DEFAULT_PORT = 8321
MOST_SECONDS = 1_000_000
_MARKS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: Arguments without the program's name; None = the process's own.

    Returns:
        0; 1 where the work failed; 2 where the arguments or the settings are wrong.
    """
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        return _left_unread()
    except ConfigurationError as error:
        print(f"fluxgate: {error}", file=sys.stderr)
        return 2
    except FluxGateError as error:
        print(f"fluxgate: {with_cure(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _left_unread() -> int:
    """End without a word where whoever read what is printed has gone, as `head` does; no more can be written there.

    Source: docs.python.org, library/signal, "Note on SIGPIPE" (read 2026-11).
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fluxgate",
        description="Say which feature and which user your LLM money goes to.",
        epilog="Every setting is an environment variable FLUXGATE_<NAME>; see the README's table.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _demo_parser(commands)
    common = argparse.ArgumentParser(add_help=False)
    for option in ("redis-url", "store-url", "data-dir"):
        common.add_argument(f"--{option}", metavar=option.partition("-")[2].upper(), help=f"FLUXGATE_{_env(option)}")
    _serve_parser(commands, common)
    flush_parser = commands.add_parser("flush", parents=[common], help="move events from the buffers to the store")
    flush_parser.add_argument("--once", action="store_true", help="end when stream, pending list and spool are empty")
    flush_parser.add_argument("--host", default=LOOPBACK, help="address of the probes; default %(default)s")
    flush_parser.add_argument("--port", type=int, help="serve /healthz, /readyz and /metrics there; 0 takes a free one")
    flush_parser.set_defaults(run=_flush)
    doctor = commands.add_parser("doctor", parents=[common], help="check every configured part")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)
    _dead_letters_parser(commands, common)
    return parser


def _demo_parser(commands: Any) -> None:
    demo = commands.add_parser("demo", help="see it all work, with nothing to install or to pay")
    demo.add_argument("--seconds", type=_seconds, metavar="N", help="end by itself after N seconds, with a summary")
    demo.add_argument("--redis-url", metavar="URL", help="deliver through this Redis instead of the spool")
    demo.add_argument("--data-dir", type=Path, metavar="DIR", help="put everything there; default: a new folder")
    demo.add_argument("--port", type=int, metavar="PORT", help="of the dashboard; default: a free one")
    demo.add_argument("--live", action="store_true", help="call the real service with OPENAI_API_KEY")
    demo.set_defaults(run=_demo)


def _serve_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("serve", parents=[common], help="serve the dashboard, and flush beside it")
    parser.add_argument("--host", default=LOOPBACK, help="default %(default)s; others need FLUXGATE_DASHBOARD_TOKEN")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default %(default)s")
    parser.add_argument("--no-flusher", action="store_true", help="only show what is stored")
    parser.set_defaults(run=_serve)


def _dead_letters_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    letters = commands.add_parser("dead-letters", help="see, send again or delete what no store accepted")
    actions = letters.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", parents=[common], help="show them")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.add_argument("--limit", type=_limit, default=100, help="at most so many; default %(default)s")
    listing.set_defaults(run=_list_letters)
    for name, text in (("replay", "append them to the live stream again"), ("drop", "delete them for good")):
        action = actions.add_parser(name, parents=[common], help=text)
        action.add_argument("ids", nargs="*", metavar="ID", help="which; see `list`")
        action.add_argument("--all", action="store_true", help="every one")
        action.set_defaults(run=_change_letters, action=name)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0 and below {MOST_SECONDS:,}, got {text}")
    return seconds


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def _env(option: str) -> str:
    return option.replace("-", "_").upper()


def _settings(arguments: argparse.Namespace) -> Settings:
    names = ("redis_url", "store_url", "data_dir")
    settings = Settings.load({name: getattr(arguments, name) for name in names})
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return settings


def _say(line: str) -> None:
    print(line, flush=True)


def _demo(arguments: argparse.Namespace) -> int:
    run_demo = load("fluxgate_mw.demo.run:run_demo", extra="demo", needed_for="fluxgate demo")
    make_options = load("fluxgate_mw.demo.run:DemoOptions", extra="demo", needed_for="fluxgate demo")
    names = ("seconds", "redis_url", "data_dir", "live", "port")
    return int(anyio.run(run_demo, make_options(**{name: getattr(arguments, name) for name in names})))


def _serve(arguments: argparse.Namespace) -> int:
    flusher = not arguments.no_flusher
    run = partial(serve, host=arguments.host, port=arguments.port, flusher=flusher, say=_say)
    anyio.run(run, _settings(arguments))
    return 0


def _flush(arguments: argparse.Namespace) -> int:
    run = partial(flush, once=arguments.once, say=_say, host=arguments.host, port=arguments.port)
    anyio.run(run, _settings(arguments))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    findings = anyio.run(examine, _settings(arguments))
    if arguments.json:
        print(msgspec.json.encode(findings).decode())
    else:
        for finding in findings:
            print(f"{_MARKS[finding.verdict]}  {finding.part:<14}  {finding.detail}")
    return 1 if any(finding.verdict == "failed" for finding in findings) else 0


@asynccontextmanager
async def _keepers(settings: Settings) -> AsyncIterator[list[tuple[str, DeadLetters]]]:
    """Give the buffers that keep dead letters, each with its name; all are closed at the end, whatever happens."""
    async with AsyncExitStack() as stack:
        buffers = make_buffers(settings)
        for buffer in buffers:
            stack.push_async_callback(buffer.aclose)
        yield [(buffer.name, buffer) for buffer in buffers if isinstance(buffer, DeadLetters)]


def _list_letters(arguments: argparse.Namespace) -> int:
    async def show() -> None:
        left = arguments.limit
        async with _keepers(_settings(arguments)) as keepers:
            for name, buffer in keepers:
                letters = await buffer.dead_letters(left) if left else ()
                left -= len(letters)
                for letter in letters:
                    fields = msgspec.structs.asdict(letter) | {"payload": len(letter.payload), "buffer": name}
                    print(json.dumps(fields) if arguments.json else _letter_line(fields))

    anyio.run(show)
    return 0


def _letter_line(fields: dict[str, Any]) -> str:
    return f"{fields['letter_id']}  {fields['buffer']}  {fields['payload']} bytes  {fields['reason']}"


def _change_letters(arguments: argparse.Namespace) -> int:
    if bool(arguments.ids) == arguments.all:
        raise ConfigurationError(f"dead-letters {arguments.action}: give ids, or --all")

    async def change() -> int:
        async with _keepers(_settings(arguments)) as keepers:
            return sum([await getattr(buffer, arguments.action)(arguments.ids or None) for _, buffer in keepers])

    changed = anyio.run(change)
    print(f"{changed} {'replayed' if arguments.action == 'replay' else 'dropped'}")
    return 0 if changed or arguments.all else 1


if __name__ == "__main__":
    raise SystemExit(main())
