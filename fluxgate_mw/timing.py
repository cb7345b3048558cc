"""The `Server-Timing` value that tells a response's reader what its calls cost."""

from __future__ import annotations

from fluxgate_mw.ambient import RequestContext
from fluxgate_mw.event import usd

__all__ = ["server_timing"]


def server_timing(request: RequestContext) -> str:
    """Return `llm;desc="3 calls $0.0042";dur=940` for the calls that have ended in this request.

    Source: Server Timing, W3C Working Draft, section 3 (metric name, `desc`, `dur` in milliseconds).
    """
    noun = "call" if request.calls == 1 else "calls"
    cost = f"{usd(request.cost_nanos):.4f}"
    return f'llm;desc="{request.calls} {noun} ${cost}";dur={request.latency_ms:.0f}'
