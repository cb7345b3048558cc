"""What the loopback provider has to say: the words, the ids and the token counts of one answer.

Nothing here knows how an answer is written on the wire: see `chat_shapes` and `responses_shapes`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any, Final

import msgspec

from fluxgate_mw.demo.ledger import texts_of

__all__ = ["Ask", "Reply", "ToolCall", "Usage", "compose", "count_tokens"]

_BEHAVIOUR = re.compile(r"\[behave ([a-z0-9-]+)\]")
_SPEECH: Final = (
    "The report shows that most customers renew early and that the new plan costs less than the old one while "
    "support answers within a day so the next step is to write to everyone who has not moved yet and to ask why"
)
_WORDS: Final = tuple(_SPEECH.split())
_SNAPSHOTS: Final = MappingProxyType(
    {
        "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
        "gpt-4o": "gpt-4o-2024-08-06",
        "o4-mini": "o4-mini-2025-04-16",
    },
)
_REASONING_MODELS: Final = ("o1", "o3", "o4", "gpt-5")
_CACHED_STEP: Final = 16


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One call as it was asked.

    Args:
        path: Without the base address, such as `/chat/completions`.
        body: The decoded JSON body.
        behaviour: The marker `[behave NAME]` in the text or the header `x-demo-behaviour`; empty for plain.
        retry_count: How often the client says that it has tried before.
        authorized: Whether it came with a key that is not `wrong`.
    """

    path: str
    body: Mapping[str, Any]
    behaviour: str = ""
    retry_count: int = 0
    authorized: bool = True

    @property
    def model(self) -> str:
        """The model asked for."""
        return str(self.body.get("model", ""))

    @property
    def stream(self) -> bool:
        """Whether a stream was asked for."""
        return self.body.get("stream") is True

    @property
    def prompt(self) -> Any:
        """The part of the body that holds the prompt."""
        return [self.body.get(name) for name in ("messages", "instructions", "input")]

    @staticmethod
    def behaviour_in(body: Mapping[str, Any]) -> str:
        """Return the last behaviour marker in the texts of a body; empty where there is none."""
        found = [name for text in texts_of(body) for name in _BEHAVIOUR.findall(text)]
        return str(found[-1]) if found else ""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts as the provider reports them: cached is inside input, reasoning inside output."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a function that the answer asks for; `arguments` is JSON text."""

    call_id: str
    name: str
    arguments: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer: the same words for every choice.

    Args:
        key: Random hexadecimal digits that the answer's ids are made of.
        created: Unix seconds.
        model: The dated name of the model that answered.
        words: The answer's words, each with its leading space, one token each; empty for a tool call.
        tool: The function to call, or None.
        finish: `stop`, `length`, `content_filter` or `tool_calls`.
        choices: How many choices.
        usage: None where this provider does not report it.
    """

    key: str
    created: int
    model: str
    words: tuple[str, ...]
    tool: ToolCall | None
    finish: str
    choices: int
    usage: Usage | None

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.words)


def count_tokens(value: Any) -> int:
    """Return how many tokens this provider counts in the texts of decoded JSON: one for every four bytes begun."""
    return sum(-(-len(text.encode()) // 4) for text in texts_of(value))


def compose(ask: Ask, random: Random) -> Reply:
    """Return the answer to a chat or responses call; the same random state gives the same words and counts."""
    tool = _tool_call(ask, random)
    words, finish = ((), "tool_calls") if tool else _words(ask, random)
    choices = int(ask.body.get("n") or 1)
    spoken = (count_tokens(tool.arguments) + 8 if tool else len(words)) * choices
    return Reply(
        key=f"{random.getrandbits(128):032x}",
        created=int(time.time()),
        model=_SNAPSHOTS.get(ask.model, ask.model),
        words=words,
        tool=tool,
        finish=finish,
        choices=choices,
        usage=None if ask.behaviour == "no-usage" else _usage(ask, spoken, random),
    )


def _words(ask: Ask, random: Random) -> tuple[tuple[str, ...], str]:
    length = random.randint(8, 24)
    start = random.randrange(len(_WORDS))
    spoken = [_WORDS[(start + place) % len(_WORDS)] for place in range(length)]
    words = tuple(word if place == 0 else f" {word}" for place, word in enumerate(spoken))
    limits = [ask.body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limit = next((int(limit) for limit in limits if limit), length)
    if ask.behaviour == "content-filter":
        return words[:2], "content_filter"
    return words[:limit], "stop" if limit >= length else "length"


def _tool_call(ask: Ask, random: Random) -> ToolCall | None:
    name = next(filter(None, map(_function_name, ask.body.get("tools") or ())), None)
    if name is None or ask.body.get("tool_choice") == "none" or _has_tool_result(ask):
        return None
    city = random.choice(("Seattle, WA", "Vienna", "Osaka"))
    return ToolCall(call_id=f"call_{random.getrandbits(96):024x}", name=name, arguments=f'{{"location":"{city}"}}')


def _function_name(tool: Any) -> str | None:
    name = tool.get("function", tool).get("name")
    return str(name) if name else None


def _has_tool_result(ask: Ask) -> bool:
    items = ask.body.get("messages") or ask.body.get("input")
    return isinstance(items, list) and any(
        item.get("role") == "tool" or item.get("type") == "function_call_output" for item in items
    )


def _usage(ask: Ask, spoken: int, random: Random) -> Usage:
    asked = count_tokens(ask.prompt) + count_tokens(ask.body.get("tools")) + 7
    cached = asked // 2 // _CACHED_STEP * _CACHED_STEP if random.random() < 1 / 3 else 0
    reasoning = random.randint(16, 128) if ask.model.startswith(_REASONING_MODELS) else 0
    return Usage(
        input_tokens=asked,
        output_tokens=spoken + reasoning,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )
