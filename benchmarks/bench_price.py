"""What a price costs: ours against `genai_prices.calc_price`, in turns in one run. Prints one JSON line.

    python benchmarks/bench_price.py [--quick] [--rounds N]

Times are microseconds a price, over four models of three providers; each round times both, so that what else the
machine does meets both. Memory is what the import and the first price of each add to the resident size of a fresh
process (Linux).
"""

from __future__ import annotations

import operator
import subprocess
import sys
from datetime import UTC, datetime

import genai_prices
from measure import interleaved, microseconds, options, paired, print_line, print_table, summary

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
import os, sys
from datetime import datetime, UTC
from fluxgate_mw.event import TokenUsage
def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident_bytes()
if sys.argv[1] == "ours":
    from fluxgate_mw.pricing import price
    price("openai", "gpt-4o-mini", TokenUsage(input_tokens=1), at=datetime.now(UTC))
else:
    import genai_prices
    genai_prices.calc_price(genai_prices.Usage(input_tokens=1), "gpt-4o-mini", provider_id="openai")
print((resident_bytes() - before) // 1024)
"""


def _ours(prices: int) -> None:
    for _ in range(prices // len(MODELS)):
        for provider, model in MODELS:
            price(provider, model, OURS, at=AT)


def _theirs(prices: int) -> None:
    for _ in range(prices // len(MODELS)):
        for provider, model in MODELS:
            genai_prices.calc_price(THEIRS, model, provider_id=provider, genai_request_timestamp=AT)


def _kilobytes(whose: str) -> int:
    done = subprocess.run([sys.executable, "-c", MEMORY, whose], check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    """Run the rounds and print the figures."""
    arguments = options("Time of a price, ours against genai-prices.", rounds=31).parse_args()
    rounds, prices = (min(arguments.rounds, 7), 400) if arguments.quick else (arguments.rounds, 4_000)
    contenders = {
        "ours": lambda: microseconds(_ours, prices * 10, arguments.clock),
        "genai_prices": lambda: microseconds(_theirs, prices, arguments.clock),
    }
    samples = interleaved(contenders, rounds)
    rows = {name: {"us": summary(values)} for name, values in samples.items()}
    print_table("microseconds a price", rows, ["us"])
    figures = {
        "rounds": rounds,
        "ours_us": rows["ours"]["us"],
        "genai_prices_us": rows["genai_prices"]["us"],
        "ratio": summary(paired(samples, "genai_prices", "ours", operator.truediv)),
        "ours_kb": _kilobytes("ours"),
        "genai_prices_kb": _kilobytes("genai_prices"),
    }
    print_line("price", figures)


if __name__ == "__main__":
    main()
