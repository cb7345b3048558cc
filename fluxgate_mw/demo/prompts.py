"""What the demo's apps ask the model: a task, the visitor's text, and a witness of who asks and for what."""

from __future__ import annotations

from typing import Any, Final

from openai.types.chat import ChatCompletionToolParam

from fluxgate_mw.demo.ledger import witness

__all__ = ["WEATHER_TOOL", "image_messages", "messages", "prompt"]

WEATHER_TOOL: Final[ChatCompletionToolParam] = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
            "additionalProperties": False,
        },
    },
}


def prompt(user: str | None, feature: str | None, text: str) -> str:
    """Return the visitor's text behind the witness of the user's id and the feature's name."""
    return f"{witness(user, feature)} {text}"


def messages(task: str, asked: str) -> Any:
    """Return a chat of a task for the model and what was asked."""
    return [{"role": "system", "content": task}, {"role": "user", "content": asked}]


def image_messages(asked: str, image_url: str) -> Any:
    """Return a chat of one message with a text and a picture's address."""
    parts = [{"type": "text", "text": asked}, {"type": "image_url", "image_url": {"url": image_url}}]
    return [{"role": "user", "content": parts}]
