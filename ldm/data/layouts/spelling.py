"""What follows the contrast in a file name: whether an agent was given, and what was done to it."""

from __future__ import annotations

import re

from ldm.data.layouts.series import says_agent
from ldm.study import Contrasts

GRID = r"(?:(?:ce|c)?t[12][a-z]*|flair|mni\w*|sri\w*|atlas|template)"
PROCESSED = re.compile(  # ID_t1ce_to_t1 is a T1ce, no T1
    rf"(?:[_. -](?:(?:co)?reg(?:istered)?|aligned|bet|(?:skull)?stripped|r2s)|"
    rf"[_. -](?:to|in|on)[_. -]{GRID}|(?<=[a-z0-9])(?:to|2){GRID})+$",
    re.IGNORECASE,
)


def unprocessed(stem: str) -> str:
    """Return a name less what says that its image was registered or stripped."""
    return PROCESSED.sub("", stem)


def is_processed(stem: str) -> bool:
    """Return whether a name says that its image was registered or stripped."""
    return unprocessed(stem) != stem


def contrast_spelt(text: str, contrasts: Contrasts) -> str | None:
    """Return the contrast that a name of the field means, or T1 and words on an agent, or None."""
    return contrasts.named(text) or says_agent(text)
