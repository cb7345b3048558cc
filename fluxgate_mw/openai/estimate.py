"""How many tokens a text has, where nobody reported it: by a tokenizer that is at hand, else from its UTF-8 bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from fluxgate_mw.recorder import guarded

__all__ = ["Prompt", "estimate_tokens", "placed_texts", "prompt_of", "text_bytes", "texts_in", "tokens_in"]

UTF8_BYTES_PER_TOKEN: Final = 4
_NO_TEXT: Final = frozenset(
    {"role", "id", "type", "index", "audio", "input_audio", "image_url", "file", "file_data", "encrypted_content"}
)
_ASKED: Final = ("messages", "input", "prompt")
_ASKED_BESIDE: Final = ("instructions", "tools")
_ELSEWHERE: Final = ("previous_response_id", "conversation")
"""Where a call of the responses API says which stored items are before its own."""
_DATA: Final = (
    "input_image",
    "input_audio",
    "input_file",
    "image_url",
    "file",
    "computer_screenshot",
    "image_generation_call",
)
"""Types of what is no text, whatever texts are in it. Source: `ResponseInputItemParam` and, of chats,
`ChatCompletionContentPartParam` of openai 3.57."""
_GIVEN_AS_TEXT: Final = frozenset({"text", "content", "output"})
_DATA_URL: Final = "data:"


def estimate_tokens(utf8_bytes: int) -> int:
    """Return about how many tokens a text of that many UTF-8 bytes has: a quarter, rounded up.

    Measured on one text in eleven languages and two of code, as a part of what o200k_base counts: 0.86 (Chinese) to
    2.31 (Hindi), English 1.30, code 1.0. The few tokens that the service adds to each message are not in it.
    """
    return -(-utf8_bytes // UTF8_BYTES_PER_TOKEN)


def text_bytes(value: Any) -> int:
    """Return the UTF-8 bytes of the texts in a prompt or a delta: content, refusal, reasoning, tools; not images."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(text_bytes(part) for key, part in value.items() if key not in _NO_TEXT)
    if isinstance(value, list | tuple):
        return sum(map(text_bytes, value))
    return 0


class Prompt(msgspec.Struct, frozen=True):
    """What a call asks, as far as its tokens can be told.

    Attributes:
        texts: What there is to estimate.
        ids: How many tokens it gives as such.
        whole: There is something that can be told, and the service has stored nothing more of it.
    """

    texts: list[str]
    ids: int
    whole: bool

    def tokens(self, model: str | None) -> int | None:
        """Return about how many tokens it has; None where that is not known."""
        return self.ids + tokens_in(self.texts, model) if self.whole else None


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """Return what a call with this body asks. The tokens of images beside its texts are not in it."""
    texts = [text for name in _ASKED for text in texts_in(body.get(name), _is_asked)]
    ids = _ids_in(body.get("prompt"))
    whole = (ids > 0 or any(texts)) and not _is_stored(body)
    texts += [text for name in _ASKED_BESIDE for text in texts_in(body.get(name), _is_asked)]
    return Prompt(texts, ids, whole)


def texts_in(value: Any, is_one: Callable[[dict[Any, Any], Any], bool]) -> Iterator[str]:
    """Yield the texts in plain data, one by one, without what `is_one(holder, key)` says is none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if is_one(value, key):
                yield from texts_in(part, is_one)
    elif isinstance(value, list | tuple):
        for part in value:
            if type(part) is not int:  # prompts may be lists of very many tokens
                yield from texts_in(part, is_one)


def _is_asked(holder: dict[Any, Any], key: Any) -> bool:
    """Say whether what is held there is a part of a prompt's texts, and not the data of what is no text."""
    if key in _NO_TEXT or holder.get("type") in _DATA:
        return False
    part = holder[key]
    return key in _GIVEN_AS_TEXT or not (isinstance(part, str) and part.startswith(_DATA_URL))


def _ids_in(prompt: Any) -> int:
    """Return how many tokens a prompt gives by their numbers, in one list or in several."""
    if not isinstance(prompt, list | tuple) or not prompt:
        return 0
    return len(prompt) if type(prompt[0]) is int else sum(map(_ids_in, prompt))


def _is_stored(body: Mapping[str, Any]) -> bool:
    """Say whether more is asked than is in the body."""
    asked, items = body.get("prompt"), body.get("input")
    if isinstance(asked, dict) or any(isinstance(body.get(name), str | dict) for name in _ELSEWHERE):
        return True
    return isinstance(items, list | tuple) and any(map(_is_reference, items))


def _is_reference(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "item_reference"


def tokens_in(texts: Sequence[str], model: str | None) -> int:
    """Return how many tokens these texts have, about: counted, where the application has the model's tokenizer loaded.

    None is ever loaded from here: that reads megabytes, from the network if need be.

    Source: `tiktoken.registry.ENCODINGS`, `tiktoken.model.encoding_name_for_model` (tiktoken 0.14).
    """
    counted = guarded("tokenizer", _counted, texts, model)
    return estimate_tokens(sum(map(text_bytes, texts))) if counted is None else counted


def _counted(texts: Sequence[str], model: str | None) -> int | None:
    registry, models = sys.modules.get("tiktoken.registry"), sys.modules.get("tiktoken.model")
    if not model or registry is None or models is None or not registry.ENCODINGS:
        return None
    try:
        encoding = registry.ENCODINGS.get(models.encoding_name_for_model(model))
    except KeyError:
        return None
    return None if encoding is None else sum(len(encoding.encode_ordinary(text)) for text in texts)


def placed_texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the same texts that are not empty, each with its place: `place` and what leads from there, with dots.

    What has an `index` in a list goes by that: a stream brings the pieces of several things side by side.
    """
    if isinstance(value, str):
        if value:
            yield place, value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in _NO_TEXT:
                yield from placed_texts(part, f"{place}.{key}")
    elif isinstance(value, list):
        for position, part in enumerate(value):
            index = part.get("index") if isinstance(part, dict) else None
            yield from placed_texts(part, f"{place}.{index if isinstance(index, int) else position}")
