"""Every billable call of the client is exactly one event, by whatever way it is made; nothing else is."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import openai
import pytest
from pydantic import BaseModel

from fluxgate_mw import tracking
from tests.calls.clients import recorded
from tests.calls.service import MODEL, Service, answer, async_client, chat, sync_client

pytestmark = [  # both are still billed
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # image variations
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]

HELLO = [{"role": "user", "content": "Hello"}]


class Word(BaseModel):
    """What a structured answer is parsed into."""

    word: str


class Way(NamedTuple):
    """One way to make a call, the same for a sync and an async client."""

    name: str
    call: Callable[[Any], Any]
    path: str
    operation: str
    tokens: tuple[int | None, int | None]
    needs: str
    """The attributes of the client that it stands on; a client that lacks one has no such call. `openai.` begins what
    the package itself has."""
    stream: bool


def _way(
    call: Callable[[Any], Any], path: str, operation: str, needs: str, *tokens: int | None, stream: bool = False
) -> Way:
    return Way(needs, call, path, operation, (tokens[0], tokens[1]) if tokens else (20, 7), needs, stream)


def _file() -> io.BytesIO:
    file = io.BytesIO(b"bytes of a file")
    file.name = "file.png"
    return file


CHAT, RESPONSES = ("/chat/completions", "chat"), ("/responses", "chat")
EMBEDDING = {"model": "text-embedding-3-small", "input": "Hello", "encoding_format": "float"}
EMBEDDINGS = ("/embeddings", "embeddings")
IMAGES, EDITS = ("/images/generations", "image_generation"), ("/images/edits", "image_generation")
MODERATIONS = ("/moderations", "moderation")
VIDEO = "video_generation"
WAYS = [
    _way(lambda c: c.chat.completions.create(model="gpt-4o-mini", messages=HELLO), *CHAT, "chat.completions.create"),
    _way(
        lambda c: c.chat.completions.parse(model="gpt-4o-mini", messages=HELLO, response_format=Word),
        *CHAT,
        "chat.completions.parse",
    ),
    _way(
        lambda c: c.beta.chat.completions.parse(model="gpt-4o-mini", messages=HELLO, response_format=Word),
        *CHAT,
        "beta.chat.completions.parse",
    ),
    _way(lambda c: c.responses.create(model="gpt-4o-mini", input="Hello"), *RESPONSES, "responses.create"),
    _way(
        lambda c: c.responses.parse(model="gpt-4o-mini", input="Hello", text_format=Word),
        *RESPONSES,
        "responses.parse",
    ),
    _way(
        lambda c: c.responses.compact(model="gpt-4o-mini", input="Hello"),
        "/responses/compact",
        "compaction",
        "responses.compact",
    ),
    _way(
        lambda c: c.beta.responses.create(model="gpt-4o-mini", input="Hello"),
        *RESPONSES,
        "beta.responses.create",
    ),
    _way(
        lambda c: c.beta.responses.compact(model="gpt-4o-mini", input="Hello"),
        "/responses/compact",
        "compaction",
        "beta.responses.compact",
    ),
    _way(
        lambda c: c.decisions.create(model="gpt-6-luna", input="Hello", questions=[]),
        "/decisions",
        "decision",
        "decisions.create",
    ),
    _way(
        lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello"),
        "/completions",
        "text_completion",
        "completions.create",
    ),
    _way(
        lambda c: c.embeddings.create(model="text-embedding-3-small", input="Hello", encoding_format="float"),
        "/embeddings",
        "embeddings",
        "embeddings.create",
        20,
        None,
    ),
    _way(
        lambda c: c.images.generate(model="gpt-image-1", prompt="A cat"),
        "/images/generations",
        "image_generation",
        "images.generate",
    ),
    _way(
        lambda c: c.images.edit(model="gpt-image-1", image=_file(), prompt="A cat"),
        "/images/edits",
        "image_generation",
        "images.edit",
    ),
    _way(
        lambda c: c.images.create_variation(model="dall-e-2", image=_file()),
        "/images/variations",
        "image_generation",
        "images.create_variation",
    ),
    _way(
        lambda c: c.audio.speech.create(model="tts-1", voice="alloy", input="Hello"),
        "/audio/speech",
        "speech",
        "audio.speech.create",
        None,
        None,
    ),
    _way(
        lambda c: c.audio.transcriptions.create(model="gpt-4o-transcribe", file=_file()),
        "/audio/transcriptions",
        "transcription",
        "audio.transcriptions.create",
    ),
    _way(
        lambda c: c.audio.translations.create(model="whisper-1", file=_file()),
        "/audio/translations",
        "translation",
        "audio.translations.create",
        None,
        None,
    ),
    _way(
        lambda c: c.moderations.create(model="omni-moderation-latest", input="Hello"),
        "/moderations",
        "moderation",
        "moderations.create",
        None,
        None,
    ),
    _way(
        lambda c: c.batches.create(input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"),
        "/batches",
        "batch",
        "batches.create",
        None,
        None,
    ),
    _way(
        lambda c: c.fine_tuning.jobs.create(model=MODEL, training_file="file-1"),
        "/fine_tuning/jobs",
        "fine_tuning",
        "fine_tuning.jobs.create",
        None,
        None,
    ),
    _way(lambda c: c.videos.create(prompt="A cat"), "/videos", VIDEO, "videos.create", None, None),
    _way(
        lambda c: c.videos.edit(prompt="A dog", video=_file()),
        "/videos/edits",
        VIDEO,
        "videos.edit",
        None,
        None,
    ),
    _way(
        lambda c: c.videos.extend(prompt="A dog", seconds="4", video=_file()),
        "/videos/extensions",
        VIDEO,
        "videos.extend",
        None,
        None,
    ),
    _way(
        lambda c: c.videos.remix("video_1", prompt="A dog"),
        "/videos/video_1/remix",
        VIDEO,
        "videos.remix",
        None,
        None,
    ),
    _way(
        lambda c: c.embeddings.with_raw_response.create(**EMBEDDING),
        *EMBEDDINGS,
        "embeddings.with_raw_response.create",
        20,
        None,
    ),
    _way(
        lambda c: c.images.with_raw_response.generate(model="gpt-image-1", prompt="A cat"),
        *IMAGES,
        "images.with_raw_response.generate",
    ),
    _way(
        lambda c: c.moderations.with_raw_response.create(input="Hello"),
        *MODERATIONS,
        "moderations.with_raw_response.create",
        None,
        None,
    ),
    _way(
        lambda c: c.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO),
        *CHAT,
        "chat.completions.with_raw_response.create",
    ),
    _way(
        lambda c: c.responses.with_raw_response.create(model="gpt-4o-mini", input="Hello"),
        *RESPONSES,
        "responses.with_raw_response.create",
    ),
    _way(
        lambda c: c.audio.transcriptions.with_raw_response.create(model="gpt-4o-transcribe", file=_file()),
        "/audio/transcriptions",
        "transcription",
        "audio.transcriptions.with_raw_response.create",
    ),
]
STREAMS = [
    _way(
        lambda c: c.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True),
        *CHAT,
        "chat.completions.create",
        stream=True,
    ),
    _way(
        lambda c: c.chat.completions.stream(model="gpt-4o-mini", messages=HELLO, response_format=Word),
        *CHAT,
        "chat.completions.stream",
        stream=True,
    ),
    _way(
        lambda c: c.beta.chat.completions.stream(model="gpt-4o-mini", messages=HELLO, response_format=Word),
        *CHAT,
        "beta.chat.completions.stream",
        stream=True,
    ),
    _way(
        lambda c: c.responses.create(model="gpt-4o-mini", input="Hello", stream=True),
        *RESPONSES,
        "responses.create",
        stream=True,
    ),
    _way(lambda c: c.responses.stream(model="gpt-4o-mini", input="Hello"), *RESPONSES, "responses.stream", stream=True),
    _way(
        lambda c: c.chat.completions.with_streaming_response.create(model="gpt-4o-mini", messages=HELLO),
        *CHAT,
        "chat.completions.with_streaming_response.create",
    ),
    _way(
        lambda c: c.chat.completions.with_streaming_response.create(model="gpt-4o-mini", messages=HELLO, stream=True),
        *CHAT,
        "chat.completions.with_streaming_response.create",
        stream=True,
    ),
    _way(
        lambda c: c.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="Hello"),
        "/audio/speech",
        "speech",
        "audio.speech.with_streaming_response.create",
        None,
        None,
    ),
    _way(
        lambda c: c.embeddings.with_streaming_response.create(**EMBEDDING),
        *EMBEDDINGS,
        "embeddings.with_streaming_response.create",
        20,
        None,
    ),
    _way(
        lambda c: c.images.with_streaming_response.generate(model="gpt-image-1", prompt="A cat"),
        *IMAGES,
        "images.with_streaming_response.generate",
    ),
    _way(
        lambda c: c.moderations.with_streaming_response.create(input="Hello"),
        *MODERATIONS,
        "moderations.with_streaming_response.create",
        None,
        None,
    ),
    _way(
        lambda c: c.images.generate(model="gpt-image-1", prompt="A cat", stream=True),
        *IMAGES,
        "openai.types.ImageGenStreamEvent",
        stream=True,
    ),
    _way(
        lambda c: c.images.edit(model="gpt-image-1", image=_file(), prompt="A cat", stream=True),
        *EDITS,
        "openai.types.ImageEditStreamEvent",
        stream=True,
    ),
]
NOT_SPEND = {
    "models.list": lambda c: c.models.list(),
    "models.retrieve": lambda c: c.models.retrieve(MODEL),
    "responses.retrieve": lambda c: c.responses.retrieve("resp_of_another_process"),
    "files.create": lambda c: c.files.create(file=_file(), purpose="batch"),
    "batches.retrieve": lambda c: c.batches.retrieve("batch_1"),
    "raw models.list": lambda c: c.models.with_raw_response.list(),
}
LACKING = {
    (1, 66): {
        "beta.responses.compact",
        "beta.responses.create",
        "chat.completions.parse",
        "chat.completions.stream",
        "decisions.create",
        "openai.types.ImageEditStreamEvent",
        "openai.types.ImageGenStreamEvent",
        "responses.compact",
        "videos.create",
        "videos.edit",
        "videos.extend",
        "videos.remix",
    },
    (2, 54): {"decisions.create"},
}
"""What each older client that is tested does not have."""


def _has(needs: str) -> bool:
    of_package = needs.startswith("openai.")
    found: Any = openai if of_package else openai.OpenAI(api_key="sk-test")
    for name in needs.removeprefix("openai.").split("."):
        found = getattr(found, name, None)
    return found is not None


def _present(ways: list[Way]) -> list[Any]:
    return [pytest.param(way, id=f"{way.name}-{number}") for number, way in enumerate(ways) if _has(way.needs)]


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _read(result: Any) -> None:
    """Read a stream of any kind to its end."""
    with result as opened:
        if hasattr(opened, "iter_lines"):
            for _line in opened.iter_lines():
                pass
            return
        for _chunk in opened:
            pass


async def _aread(result: Any) -> None:
    result = await _awaited(result)
    async with result as opened:
        if hasattr(opened, "iter_lines"):
            async for _line in opened.iter_lines():
                pass
            return
        async for _chunk in opened:
            pass


def _is_one(events: list[Any], way: Way) -> None:
    assert [(event.api_path, event.operation_name, event.status) for event in events] == [
        (way.path, way.operation, "SUCCESS")
    ]
    assert (events[0].input_tokens, events[0].output_tokens) == way.tokens
    assert events[0].usage_source == ("none" if way.tokens == (None, None) else "provider")
    assert (events[0].provider_name, events[0].http_status, events[0].retries) == ("openai", 200, 0)
    assert events[0].stream is way.stream


def test_what_this_version_lacks():
    """What the installed client does not have is named here, never left out in silence."""
    lacking = {way.needs for way in [*WAYS, *STREAMS] if not _has(way.needs)}
    major, minor = map(int, openai.__version__.split(".")[:2])
    assert lacking == LACKING.get((major, minor), set())


@pytest.mark.parametrize("way", _present(WAYS))
def test_each_call_is_one_event(way):
    """With its path, its operation and the usage that was reported."""
    service = Service()
    with recorded() as events:
        result = way.call(sync_client(service))
    _is_one(events, way)
    assert len(service.requests) == 1
    if not isinstance(result, str):
        assert tracking(result).tracking_id == events[0].event_id


@pytest.mark.anyio
@pytest.mark.parametrize("way", _present(WAYS))
async def test_each_async_call_is_one_event(way):
    """As with a synchronous client."""
    service = Service()
    with recorded() as events:
        await way.call(async_client(service))
    _is_one(events, way)
    assert len(service.requests) == 1


@pytest.mark.parametrize("way", _present(STREAMS))
def test_each_streamed_call_is_one_event(way):
    """When its stream was read to the end."""
    service = Service()
    with recorded() as events:
        _read(way.call(sync_client(service)))
    _is_one(events, way)
    assert len(service.requests) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("way", _present(STREAMS))
async def test_each_async_streamed_call_is_one_event(way):
    """As with a synchronous client."""
    with recorded() as events:
        await _aread(way.call(async_client(Service())))
    _is_one(events, way)


@pytest.mark.parametrize("name", NOT_SPEND)
def test_what_costs_nothing_is_no_event(name):
    """Retrieving, listing and uploading pass as if we were not there."""
    with recorded() as events:
        NOT_SPEND[name](sync_client(Service()))
    assert events == []


@pytest.mark.anyio
async def test_pages_are_no_events():
    """Pagination goes through the same method and is passed on, page by page, sync and async."""
    with recorded() as events:
        assert [model.id for model in sync_client(Service()).models.list()] == [MODEL]
        assert [batch.id for batch in sync_client(Service()).batches.list()] == ["batch_1"]
        assert [model.id async for model in async_client(Service()).models.list()] == [MODEL]
    assert events == []


def test_two_posts_are_two_events():
    """Also where the service gives both the same id."""
    client = sync_client(Service())
    with recorded() as events:
        for _ in range(2):
            client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert [event.response_id for event in events] == ["chatcmpl-1", "chatcmpl-1"]
    assert len({event.event_id for event in events}) == 2


def _busy() -> list[Any]:
    return [answer(status, {"error": {"message": "busy"}}, headers={"retry-after-ms": "1"}) for status in (429, 500)]


def test_retries_are_one_event():
    """With how many there were, and the status of the last answer."""
    service = Service()
    service.failures = _busy()
    with recorded() as events:
        sync_client(service, max_retries=2).chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert [(event.retries, event.http_status, event.status) for event in events] == [(2, 200, "SUCCESS")]
    assert len(service.requests) == 3


@pytest.mark.anyio
async def test_async_retries_are_one_event():
    """Also of a stream, and where all of them fail."""
    service = Service()
    service.failures = _busy()
    client = async_client(service, max_retries=2)
    with recorded() as events:
        await _aread(client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True))
        service.failures = [*_busy(), *_busy()]
        with pytest.raises(openai.RateLimitError):
            await client.with_options(max_retries=2).chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert [(event.retries, event.http_status, event.status) for event in events] == [
        (2, 200, "SUCCESS"),
        (2, 429, "ERROR"),
    ]


def test_the_module_level_client(monkeypatch):
    """`openai.chat.completions.create` without any client of one's own."""
    client = sync_client(Service())
    monkeypatch.setattr(openai, "api_key", "sk-test")
    monkeypatch.setattr(openai, "http_client", client._client)
    openai._reset_client()
    with recorded() as events:
        openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        openai.embeddings.create(model="text-embedding-3-small", input="Hello", encoding_format="float")
    openai._reset_client()
    assert [event.operation_name for event in events] == ["chat", "embeddings"]


