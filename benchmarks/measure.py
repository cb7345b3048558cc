"""What every benchmark shares: interleaved rounds, paired differences, medians with their spread, one JSON line.

The machine is never quiet, so no figure stands alone: contenders take turns within each round, and each is compared
with the one that ran beside it in that very round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

__all__ = [
    "CLOCKS",
    "added_over",
    "against",
    "interleaved",
    "microseconds",
    "options",
    "paired",
    "print_line",
    "print_table",
    "summary",
]

T = TypeVar("T")
Summary = dict[str, float]
Samples = dict[str, list[float]]

CLOCKS: Final[Mapping[str, Callable[[], int]]] = {
    "wall": time.perf_counter_ns,
    "cpu": time.process_time_ns,
    "thread": time.thread_time_ns,
}


def options(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the flags of every benchmark.

    Args:
        description: One line for `--help`.
        rounds: How many rounds there are unless the caller says otherwise; never fewer than 2.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="few and short rounds, for CI: says that it works, no more"
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds (default: %(default)s)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu, thread: less disturbed by a loaded machine"
    )
    return parser


def summary(values: Sequence[float], digits: int = 3) -> Summary:
    """Return median, quartiles and extremes of at least two values, rounded."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    named = {"median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in named.items()}


def microseconds(run: Callable[[int], object], count: int, clock: str = "wall") -> float:
    """Return the microseconds that one of `count` operations takes, all done by one `run(count)`.

    Args:
        run: Does so many operations.
        count: How many.
        clock: A key of `CLOCKS`: `wall`; `cpu` for the processor time of all threads of this process, which the load
            of other processes disturbs less; `thread` for that of the calling thread alone.
    """
    now = CLOCKS[clock]
    start = now()
    run(count)
    return (now() - start) / count / 1_000


def interleaved(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return the figures of each contender, one a round.

    Every round asks all of them, each round beginning with another, so that what else the machine does and who comes
    first meet all alike. One round more is run before and thrown away.
    """
    names = list(contenders)
    samples: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            figure = contenders[name]()
            if number >= 0:
                samples[name].append(figure)
    return samples


def paired(samples: Samples, name: str, base: str, join: Callable[[float, float], float]) -> list[float]:
    """Return `join(figure, figure of the base)` for each round."""
    return [join(ours, theirs) for ours, theirs in zip(samples[name], samples[base], strict=True)]


def added_over(samples: Samples, name: str, other: str, base: str = "bare") -> Summary:
    """Return how many times as much `name` adds to the base as `other` does, round by round."""
    rounds = zip(samples[name], samples[other], samples[base], strict=True)
    return summary([(figure - bare) / (others - bare) for figure, others, bare in rounds if others != bare])


def against(samples: Samples, base: str = "bare", *, per: int = 1, unit: str = "us") -> dict[str, dict[str, Summary]]:
    """Return for each contender its figures, what it adds to the base, and its ratio to it, round by round.

    Args:
        samples: As `interleaved` returns them.
        base: The contender that the others are compared with; nothing is added to it.
        per: Parts of one operation (the chunks of a stream): what is added is of one part.
        unit: Of the samples; names the figures: `us`, `added_us`.
    """
    figures: dict[str, dict[str, Summary]] = {}
    for name, values in samples.items():
        figures[name] = {unit: summary(values)}
        if name != base:
            figures[name][f"added_{unit}"] = summary(paired(samples, name, base, lambda a, b: (a - b) / per))
            figures[name]["ratio"] = summary(paired(samples, name, base, lambda a, b: a / b))
    return figures


def print_line(benchmark: str, figures: Mapping[str, Any]) -> None:
    """Print the one JSON line: the figures, and on what machine and under what load they were taken."""
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }
    print(json.dumps({"benchmark": benchmark, **figures, "machine": machine}, allow_nan=False), flush=True)


def print_table(title: str, rows: Mapping[str, Mapping[str, Summary]], columns: Sequence[str]) -> None:
    """Write medians with their quartiles to stderr, for people."""
    print(f"\n{title}", file=sys.stderr)
    print(f"  {'':<36}" + "".join(f"{column:>34}" for column in columns), file=sys.stderr)
    for name, row in rows.items():
        cells = [_cell(row.get(column)) for column in columns]
        if any(cells):
            print(f"  {name:<36}" + "".join(f"{cell:>34}" for cell in cells), file=sys.stderr)


def _cell(value: Summary | None) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value["median"]) >= 1_000 else 2
    median, low, high = (f"{value[name]:,.{digits}f}" for name in ("median", "q1", "q3"))
    return f"{median} [{low} .. {high}]"
