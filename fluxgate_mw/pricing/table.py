"""The compiled price tables: loaded when their provider is first met, and asked for a model's tariff.

Knows how tables are stored and how names are found in them; knows neither times nor arithmetic.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from typing import Final

import msgspec

from fluxgate_mw.pricing.matching import Clause, dashed_dates, matches
from fluxgate_mw.pricing.terms import Tariff, Terms

__all__ = [
    "Index",
    "ModelRow",
    "ProviderRow",
    "Table",
    "TableFile",
    "index",
    "is_at_hand",
    "provider_spelled",
    "tariff_of",
]

_MAX_NAME: Final = 256
_MAX_RESOLVED: Final = 2048

_PROVIDER_ALIASES: Final = {
    "aws.bedrock": "aws",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "az.ai.inference": "azure",
    "az.ai.openai": "azure",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "x_ai": "x-ai",
}
"""Source: the well-known values of OpenTelemetry's `gen_ai.provider.name`, its former spellings included (2026-11)."""

_PREFIXES: Final = {"google": ("google/", "models/")}
"""What a provider's own API puts before its models' names. Source: Vertex AI's page on OpenAI libraries
(https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/call-vertex-using-openai-library, read 2026-11), and
the resource names of the Gemini API."""


class ModelRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model as stored: the names that are spelled out, the test for others, and the terms, decoded when asked."""

    names: tuple[str, ...]
    terms: msgspec.Raw
    match: Clause | None = None


class TableFile(msgspec.Struct, frozen=True):
    """The content of `tables/<provider>.json`."""

    provider: str
    models: tuple[ModelRow, ...]


class ProviderRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One provider as the index knows it.

    Args:
        id: The file's name too.
        match: Test of other names of this provider; None for none.
        model_match: Test of model names that are this provider's own, for gateways that name none.
        fallbacks: Providers whose models and prices this one sells too, in order.
    """

    id: str
    match: Clause | None = None
    model_match: Clause | None = None
    fallbacks: tuple[str, ...] = ()


class Index(msgspec.Struct, frozen=True):
    """The content of `tables/index.json`: which data the tables were made from, and every provider in order."""

    version: str
    providers: tuple[ProviderRow, ...]


_INDEX: Final = msgspec.json.Decoder(Index)
_TABLE_FILE: Final = msgspec.json.Decoder(TableFile)
_TERMS: Final = msgspec.json.Decoder(Terms)
"""Made here, where one thread imports: msgspec 0.22 can end the process (SIGSEGV) where two threads at once decode a
struct for the first time."""


class Table:
    """One provider's rows, ready to be asked for a name.

    Concurrency: any thread; never changes.
    """

    def __init__(self, rows: tuple[ModelRow, ...]) -> None:
        self._rows = rows
        self._exact: dict[str, int] = {}
        self._clauses: list[tuple[int, Clause]] = []
        for position, row in enumerate(rows):
            for name in row.names:
                self._exact.setdefault(name, position)
            if row.match is not None:
                self._clauses.append((position, row.match))

    def row(self, name: str) -> ModelRow | None:
        """Return the first row that a name in lower case means, or None."""
        found = self._exact.get(name, len(self._rows))
        for position, clause in self._clauses:
            if position >= found:
                break
            if matches(clause, name):
                return self._rows[position]
        return self._rows[found] if found < len(self._rows) else None


@cache
def index() -> Index:
    """Return the index, read at the first use."""
    return _INDEX.decode(_file("index"))


@cache
def _providers() -> dict[str, ProviderRow]:
    return {provider.id: provider for provider in index().providers}


@cache
def _spellings() -> dict[str, str]:
    return {name: row.id for row in index().providers for name in _spelled_out(row.match)}


def _spelled_out(clause: Clause | None) -> list[str]:
    """Return the names that a test spells out, where any of them passes it."""
    kind, value = clause or ("|", [])
    if kind == "|":
        return [name for part in value for name in _spelled_out(part)]
    return [str(value)] if kind == "=" else []


def provider_spelled(name: str) -> str:
    """Return the id of the provider whose name is spelled so; any other name, in lower case, for itself.

    A name that only has a provider's in it, which `tariff_of` takes for that provider's, may be one of the user's own.

    >>> provider_spelled("xAI"), provider_spelled("azure.ai.openai"), provider_spelled("openai-proxy")
    ('x-ai', 'azure', 'openai-proxy')
    """
    wanted = name.lower().strip()
    wanted = _PROVIDER_ALIASES.get(wanted, wanted)
    return wanted if wanted in _providers() else _spellings().get(wanted, wanted)


@cache
def _table(provider_id: str) -> Table:
    return Table(_TABLE_FILE.decode(_file(provider_id)).models)


def _file(name: str) -> bytes:
    return pkgutil.get_data(__package__, f"tables/{name}.json") or b""


_resolved: dict[tuple[str | None, str | None], Tariff | str] = {}


def tariff_of(provider: str | None, model: str | None) -> Tariff | str:
    """Return the tariff of a model, or in words why there are none.

    Guarantees: at most 2048 answers are kept, for names of at most 256 characters; a longer name is unknown.

    Concurrency: any thread, without a lock: whoever comes second finds or makes the same answer.
    """
    key = (provider, model)
    answer = _resolved.get(key)
    if answer is None:
        answer = _resolve(provider, model)
        if len(provider or "") + len(model or "") <= _MAX_NAME:
            if len(_resolved) >= _MAX_RESOLVED:
                _resolved.clear()
            _resolved[key] = answer
    return answer


def is_at_hand(provider: str | None, model: str | None) -> bool:
    """Return whether a model has a tariff, and was asked for before: nothing is read or searched for it any more."""
    return isinstance(_resolved.get((provider, model)), Tariff)


def _resolve(provider: str | None, model: str | None) -> Tariff | str:
    if not provider or len(provider) > _MAX_NAME:
        return "unknown provider"
    if not model or len(model) > _MAX_NAME:
        return "unknown model"
    found, name = _provider_and_name(provider, model.lower())
    if found is None:
        return f"unknown provider {provider!r}"
    for prefix in _PREFIXES.get(found.id, ()):
        name = name.removeprefix(prefix)
    return _tariff_in(found, name) or _tariff_in(found, dashed_dates(name)) or f"unknown model {model!r} of {found.id}"


def _provider_and_name(provider: str, name: str) -> tuple[ProviderRow | None, str]:
    if provider.lower() != "litellm":
        return _provider_named(provider), name
    prefix, slash, rest = name.partition("/")
    if slash and prefix and (found := _provider_named(prefix)):
        return found, rest
    owners = (row for row in index().providers if row.model_match and matches(row.model_match, name))
    return next(owners, None), name


def _provider_named(name: str) -> ProviderRow | None:
    wanted = name.lower().strip()
    wanted = _PROVIDER_ALIASES.get(wanted, wanted)
    if found := _providers().get(wanted):
        return found
    if "." in wanted or ":" in wanted:  # a host that is not known: "openai" inside it makes it nobody's
        return None
    return next((row for row in index().providers if row.match and matches(row.match, wanted)), None)


def _tariff_in(provider: ProviderRow, name: str) -> Tariff | None:
    if row := _table(provider.id).row(name):
        return Tariff(_TERMS.decode(row.terms), index().version)
    for fallback in provider.fallbacks:
        if row := _table(fallback).row(name):
            return Tariff(Terms(_TERMS.decode(row.terms).prices), index().version)
    return None