class Elsewhere(openai.OpenAI):
    """A subclass with an address of its own."""

    @property
    def base_url(self) -> Any:
        """Where it calls."""
        return type(self._base_url)("https://api.mistral.ai/v1/")

    @base_url.setter
    def base_url(self, url: Any) -> None:
        """Stay there."""


def test_an_address_that_a_client_has_of_its_own(monkeypatch):
    """The module's client goes where `openai.base_url` says, though it was used before; a subclass may say it too."""
    service = Service()
    monkeypatch.setattr(openai, "api_key", "sk-test")
    monkeypatch.setattr(openai, "base_url", None)
    monkeypatch.setattr(openai, "http_client", sync_client(service)._client)
    openai._reset_client()
    with recorded() as events:
        openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        monkeypatch.setattr(openai, "base_url", "https://api.groq.com/v1/")
        openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        sync_client(service, Elsewhere).chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    openai._reset_client()
    assert [event.provider_name for event in events] == ["openai", "groq", "mistral"]


class OwnClient(openai.OpenAI):
    """A subclass with a method of its own."""

    def ask(self, text: str) -> Any:
        """Ask in one word."""
        return self.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])


class OwnRequest(openai.OpenAI):
    """A subclass that sends in its own way."""

    def request(self, *args: Any, **kwargs: Any) -> Any:
        """Send on."""
        return super().request(*args, **kwargs)


