"""What the dashboard ships: colours that can be read, and little of it."""

from __future__ import annotations

import gzip
import re

import pytest

from fluxgate_mw.dashboard.render import STATIC_FOLDER

CSS = (STATIC_FOLDER / "dashboard.css").read_text()
PAIRS = {name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)}
GROUNDS = ("bg", "surface", "surface-2")
TEXTS = ("text", "text-2", "text-3", "accent", "good", "warn", "bad")
MARKS = ("s1", "s2", "s3", "s4", "s5", "s6", "other", "border-strong")


def _luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    dark, light = sorted([_luminance(one), _luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_texts_can_be_read_on_every_ground(theme):
    """WCAG AA: every text colour has a contrast of 4.5 on every ground, and on its own tinted one."""
    pairs = [(text, ground) for text in TEXTS for ground in GROUNDS]
    pairs += [("accent", "accent-bg"), ("warn", "warn-bg"), ("bad", "bad-bg"), ("text", "bad-bg")]
    low = {pair: _contrast(*(PAIRS[name][theme] for name in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_marks_stand_out_from_the_page(theme):
    """WCAG AA: every series of the chart and every input border has a contrast of 3 on page and surface."""
    low = {
        (mark, ground): _contrast(PAIRS[mark][theme], PAIRS[ground][theme]) for mark in MARKS for ground in GROUNDS[:2]
    }
    assert {pair: ratio for pair, ratio in low.items() if ratio < 3} == {}


def test_colours_are_named_once():
    """Colours stand in the tokens alone: a theme is one list."""
    assert len(PAIRS) == len(GROUNDS) + len(TEXTS) + len(MARKS) + len(("border", "accent-bg", "warn-bg", "bad-bg"))
    assert len(re.findall(r"#[0-9A-Fa-f]{3,8}\b", CSS)) == 2 * len(PAIRS)


def test_the_assets_are_small():
    """The style sheet is at most 12 KB, the script at most 4 KB, and neither asks another host."""
    script = (STATIC_FOLDER / "dashboard.js").read_text()
    assert len(CSS.encode()) <= 12 * 1024
    assert len(script.encode()) <= 4 * 1024
    assert len(gzip.compress((CSS + script).encode())) <= 8 * 1024
    assert not re.search(r"https?:|@import|url\(", CSS + script)
