"""Make the same calls with a peer, with us, with both or with neither, in a process of its own.

`python -m tests.beside.playing OUT NAME ...` makes every call with nothing on, then again after turning on each that
is named (`us`, or a peer), and writes to the file OUT, as JSON, a list with one round each: what every call gave its
caller, and what those that were on saw of it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import copy_context
from pathlib import Path
from typing import Any, Final

import openai

from fluxgate_mw import FluxGate, context
from fluxgate_mw.testing import capture_events
from tests.beside.peers import MADE, Peer
from tests.beside.served import served
from tests.calls.clients import dumped, raised
from tests.calls.service import answer

ASKED: Final[dict[str, Any]] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say blue"}]}
ASKED_RESPONSE: Final[dict[str, Any]] = {"model": "gpt-4o-mini", "input": "Say blue"}
ASKED_EMBEDDING: Final[dict[str, Any]] = {"model": "text-embedding-3-small", "input": "blue"}
REFUSED: Final = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}


def _read(stream: Any) -> list[Any]:
    return [dumped(each) for each in stream]


async def _aread(stream: Any) -> list[Any]:
    return [dumped(each) async for each in stream]


def plain(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    result = client.chat.completions.create(**ASKED)
    return [type(result).__name__, dumped(result), result._request_id]


def streamed(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    return _read(client.chat.completions.create(**ASKED, stream=True))


def streamed_with_usage(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    options: Any = {"include_usage": True}
    return _read(client.chat.completions.create(**ASKED, stream=True, stream_options=options))


def stream_in_with(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        return _read(stream)


def raw(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    response = client.chat.completions.with_raw_response.create(**ASKED)
    return [type(response).__name__, response.status_code, response.request_id, dumped(response.parse())]


def raw_streamed(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    response = client.chat.completions.with_raw_response.create(**ASKED, stream=True)
    return [response.status_code, _read(response.parse())]


def streaming_response(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    with client.chat.completions.with_streaming_response.create(**ASKED) as response:
        return [response.status_code, dumped(response.parse())]


def responses(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    return dumped(client.responses.create(**ASKED_RESPONSE))


def responses_streamed(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    return _read(client.responses.create(**ASKED_RESPONSE, stream=True))


def embeddings(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    return dumped(client.embeddings.create(**ASKED_EMBEDDING))


def refused(client: openai.OpenAI, _aclient: openai.AsyncOpenAI) -> Any:
    try:
        client.chat.completions.create(**{**ASKED, "model": "refused"})
    except openai.BadRequestError as error:
        return {name: str(value) for name, value in raised(error).items()}


def asynchronous(_client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> Any:
    async def call() -> Any:
        result = await aclient.chat.completions.create(**ASKED)
        return [type(result).__name__, dumped(result), result._request_id]

    return call()


def asynchronous_streamed(_client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> Any:
    async def call() -> Any:
        return await _aread(await aclient.chat.completions.create(**ASKED, stream=True))

    return call()


def asynchronous_raw(_client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> Any:
    async def call() -> Any:
        response = await aclient.chat.completions.with_raw_response.create(**ASKED)
        return [response.status_code, response.request_id, dumped(response.parse())]

    return call()


def asynchronous_responses(_client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> Any:
    async def call() -> Any:
        return dumped(await aclient.responses.create(**ASKED_RESPONSE))

    return call()


CALLS: Final[Mapping[str, Callable[[openai.OpenAI, openai.AsyncOpenAI], Any]]] = {
    call.__name__: call
    for call in (
        plain,
        streamed,
        streamed_with_usage,
        stream_in_with,
        raw,
        raw_streamed,
        streaming_response,
        responses,
        responses_streamed,
        embeddings,
        refused,
        asynchronous,
        asynchronous_streamed,
        asynchronous_raw,
        asynchronous_responses,
    )
}


def _event(event: Any) -> dict[str, Any]:
    names = ("status", "request_model", "input_tokens", "output_tokens", "usage_source", "feature")
    return {**{name: getattr(event, name) for name in names}, "user": event.user and event.user.id}


def _unnumbered(got: Any) -> Any:
    """Return it without the service's running numbers: an id that comes twice would be one response to a peer."""
    return re.sub(r"resp_\d+", "resp_", json.dumps(got, default=str))


def _played(address: str, runner: asyncio.Runner, peer: Peer | None) -> dict[str, Any]:
    base_url = f"{address}/v1"
    client = openai.OpenAI(api_key="sk-unused", base_url=base_url, max_retries=0)
    aclient = openai.AsyncOpenAI(api_key="sk-unused", base_url=base_url, max_retries=0)
    played = {}
    for name, call in CALLS.items():
        before = len(peer.seen()) if peer else 0
        request = peer.request() if peer else nullcontext()
        with capture_events() as events, context(user="u-1", feature="beside"), request:
            got = call(client, aclient)
            got = runner.run(got, context=copy_context()) if asyncio.iscoroutine(got) else got
            gc.collect()
        seen = peer.seen()[before:] if peer else []
        played[name] = {"got": _unnumbered(got), "events": [_event(event) for event in events], "seen": seen}
    runner.run(aclient.close())
    client.close()
    return played


def main(out: str, *names: str) -> None:
    """Make the calls, turn on the next that is named, make them again, and write what came of each round."""
    peer = None
    with served() as (address, service), asyncio.Runner() as runner:
        service.answers["/chat/completions"] = lambda asked: _refusing(service, asked)
        rounds = [_played(address, runner, peer)]
        for name in names:
            if name == "us":
                FluxGate(provider_hosts={address.removeprefix("http://"): "openai"})
            else:
                peer = MADE[name](address)
                peer.on()
            rounds.append(_played(address, runner, peer))
        if peer is not None:
            peer.close()
    Path(out).write_text(json.dumps(rounds))


def _refusing(service: Any, asked: Any) -> Any:
    if asked["model"] == "refused":
        return answer(400, REFUSED)
    return service._usual("POST", "/chat/completions", asked)


if __name__ == "__main__":
    main(*sys.argv[1:])