def test_clients_of_every_origin():
    """Made before the patch, copies with other options, and subclasses, with or without a `request` of their own."""
    service = Service()
    before = sync_client(service)
    bound = before.chat.completions.create
    with recorded() as events:
        bound(model="gpt-4o-mini", messages=HELLO)
        before.with_options(timeout=3, max_retries=1).chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        before.copy().responses.create(model="gpt-4o-mini", input="Hello")
        sync_client(service, OwnClient).ask("Hello")
        sync_client(service, OwnRequest).chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert len(events) == len(service.requests) == 5


@pytest.mark.parametrize("stream", [False, True])
def test_azure(stream):
    """The deployment is what was asked for, the response's model is what answered and what is priced."""
    service = Service()
    client = sync_client(
        service, openai.AzureOpenAI, azure_endpoint="https://mine.openai.azure.com", api_version="2024-10-21"
    )
    with recorded() as events:
        result = client.chat.completions.create(model="our-deployment", messages=HELLO, stream=stream)
        if stream:
            _read(result)
    assert service.requests[0][1] == "/openai/deployments/our-deployment/chat/completions"
    (event,) = events
    assert (event.provider_name, event.request_model, event.response_model) == ("azure", "our-deployment", MODEL)
    assert (event.api_path, event.input_tokens, event.output_tokens) == ("/chat/completions", 20, 7)
    assert event.cost_nanos == 16 * 150 + 4 * 75 + 7 * 600


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{"azure_deployment": "our-deployment"}, {}])
async def test_async_azure(options):
    """A deployment given to the client or to the call, and the calls that know none."""
    service = Service()
    client = async_client(
        service,
        openai.AsyncAzureOpenAI,
        azure_endpoint="https://mine.openai.azure.com",
        api_version="2025-03-01-preview",
        **options,
    )
    with recorded() as events:
        await client.chat.completions.create(model="our-deployment", messages=HELLO)
        await client.embeddings.create(model="our-deployment", input="Hello", encoding_format="float")
        await client.responses.create(model="our-deployment", input="Hello")
    assert [event.api_path for event in events] == ["/chat/completions", "/embeddings", "/responses"]
    assert {event.provider_name for event in events} == {"azure"}


