"""The loopback provider, asked by the real client over real HTTP."""

from __future__ import annotations

import itertools

import openai
import pytest

from fluxgate_mw.demo.ledger import LedgerRow
from tests.openai_server import running_openai

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
FLAT_TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
WITNESS = "[demo user=u-ann feature=POST /translate/{lang}]"


@pytest.fixture
def server(tmp_path):
    """A running provider with an empty ledger."""
    with running_openai(tmp_path) as running:
        yield running


@pytest.fixture
def client(server):
    """The real client, pointed at it."""
    with openai.OpenAI(base_url=server.base_url, api_key="demo") as client:
        yield client


def said(text: str) -> list:
    return [{"role": "user", "content": f"{WITNESS} {text}"}]


def chat(client, text="", model="gpt-4o-mini", **more):
    return client.chat.completions.create(model=model, messages=said(text), **more)


def row(**fields) -> LedgerRow:
    usual = {
        "response_id": None,
        "path": "/chat/completions",
        "stream": False,
        "http_status": 200,
        "user": "u-ann",
        "feature": "POST /translate/{lang}",
        "prompt_tokens": None,
        "completion_tokens": None,
    }
    return LedgerRow(**(usual | fields))


def test_a_plain_chat_is_answered_in_shape_and_written_down(server, client):
    """Body, usage and dated model are as the service sends them, and the ledger holds the same counts."""
    completion = chat(client)
    assert completion.model == "gpt-4o-mini-2024-07-18"
    assert completion.id.startswith("chatcmpl-")
    assert (completion.choices[0].finish_reason, completion.choices[0].message.role) == ("stop", "assistant")
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert completion._request_id.startswith("req_")
    assert server.rows(1) == [
        row(
            response_id=completion.id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        ),
    ]


def test_a_stream_carries_usage_only_when_asked(server, client):
    """Without the wish no chunk has usage; with it the last one has, after nulls on all the others."""
    bare = list(chat(client, stream=True))
    assert all("usage" not in chunk.model_fields_set for chunk in bare)
    asked = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    assert all("usage" in chunk.model_fields_set for chunk in asked)
    assert asked[-1].choices == []
    usage = asked[-1].usage
    assert server.rows(2) == [
        row(response_id=bare[0].id, stream=True),
        row(
            response_id=asked[0].id,
            stream=True,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        ),
    ]


def test_several_choices_come_interleaved(client):
    """With `n` every choice has its first chunk before any is finished, and all share one usage."""
    chunks = list(chat(client, stream=True, n=2, stream_options={"include_usage": True}))
    indexes = [choice.index for chunk in chunks for choice in chunk.choices]
    assert indexes[:4] == [0, 1, 0, 1]
    plain = chat(client, n=3)
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    assert plain.usage.completion_tokens % 3 == 0


