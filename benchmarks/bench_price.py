"""What a price costs: ours against `genai_prices.calc_price`, in turns in one run. Prints one JSON line.

    python benchmarks/bench_price.py [--quick]

Times are microseconds a price, over four models of three providers; each round times both, so that what else the
machine does meets both. Memory is what the import and the first price of each keep in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import genai_prices

from fluxgate_mw.event import TokenUsage
from fluxgate_mw.pricing import price

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
MODELS = (
    ("openai", "gpt-4o-mini"),
    ("openai", "gpt-5.2-2025-12-11"),
    ("google", "gemini-2.5-pro"),
    ("anthropic", "claude-sonnet-4-5"),
)
OURS = TokenUsage(input_tokens=1200, output_tokens=150, cache_read_input_tokens=400)
THEIRS = genai_prices.Usage(input_tokens=1200, output_tokens=150, cache_read_tokens=400)

MEMORY = """
import sys, tracemalloc
from datetime import datetime, UTC
from fluxgate_mw.event import TokenUsage
tracemalloc.start()
if sys.argv[1] == "ours":
    from fluxgate_mw.pricing import price
    price("openai", "gpt-4o-mini", TokenUsage(input_tokens=1), at=datetime.now(UTC))
else:
    import genai_prices
    genai_prices.calc_price(genai_prices.Usage(input_tokens=1), "gpt-4o-mini", provider_id="openai")
print(tracemalloc.get_traced_memory()[0] // 1024)
"""


def _ours() -> None:
    for provider, model in MODELS:
        price(provider, model, OURS, at=AT)


def _theirs() -> None:
    for provider, model in MODELS:
        genai_prices.calc_price(THEIRS, model, provider_id=provider, genai_request_timestamp=AT)


def _microseconds(run: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / (repeats * len(MODELS)) * 1e6


def _summary(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3), "min": round(min(values), 3)}


def _kilobytes(whose: str) -> int:
    done = subprocess.run([sys.executable, "-c", MEMORY, whose], check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description="Time of a price, ours against genai-prices.")
    parser.add_argument("--quick", action="store_true", help="few and short rounds, for CI")
    rounds, repeats = (7, 100) if parser.parse_args().quick else (31, 1000)
    _ours()
    _theirs()
    times = [(_microseconds(_ours, repeats * 10), _microseconds(_theirs, repeats)) for _ in range(rounds)]
    figures = {
        "benchmark": "price",
        "rounds": rounds,
        "ours_us": _summary([ours for ours, _ in times]),
        "genai_prices_us": _summary([theirs for _, theirs in times]),
        "ratio": _summary([theirs / ours for ours, theirs in times]),
        "ours_kb": _kilobytes("ours"),
        "genai_prices_kb": _kilobytes("genai_prices"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