@pytest.mark.anyio
async def test_azures_images_and_sound():
    """They have a deployment in their path too, but for edits by an old client; speech tells no usage."""
    service = Service()
    options = {"azure_endpoint": "https://mine.openai.azure.com", "api_version": "2025-03-01-preview"}
    client = sync_client(service, openai.AzureOpenAI, **options)
    aclient = async_client(service, openai.AsyncAzureOpenAI, **options)
    with recorded() as events:
        client.images.generate(model="ours", prompt="A cat")
        client.images.edit(model="ours", image=_file(), prompt="A cat")
        client.audio.transcriptions.create(model="ours", file=_file())
        client.audio.translations.create(model="ours", file=_file())
        client.audio.speech.create(model="ours", voice="alloy", input="Hello")
        await aclient.images.generate(model="ours", prompt="A cat")
        await aclient.audio.transcriptions.create(model="ours", file=_file())
    paths = ["/images/generations", "/images/edits", "/audio/transcriptions", "/audio/translations", "/audio/speech"]
    assert [event.api_path for event in events] == [*paths, paths[0], paths[2]]
    asked = {path for _method, path, _body in service.requests}
    assert all(path.startswith("/openai/deployments/ours/") for path in asked - {"/openai/images/edits"})
    assert [event.input_tokens for event in events] == [20, 20, 20, None, None, 20, 20]
    assert {(event.provider_name, event.request_model, event.status) for event in events} == {
        ("azure", "ours", "SUCCESS")
    }


