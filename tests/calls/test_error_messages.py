"""What of a refusal is kept: what the provider says as its message, and no body that may echo the prompt.

FastAPI-based servers (vLLM, LiteLLM) answer 422 with the input in it, which older clients make the error's message.
"""

from __future__ import annotations

import json

import pytest

from tests.calls.clients import ASKED, Asked, Reply, Wire, recorded

BODIES = {
    "text": b"you asked: my secret",
    "html": b"<html><p>my secret</p></html>",
    "detail": json.dumps({"detail": [{"loc": ["body"], "msg": "bad", "input": "my secret"}]}).encode(),
    "a list": json.dumps(["my secret"]).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_body_of_a_refusal_is_no_message(name):
    """What is not said as an error's message is not kept as one."""
    with recorded() as events:
        Asked("chat.completions", ASKED).plain(Wire(Reply(BODIES[name], status=422)))
    assert events[0].http_status == 422
    assert "secret" not in (events[0].error_message or "")
