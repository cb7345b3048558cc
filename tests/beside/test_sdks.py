"""SDKs that stand on the openai client: every HTTP call that they make is one event, of whoever asked for it."""

from __future__ import annotations

import asyncio

import agents
import litellm
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from fluxgate_mw import FluxGate, context
from fluxgate_mw.testing import capture_events
from tests.beside.served import served
from tests.beside.tools_service import use_tools

MODEL = "gpt-4o-mini"
KEY = "sk-unused"
PROMPT = "Say blue"
OPENAI_AGENTS = (agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel)
PYDANTIC_AI = (OpenAIChatModel, OpenAIResponsesModel)

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier:UserWarning"),  # litellm's own types
]


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"sunny in {city}"


class _OpenAIAgents:
    def __init__(self, kind, tools):
        self.kind = kind
        self.tools = [agents.function_tool(weather)] if tools else []

    def _agent(self, client):
        return agents.Agent(name="a", model=self.kind(MODEL, openai_client=client), tools=self.tools)

    async def plain(self, base_url):
        async with openai.AsyncOpenAI(api_key=KEY, base_url=base_url) as client:
            result = await agents.Runner.run(self._agent(client), PROMPT)
            return result.final_output, result.to_input_list()

    async def streamed(self, base_url):
        async with openai.AsyncOpenAI(api_key=KEY, base_url=base_url) as client:
            result = agents.Runner.run_streamed(self._agent(client), PROMPT)
            kinds = [event.type async for event in result.stream_events()]
            return kinds, result.final_output, result.to_input_list()


class _PydanticAI:
    def __init__(self, kind, tools):
        self.kind = kind
        self.tools = [weather] if tools else []

    def _agent(self, client):
        return Agent(self.kind(MODEL, provider=OpenAIProvider(openai_client=client)), tools=self.tools)

    async def plain(self, base_url):
        async with openai.AsyncOpenAI(api_key=KEY, base_url=base_url) as client:
            result = await self._agent(client).run(PROMPT)
            return result.output, result.usage

    async def streamed(self, base_url):
        async with (
            openai.AsyncOpenAI(api_key=KEY, base_url=base_url) as client,
            self._agent(client).run_stream(PROMPT) as result,
        ):
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]


def _langchain(base_url, **options):
    return ChatOpenAI(model=MODEL, api_key=KEY, base_url=base_url, **options)


def _told(message):
    return message.content, message.tool_calls, message.usage_metadata


async def langchain_plain(base_url):
    return _told(_langchain(base_url).invoke(PROMPT))


async def langchain_asynchronous(base_url):
    return _told(await _langchain(base_url).ainvoke(PROMPT))


async def langchain_streamed(base_url):
    return [_told(chunk) for chunk in _langchain(base_url).stream(PROMPT)]


async def langchain_streamed_with_usage(base_url):
    return [_told(chunk) for chunk in _langchain(base_url, stream_usage=True).stream(PROMPT)]


async def langchain_asynchronous_streamed(base_url):
    return [_told(chunk) async for chunk in _langchain(base_url).astream(PROMPT)]


async def langchain_responses(base_url):
    return _told(_langchain(base_url, use_responses_api=True).invoke(PROMPT))


async def langchain_tools(base_url):
    model = _langchain(base_url).bind_tools([weather])
    asking = model.invoke([HumanMessage(PROMPT)])
    (call,) = asking.tool_calls
    said = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    return _told(asking), _told(model.invoke([HumanMessage(PROMPT), asking, said]))


async def langchain_embeddings(base_url):
    embeddings = OpenAIEmbeddings(api_key=KEY, base_url=base_url, check_embedding_ctx_length=False)
    return embeddings.embed_query(PROMPT)


MESSAGES = [{"role": "user", "content": PROMPT}]


def _litellm(base_url, **options):
    return {"model": f"openai/{MODEL}", "messages": MESSAGES, "api_key": KEY, "api_base": base_url, **options}


def _litellm_told(result):
    return result.choices[0].message.content, result.usage.prompt_tokens, result.usage.completion_tokens


async def litellm_with_client(base_url):
    with openai.OpenAI(api_key=KEY, base_url=base_url) as client:
        return _litellm_told(litellm.completion(**_litellm(base_url, client=client)))


async def litellm_with_client_streamed(base_url):
    with openai.OpenAI(api_key=KEY, base_url=base_url) as client:
        chunks = litellm.completion(**_litellm(base_url, client=client, stream=True))
        return [chunk.choices[0].delta.content for chunk in chunks]


async def litellm_plain(base_url):
    return _litellm_told(litellm.completion(**_litellm(base_url)))


async def litellm_streamed(base_url):
    chunks = litellm.completion(**_litellm(base_url, stream=True))
    return [chunk.choices[0].delta.content for chunk in chunks]


async def litellm_asynchronous(base_url):
    return _litellm_told(await litellm.acompletion(**_litellm(base_url)))


async def litellm_asynchronous_streamed(base_url):
    chunks = await litellm.acompletion(**_litellm(base_url, stream=True))
    return [chunk.choices[0].delta.content async for chunk in chunks]


def _named(kinds, made):
    name = made.__name__.lstrip("_")
    return [
        pytest.param(
            getattr(made(kind, tools), way),
            2 if tools else 1,
            id=f"{name}-{kind.__name__}-{way}{'-tools' * tools}",
        )
        for kind in kinds
        for way in ("plain", "streamed")
        for tools in (False, True)
    ]


WAYS = [
    *_named(OPENAI_AGENTS, _OpenAIAgents),
    *_named(PYDANTIC_AI, _PydanticAI),
    *(
        pytest.param(way, 2 if way is langchain_tools else 1, id=way.__name__)
        for way in (
            langchain_plain,
            langchain_asynchronous,
            langchain_streamed,
            langchain_streamed_with_usage,
            langchain_asynchronous_streamed,
            langchain_responses,
            langchain_tools,
            langchain_embeddings,
            litellm_with_client,
            litellm_with_client_streamed,
            litellm_plain,
            litellm_streamed,
            litellm_asynchronous,
            litellm_asynchronous_streamed,
        )
    ),
]


@pytest.mark.parametrize(("way", "calls"), WAYS)
def test_every_http_call_is_one_event_and_the_result_is_what_it_is_without_us(way, calls):
    """One event a call, with the reported tokens and the ambient user and feature; the SDK gives the same result."""
    with served() as (address, service), asyncio.Runner() as runner:
        use_tools(service)
        bare = runner.run(way(f"{address}/v1"))
        asked = len(service.requests)
        fg = FluxGate(provider_hosts={address.removeprefix("http://"): "openai"})
        with capture_events() as events:
            got = runner.run(_as_somebody(way, f"{address}/v1"))
        assert got == bare
        assert asked == calls
        assert len(service.requests) - asked == calls
        assert [(event.status, event.user.id, event.feature) for event in events] == [("SUCCESS", "u-1", "sdk")] * calls
        counted = (20, None) if "embeddings" in way.__name__ else (20, 7)
        assert [(event.input_tokens, event.output_tokens) for event in events] == [counted] * calls
        assert {event.usage_source for event in events} == {"provider"}
        assert fg.statistics().notes == {}


async def _as_somebody(way, base_url):
    with context(user="u-1", feature="sdk"):
        return await way(base_url)