@pytest.mark.parametrize("stream", [False, True])
def test_azures_v1_address_on_a_plain_client(stream):
    """Azure's newer API needs no client of its own: it is known by its host."""
    service = Service()
    client = sync_client(service, base_url="https://mine.openai.azure.com/openai/v1/")
    with recorded() as events:
        result = client.chat.completions.create(model="our-deployment", messages=HELLO, stream=stream)
        if stream:
            _read(result)
        client.responses.create(model="our-deployment", input="Hello")
    assert [(event.provider_name, event.api_path, event.input_tokens) for event in events] == [
        ("azure", "/chat/completions", 20),
        ("azure", "/responses", 20),
    ]
    assert {event.response_model for event in events} == {MODEL}


@pytest.mark.parametrize(
    ("base_url", "provider"),
    [
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/", "google"),
        ("https://llm.example.com:8443/v1", "llm.example.com"),
    ],
)
def test_compatible_providers(base_url, provider):
    """The provider is known by its host; a host that is not known is named as it is, and its price is unknown."""
    service = Service()
    for path in ("/openai/v1", "/api/v1", "", "/v1beta/openai", "/v1"):
        service.answers[f"{path}/chat/completions"] = lambda asked: answer(200, chat(asked))
    with recorded() as events:
        sync_client(service, base_url=base_url).chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert [(event.provider_name, event.api_path) for event in events] == [(provider, "/chat/completions")]
    assert events[0].cost_nanos is None  # none of them sells this model under this name
