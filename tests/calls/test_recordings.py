"""Recorded answers of the service, replayed through the real client in every way that it can be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.calls.clients import WAYS, Asked, Reply, Wire, recorded

RECORDINGS = json.loads(Path(__file__).parents[1].joinpath("data/openai_recordings.json").read_text())["recordings"]
RESOURCES = {"/v1/chat/completions": "chat.completions", "/v1/embeddings": "embeddings", "/v1/responses": "responses"}


def name_of(recording: dict[str, Any]) -> str:
    name: str = recording["name"]
    return name


def reply_to(recording: dict[str, Any]) -> Reply:
    """Return the recorded answer, streams in parts of 100 bytes."""
    response = recording["response"]
    body = response["body"].encode()
    size = 100 if "event-stream" in response["headers"]["content-type"] else len(body)
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return Reply(parts, status=response["status"], headers=response["headers"])


def asked(recording: dict[str, Any]) -> Asked:
    request = recording["request"]
    return Asked(RESOURCES[request["path"]], request["body"])


def documents(recording: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every JSON document of the recorded answer."""
    body = recording["response"]["body"]
    if "event-stream" not in recording["response"]["headers"]["content-type"]:
        return [json.loads(body)]
    datas = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    found = [json.loads(data) for data in datas if data != "[DONE]"]
    return [document.get("response", document) for document in found]


def first(names: tuple[str, ...], block: dict[str, Any]) -> Any:
    return next((block[name] for name in names if name in block), None)


def said(recording: dict[str, Any]) -> dict[str, Any]:
    """Return what the recording says of itself, read with none of our code."""
    found = documents(recording)
    usages = [document["usage"] for document in found if document.get("usage")]
    usage = usages[-1] if usages else {}
    details_in = first(("prompt_tokens_details", "input_tokens_details"), usage) or {}
    details_out = first(("completion_tokens_details", "output_tokens_details"), usage) or {}
    last = [document for document in found if "model" in document][-1:]
    return {
        "input_tokens": first(("prompt_tokens", "input_tokens"), usage),
        "output_tokens": first(("completion_tokens", "output_tokens"), usage),
        "cache_read_input_tokens": details_in.get("cached_tokens"),
        "reasoning_output_tokens": details_out.get("reasoning_tokens"),
        "response_model": last[0]["model"] if last else None,
        "response_id": last[0].get("id") if last else None,
    }


def status_said(recording: dict[str, Any]) -> str:
    found = documents(recording)
    if recording["response"]["status"] >= 400:
        return "ERROR"
    reasons = [choice.get("finish_reason") for document in found for choice in document.get("choices", ())]
    reasons += [(document.get("incomplete_details") or {}).get("reason") for document in found]
    return "MAX_TOKENS" if {"length", "max_output_tokens"} & set(reasons) else "SUCCESS"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recording", RECORDINGS, ids=name_of)
def test_a_recording_replayed(recording, way):
    """The caller gets what he gets without us, and the event says what the recording says (dd-trace-py#7865)."""
    ask = getattr(asked(recording), way)
    without = ask(Wire(reply_to(recording)))
    wire = Wire(reply_to(recording))
    with recorded() as events:
        got = ask(wire)
    assert got == without
    [event] = events
    assert event.status == status_said(recording)
    assert event.http_status == recording["response"]["status"]
    assert event.request_model == recording["request"]["body"]["model"]
    assert event.stream is bool(recording["request"]["body"].get("stream"))
    assert event.retries == 0
    facts = said(recording)
    assert {name: getattr(event, name) for name in facts} == facts
    assert event.usage_source == ("none" if facts["input_tokens"] is None else "provider")
    assert (event.cost_nanos is None) is (event.usage_source == "none")


@pytest.mark.parametrize("recording", RECORDINGS, ids=name_of)
def test_the_request_that_is_sent(recording):
    """What reaches the service is what the caller said, and beside it at most that usage be streamed."""
    wire = Wire(reply_to(recording))
    with recorded():
        asked(recording).plain(wire)
    bare = Wire(reply_to(recording))
    asked(recording).plain(bare)
    [body], [expected] = wire.sent, bare.sent
    if body.get("stream") and recording["request"]["path"] == "/v1/chat/completions":
        assert body.pop("stream_options") == {"include_usage": True}
        expected.pop("stream_options", None)
    assert body == expected
