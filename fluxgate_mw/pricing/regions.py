"""What OpenAI adds to the price of a model that is asked at the endpoint of a region, by its day of release.

Source: https://developers.openai.com/api/docs/guides/data-residency and https://developers.openai.com/api/docs/pricing
(read 2026-11): endpoints of a region are charged 10 % more for models released on or after 2026-03-05; which of
them are older is told by the dates of their snapshots, and by BerriAI/litellm#31136 and #32387.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["uplift_percent"]

_UPLIFT_PERCENT: Final = 10
_SINCE: Final = "2026-03-05"
_DAY: Final = re.compile(r"20\d\d-\d\d-\d\d")
_BEFORE: Final = re.compile(
    r"gpt-3\.?5|gpt-4|gpt-5(?![.-]?\d)|gpt-5[.-][1-3](?!\d)|o[134](?!\d)|gpt-image-1(?!\d)|gpt-audio(?!-[2-9])"
    r"|gpt-realtime(?:-mini|-1\.5)?$|chatgpt-4o|computer-use|text-embedding-|(?:omni|text)-moderation|whisper-1|tts-1"
    r"|babbage|davinci"
)
_AFTER: Final = re.compile(r"gpt-5[.-][4-9](?!\d)|gpt-[6-9](?!\d)|gpt-image-[2-9]|gpt-realtime-[2-9]")


def uplift_percent(model: str) -> int | None:
    """Return by how much a model costs more at a region's endpoint; None where its day of release is not known.

    >>> uplift_percent("gpt-5.4"), uplift_percent("gpt-4o-2024-11-20"), uplift_percent("chat-latest")
    (10, 0, None)
    """
    name = model.lower().removeprefix("ft:").partition(":")[0]
    day = _DAY.search(name)
    if day is not None:
        return _UPLIFT_PERCENT if day[0] >= _SINCE else 0
    if _AFTER.match(name):
        return _UPLIFT_PERCENT
    return 0 if _BEFORE.match(name) else None
