"""What a type checker must know of the explicit tracker: the methods and results of the client that it wraps."""

from __future__ import annotations

from typing import assert_type

import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fluxgate_mw import Tracking, create_openai_cost_tracker, tracking
from fluxgate_mw.openai.tracker import (
    TrackedAsyncAzureOpenAI,
    TrackedAsyncOpenAI,
    TrackedAzureOpenAI,
    TrackedOpenAI,
)


def sync(client: openai.OpenAI, azure: openai.AzureOpenAI) -> None:
    """A synchronous client's view."""
    tracker = create_openai_cost_tracker(client)
    assert_type(tracker, TrackedOpenAI)
    view = tracker.with_context(feature="summarizer", user={"id": "u-1"})
    assert_type(view, TrackedOpenAI)
    completion = view.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}])
    assert_type(completion, ChatCompletion)
    assert_type(tracking(completion), Tracking | None)
    stream = view.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    assert_type(stream, openai.Stream[ChatCompletionChunk])
    assert_type(view.with_options(timeout=3), TrackedOpenAI)
    assert_type(view.copy(max_retries=1).with_context(step="s"), TrackedOpenAI)
    azures = create_openai_cost_tracker(azure)
    assert_type(azures, TrackedAzureOpenAI)
    assert_type(azures.with_context(step="s"), TrackedAzureOpenAI)
    assert_type(azures.with_options(timeout=3), TrackedAzureOpenAI)
    answer = azures.chat.completions.create(model="deployment", messages=[{"role": "user", "content": "Hi"}])
    assert_type(answer, ChatCompletion)


async def asynchronous(client: openai.AsyncOpenAI, azure: openai.AsyncAzureOpenAI) -> None:
    """An asynchronous client's view."""
    tracker = create_openai_cost_tracker(client)
    assert_type(tracker, TrackedAsyncOpenAI)
    completion = await tracker.with_context(feature="f").chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}]
    )
    assert_type(completion, ChatCompletion)
    assert_type(tracker.with_options(timeout=3), TrackedAsyncOpenAI)
    azures = create_openai_cost_tracker(azure)
    assert_type(azures, TrackedAsyncAzureOpenAI)
    assert_type(azures.with_options(timeout=3), TrackedAsyncAzureOpenAI)
    answer = await azures.chat.completions.create(model="deployment", messages=[{"role": "user", "content": "Hi"}])
    assert_type(answer, ChatCompletion)
    stream = await azures.chat.completions.create(
        model="deployment", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    assert_type(stream, openai.AsyncStream[ChatCompletionChunk])


def wrong(client: openai.OpenAI, azure: openai.AsyncAzureOpenAI) -> None:
    """A misspelled field or option is an error of the type checker, as it is with the client itself."""
    create_openai_cost_tracker(client).with_context(featur="f")  # type: ignore[call-arg]
    create_openai_cost_tracker(client).with_options(timeot=3)  # type: ignore[call-arg]
    create_openai_cost_tracker(azure).copy(timeot=3)  # type: ignore[call-arg]