def test_a_tool_is_called_when_given_and_not_again_after_its_result(client):
    """The tool call's arguments arrive whole, plain and streamed; with the result in the history the model speaks."""
    plain = chat(client, tools=[TOOL])
    call = plain.choices[0].message.tool_calls[0]
    assert (plain.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert call.function.arguments.startswith('{"location":')
    pieces = [c.choices[0].delta.tool_calls for c in chat(client, tools=[TOOL], stream=True)]
    streamed = "".join(piece[0].function.arguments for piece in pieces if piece)
    assert streamed.startswith('{"location":')
    assert streamed.endswith('"}')
    history = [*said(""), plain.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(model="gpt-4o-mini", messages=history, tools=[TOOL])
    assert after.choices[0].finish_reason == "stop"


def test_limits_filters_and_reasoning_show_in_the_answer(client):
    """A limit below the answer's length ends it with `length`; reasoning tokens are inside the output."""
    short = chat(client, max_tokens=5)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)
    assert chat(client, "[behave content-filter]").choices[0].finish_reason == "content_filter"
    usage = chat(client, model="o4-mini").usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_a_provider_that_omits_usage_is_written_down_without_counts(server, client):
    """No usage in the answer is no count in the ledger, in any form of answer."""
    assert chat(client, "[behave no-usage]").usage is None
    list(chat(client, "[behave no-usage]", stream=True, stream_options={"include_usage": True}))
    assert {(r.prompt_tokens, r.completion_tokens) for r in server.rows(2)} == {(None, None)}


def test_responses_plain_and_incomplete(server, client):
    """A response has its own shape; input and output tokens go into the ledger's two columns."""
    done = client.responses.create(model="gpt-4o-mini", input=f"{WITNESS} hello")
    assert (done.status, done.output_text != "") == ("completed", True)
    cut = client.responses.create(model="gpt-4o-mini", input=f"{WITNESS} hello", max_output_tokens=4)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    called = client.responses.create(model="gpt-4o-mini", input=f"{WITNESS} weather", tools=[FLAT_TOOL])
    assert called.output[0].type == "function_call"
    assert server.rows(3)[:2] == [
        row(
            response_id=answer.id,
            path="/responses",
            prompt_tokens=answer.usage.input_tokens,
            completion_tokens=answer.usage.output_tokens,
        )
        for answer in (done, cut)
    ]


def test_responses_stream_in_the_real_order(server, client):
    """Events come in the service's order, numbered, and the last one has the usage."""
    events = list(client.responses.create(model="o4-mini", input=f"{WITNESS} hello", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [kind.removeprefix("response.") for kind, _ in itertools.groupby(event.type for event in events)]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    usage = events[-1].response.usage
    expected = row(
        response_id=events[0].response.id,
        path="/responses",
        stream=True,
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
    )
    assert server.rows(1) == [expected]


def test_the_stream_helper_of_the_client_understands_the_events(client):
    """The client's own accumulator takes the events of a text and of a tool call without complaint."""
    with client.responses.stream(model="gpt-4o-mini", input="hello") as stream:
        assert stream.get_final_response().output_text
    with client.responses.stream(model="gpt-4o-mini", input="weather", tools=[FLAT_TOOL]) as stream:
        assert stream.get_final_response().output[0].arguments


def test_embeddings_have_input_tokens_only(server, client):
    """One vector a text, in the encoding that the client asks for; the answer has no id and no output count."""
    answer = client.embeddings.create(model="text-embedding-3-small", input=[WITNESS, "two"], dimensions=8)
    assert [len(item.embedding) for item in answer.data] == [8, 8]
    assert server.rows(1) == [row(path="/embeddings", prompt_tokens=answer.usage.prompt_tokens)]


def test_the_list_of_models_is_no_call(server, client):
    """Models are listed, and nothing is written down."""
    assert "gpt-4o" in [model.id for model in client.models.list()]
    assert server.rows() == []


@pytest.mark.parametrize(
    ("behaviour", "error", "status", "tries"),
    [
        ("error-400", openai.BadRequestError, 400, 1),
        ("error-401", openai.AuthenticationError, 401, 1),
        ("error-404", openai.NotFoundError, 404, 1),
        ("error-429", openai.RateLimitError, 429, 3),
        ("error-500", openai.InternalServerError, 500, 3),
    ],
)
def test_errors_reach_the_client_as_its_own_and_every_try_is_a_row(server, client, behaviour, error, status, tries):
    """Each error is the class that the client has for it, with a message; a retried one is a row for each try."""
    with pytest.raises(error) as caught:
        chat(client, f"[behave {behaviour}]")
    assert caught.value.body["message"]
    assert server.rows(tries) == [row(http_status=status)] * tries


@pytest.mark.parametrize(("behaviour", "status"), [("rate-limit", 429), ("server-error", 500)])
def test_a_first_try_that_fails_is_a_row_of_its_own(server, client, behaviour, status):
    """The client's retry is answered, and both tries are in the ledger."""
    completion = chat(client, f"[behave {behaviour}]", stream=True)
    first = next(iter(completion))
    completion.close()
    assert [(r.http_status, r.response_id) for r in server.rows(2)] == [(status, None), (200, first.id)]


def test_natural_mistakes_get_natural_errors(server, client):
    """A wrong key, a model that does not exist and a missing field need no marker."""
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="wrong"))
    with pytest.raises(openai.NotFoundError, match="missing-model"):
        chat(client, model="missing-model")
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="gpt-4o", messages=[])


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_a_cut_stream_gives_one_part_and_then_breaks(server, client, path):
    """The connection is dropped after the first chunk, which has the id; the ledger has the id and no counts."""
    behave = {"extra_headers": {"x-demo-behaviour": "cut"}}
    if path == "/responses":
        stream = client.responses.create(model="gpt-4o", input=WITNESS, stream=True, **behave)
        first = next(iter(stream)).response.id
    else:
        stream = chat(client, stream=True, **behave)
        first = next(iter(stream)).id
    with pytest.raises(Exception, match=r"incomplete chunked read|Connection error"):
        list(stream)
    assert server.rows(1) == [row(response_id=first, path=path, stream=True)]


def test_a_client_that_goes_away_ends_the_call_without_counts(server, client):
    """A stalled stream ends when its reader closes it, and is written down as never having carried usage."""
    stream = chat(client, "[behave stall]", stream=True, stream_options={"include_usage": True})
    chunks = list(itertools.islice(stream, 3))
    stream.close()
    assert server.rows(1) == [row(response_id=chunks[0].id, stream=True)]


def test_the_same_seed_gives_the_same_answers(tmp_path):
    """Two servers with one seed say the same with the same ids; another seed says something else."""

    def answer(name: str, seed: int):
        (tmp_path / name).mkdir()
        with running_openai(tmp_path / name, seed=seed) as server:
            with openai.OpenAI(base_url=server.base_url, api_key="demo") as client:
                completion = chat(client)
            return completion.id, completion.choices[0].message.content, completion.usage

    assert answer("one", 7) == answer("two", 7)
    assert answer("three", 8)[0] != answer("four", 7)[0]
