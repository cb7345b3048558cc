"""Which provider a host belongs to: by whole labels from the right, never by a part of a name."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

__all__ = ["HOSTS", "is_regional", "provider_of_host"]

HOSTS: Final = MappingProxyType(
    {
        "anthropic.com": "anthropic",
        "api.cloudflare.com": "cloudflare",
        "arcee.ai": "arcee",
        "avian.io": "avian",
        "azure-api.net": "azure",
        "azuredatabricks.net": "databricks",
        "bigmodel.cn": "zhipuai",
        "cerebras.ai": "cerebras",
        "cognitiveservices.azure.com": "azure",
        "cohere.ai": "cohere",
        "cohere.com": "cohere",
        "cursor.com": "cursor",
        "databricks.com": "databricks",
        "deepseek.com": "deepseek",
        "doubleword.ai": "doubleword",
        "elevenlabs.io": "elevenlabs",
        "fireworks.ai": "fireworks",
        "githubcopilot.com": "github-copilot",
        "googleapis.com": "google",
        "groq.com": "groq",
        "inference.baseten.co": "baseten",
        "kepler.ai.cloud.ovh.net": "ovhcloud",
        "meta.ai": "meta",
        "minimax.com": "minimax",
        "minimax.io": "minimax",
        "minimaxi.com": "minimax",
        "minimaxi.io": "minimax",
        "mistral.ai": "mistral",
        "modal.direct": "modal",
        "modal.run": "modal",
        "models.ai.azure.com": "azure",
        "moonshot.ai": "moonshotai",
        "moonshot.cn": "moonshotai",
        "novita.ai": "novita",
        "openai.azure.cn": "azure",
        "openai.azure.com": "azure",
        "openai.azure.us": "azure",
        "openai.com": "openai",
        "openrouter.ai": "openrouter",
        "perplexity.ai": "perplexity",
        "quicksilverpro.io": "quicksilverpro",
        "services.ai.azure.com": "azure",
        "together.ai": "together",
        "together.xyz": "together",
        "typesafe.ai": "typesafe",
        "voyageai.com": "voyageai",
        "x.ai": "x-ai",
        "z.ai": "zai",
    },
)
"""Host or domain to provider id. What is paid by the machine is none: of Azure's domain and Baseten's only the hosts
that are paid by the token are here.

Source: the providers' own API references and `api_pattern` of genai-prices 0.2.3 (2026-11), of which are left out
`router.huggingface.co`, whose path names the provider, and a second provider of `api.openai.com`. For
`models.ai.azure.com`, Azure's serverless endpoints:
https://learn.microsoft.com/azure/machine-learning/concept-endpoints (read 2026-12).
"""

_BEDROCK: Final = ("bedrock", "bedrock-mantle", "bedrock-runtime")
_BEDROCK_DOMAINS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
"""Source: https://docs.aws.amazon.com/general/latest/gr/bedrock.html (the region is the host's second label)."""

_REGIONAL: Final = ".api.openai.com"
"""Source: https://developers.openai.com/api/docs/guides/data-residency (read 2026-11): `eu.`, `us.` and others."""


def is_regional(host: str) -> bool:
    """Return whether a host is the endpoint of a region, where some models cost more.

    >>> is_regional("eu.api.openai.com"), is_regional("api.openai.com")
    (True, False)
    """
    return host.lower().rstrip(".").endswith(_REGIONAL)


def provider_of_host(host: str) -> str:
    """Return the provider id that a host stands for; a host that is not known, in lower case, for itself.

    Args:
        host: With or without a port.

    Concurrency: any thread.

    >>> provider_of_host("EU.api.openai.com"), provider_of_host("llmbox.ai"), provider_of_host("localhost:8080")
    ('openai', 'llmbox.ai', 'localhost:8080')
    """
    own = host.strip().lower()
    name = own.partition(":")[0].rstrip(".")
    if name.partition(".")[0] in _BEDROCK and name.endswith(_BEDROCK_DOMAINS):
        return "aws"
    suffix = name
    while suffix:
        if suffix in HOSTS:
            return HOSTS[suffix]
        suffix = suffix.partition(".")[2]
    return own
