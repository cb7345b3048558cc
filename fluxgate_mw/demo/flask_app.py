"""The demo's Flask app: the same product in sync code, on the public interface only.

A `before_request` function signs the visitor in by a cookie and calls `identify`; features are named by `@feature`
or by their route. Settings come from the environment.
"""

from __future__ import annotations

import atexit
import itertools
from collections.abc import Iterator
from typing import Any

import openai
from flask import Flask, Response, g, request
from openai import OpenAI

from fluxgate_mw import FluxGate, FluxGateWSGIMiddleware, context, feature, identify
from fluxgate_mw.demo.people import COOKIE, PEOPLE
from fluxgate_mw.demo.prompts import image_messages, messages, prompt
from fluxgate_mw.demo.statement import leave_word

__all__ = ["app"]

fluxgate = FluxGate()
app = Flask(__name__)
app.wsgi_app = FluxGateWSGIMiddleware(app.wsgi_app)  # type: ignore[method-assign]

model = OpenAI()


@app.before_request
def sign_in() -> None:
    """Sign the visitor in by the cookie."""
    g.user = user = PEOPLE.get(request.cookies.get(COOKIE, ""))
    if user is not None:
        identify(user)


def asked_for(feature_name: str) -> str:
    """Return the prompt of this request: its text, with its user and feature as witness."""
    return prompt(g.user.id if g.user else None, feature_name, request.json["text"])


@app.errorhandler(openai.APIError)
def provider_failed(error: openai.APIError) -> tuple[dict[str, str], int]:
    """Answer 502 when the model could not."""
    return {"error": type(error).__name__}, 502


@app.post("/summarize/<doc_id>")
@feature("summarizer")
def summarize(doc_id: str) -> dict[str, str | None]:
    """Summarize a document."""
    completion = model.chat.completions.create(
        model="gpt-4o-mini",
        messages=messages("You are a concise summarizer.", asked_for("summarizer")),
        max_tokens=256,
    )
    return {"doc_id": doc_id, "summary": completion.choices[0].message.content}


@app.post("/chat")
@feature("chat-assistant")
def chat() -> Response:
    """Reply in a chat, word by word."""
    events = model.responses.create(model="gpt-4o", input=asked_for("chat-assistant"), stream=True)

    def words() -> Iterator[str]:
        try:
            with events:
                for event in events:
                    if event.type == "response.output_text.delta":
                        yield event.delta
        except openai.APIError:
            yield " [the model's connection was lost]"

    return Response(words(), mimetype="text/plain")


@app.post("/image")
@feature("image-analysis")
def analyze_image() -> dict[str, str | None]:
    """Say what is in a picture."""
    completion = model.chat.completions.create(
        model="gpt-4o",
        messages=image_messages(asked_for("image-analysis"), request.json["image_url"]),
        max_tokens=512,
    )
    return {"analysis": completion.choices[0].message.content}


@app.post("/translate/<lang>")
def translate(lang: str) -> dict[str, str | None]:
    """Translate; the route names the feature."""
    completion = model.chat.completions.create(
        model="gpt-4o-mini",
        messages=messages(f"Translate to {lang}.", asked_for("POST /translate/<lang>")),
    )
    return {"translation": completion.choices[0].message.content}


@app.post("/tickets/<int:ticket>/headline")
def headline(ticket: int) -> dict[str, Any]:
    """Take the first words of a streamed answer and leave the rest."""
    stream = model.chat.completions.create(
        model="gpt-4o-mini",
        messages=messages("Answer at length.", asked_for("POST /tickets/<int:ticket>/headline")),
        stream=True,
    )
    with stream:
        first = [chunk.choices[0].delta.content or "" for chunk in itertools.islice(stream, 2)]
    return {"ticket": ticket, "headline": "".join(first)}


@app.post("/classify")
def classify() -> dict[str, str | None]:
    """Sort a message into a drawer; the block names the feature."""
    with context(feature="classifier", session_id=request.headers.get("x-session")):
        completion = model.chat.completions.create(
            model="gpt-4o-mini",
            messages=messages("Answer with one word.", asked_for("classifier")),
            max_tokens=3,
        )
    return {"drawer": completion.choices[0].message.content}


@app.get("/healthz")
def healthz() -> dict[str, bool]:
    """Say that the app runs."""
    return {"ok": True}


@atexit.register
def end() -> None:
    """Deliver what is queued when the process ends, then leave word of it."""
    fluxgate.stop()
    leave_word(fluxgate.statistics())
