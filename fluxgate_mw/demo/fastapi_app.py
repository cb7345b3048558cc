"""The demo's FastAPI app: what a product with a few AI features looks like, on the public interface only.

A dependency signs the visitor in by a cookie and calls `identify`; features are named by `@feature` or by their
route; handlers are async and sync, plain and streamed. Settings come from the environment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import openai
from fastapi import BackgroundTasks, Cookie, Depends, FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from starlette.requests import Request

from fluxgate_mw import FluxGate, FluxGateMiddleware, feature, identify
from fluxgate_mw.demo.people import COOKIE, PEOPLE
from fluxgate_mw.demo.prompts import WEATHER_TOOL, image_messages, messages, prompt
from fluxgate_mw.demo.statement import leave_word

__all__ = ["app"]

fluxgate = FluxGate()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Deliver what is queued when the app ends, then leave word of it."""
    async with fluxgate.lifespan(app):
        yield
    leave_word(fluxgate.statistics())


app = FastAPI(lifespan=lifespan)
app.add_middleware(FluxGateMiddleware)

model = AsyncOpenAI()
model_sync = OpenAI()


class Ask(BaseModel):
    """What a visitor sends: a text, and for pictures the address of one."""

    text: str
    image_url: str = ""


def signed_in(demo_user: Annotated[str | None, Cookie(alias=COOKIE)] = None) -> str | None:
    """Sign the visitor in by the cookie; return the user's id, or None for a visitor that nobody knows."""
    user = PEOPLE.get(demo_user or "")
    if user is None:
        return None
    identify(user)
    return user.id


SignedIn = Annotated[str | None, Depends(signed_in)]


@app.exception_handler(openai.APIError)
async def provider_failed(_: Request, error: Exception) -> JSONResponse:
    """Answer 502 when the model could not."""
    return JSONResponse({"error": type(error).__name__}, status_code=502)


@app.post("/summarize/{doc_id}")
@feature("summarizer")
async def summarize(doc_id: str, ask: Ask, user: SignedIn) -> dict[str, str | None]:
    """Summarize a document."""
    asked = prompt(user, "summarizer", ask.text)
    completion = await model.chat.completions.create(
        model="gpt-4o-mini",
        messages=messages("You are a concise summarizer.", asked),
        max_tokens=256,
    )
    return {"doc_id": doc_id, "summary": completion.choices[0].message.content}


@app.post("/chat")
@feature("chat-assistant")
async def chat(ask: Ask, user: SignedIn) -> StreamingResponse:
    """Reply in a chat, word by word."""
    asked = prompt(user, "chat-assistant", ask.text)
    stream = await model.chat.completions.create(
        model="gpt-4o",
        messages=messages("You are a helpful assistant.", asked),
        stream=True,
    )

    async def words() -> AsyncIterator[str]:
        try:
            async with stream:
                async for chunk in stream:
                    if chunk.choices:
                        yield chunk.choices[0].delta.content or ""
        except openai.APIError:
            yield " [the model's connection was lost]"

    return StreamingResponse(words(), media_type="text/plain")


@app.post("/weather")
@feature("chat-assistant", step="tools")
async def weather(ask: Ask, user: SignedIn) -> dict[str, str | None]:
    """Answer with a tool: one call to choose it, one to speak."""
    history = messages("You are a helpful assistant.", prompt(user, "chat-assistant", ask.text))
    chosen = await model.chat.completions.create(model="gpt-4o-mini", messages=history, tools=[WEATHER_TOOL])
    message = chosen.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "7 degrees and rain"} for call in message.tool_calls or ()
    ]
    history = [*history, message, *results]
    answer = await model.chat.completions.create(model="gpt-4o-mini", messages=history, tools=[WEATHER_TOOL])
    return {"answer": answer.choices[0].message.content}


@app.post("/image")
@feature("image-analysis")
async def analyze_image(ask: Ask, user: SignedIn) -> dict[str, str | None]:
    """Say what is in a picture."""
    asked = prompt(user, "image-analysis", ask.text)
    completion = await model.chat.completions.create(
        model="gpt-4o",
        messages=image_messages(asked, ask.image_url),
        max_tokens=512,
    )
    return {"analysis": completion.choices[0].message.content}


@app.post("/translate/{lang}")
async def translate(lang: str, ask: Ask, user: SignedIn) -> StreamingResponse:
    """Translate, streamed; the call is made while the answer is on its way, and the route names the feature."""

    async def words() -> AsyncIterator[str]:
        asked = prompt(user, "POST /translate/{lang}", ask.text)
        try:
            events = await model.responses.create(
                model="gpt-4o-mini",
                instructions=f"Translate to {lang}.",
                input=asked,
                stream=True,
            )
            async for event in events:
                if event.type == "response.output_text.delta":
                    yield event.delta
        except openai.APIError:
            yield " [the model's connection was lost]"

    return StreamingResponse(words(), media_type="text/plain")


@app.post("/search")
def search(ask: Ask, user: SignedIn) -> dict[str, int]:
    """Turn a query into a vector, in a handler that runs in a worker thread."""
    asked = prompt(user, "POST /search", ask.text)
    found = model_sync.embeddings.create(model="text-embedding-3-small", input=asked)
    return {"dimensions": len(found.data[0].embedding)}


@app.post("/plan")
def plan(ask: Ask, user: SignedIn) -> dict[str, str]:
    """Think about a plan, with a model that reasons."""
    asked = prompt(user, "POST /plan", ask.text)
    response = model_sync.responses.create(model="o4-mini", input=asked, max_output_tokens=400)
    return {"plan": response.output_text}


@app.post("/experiment")
async def experiment(ask: Ask, user: SignedIn) -> dict[str, str | None]:
    """Try a model that no price list knows."""
    asked = prompt(user, "POST /experiment", ask.text)
    completion = await model.chat.completions.create(model="acme-nova-1", messages=messages("Be brief.", asked))
    return {"answer": completion.choices[0].message.content}


@feature("report-writer")
async def write_report(asked: str) -> None:
    """Write a report after the answer was sent."""
    await model.chat.completions.create(model="gpt-4o-mini", messages=messages("Write a report.", asked))


@app.post("/report", status_code=202)
async def report(ask: Ask, user: SignedIn, background: BackgroundTasks) -> dict[str, str]:
    """Promise a report."""
    background.add_task(write_report, prompt(user, "report-writer", ask.text))
    return {"report": "soon"}


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    """Say that the app runs."""
    return {"ok": True}
