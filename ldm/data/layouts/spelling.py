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

STAGE = re.compile(  # a folder of one state of the images, of which a patient may have several
    r"raw|orig(?:inals?)?|unprocessed|unstripped|(?:pre|post)?[_ -]?proc(?:ess(?:ed|ing)?)?|"
    r"(?:co)?reg(?:ist(?:ered|ration))?|aligned|resampled|normali[sz](?:ed|ation)|n4\w*|"
    r"bias[_ -]?corr(?:ect(?:ed|ion)?)?|(?:hd[_ -]?)?bet|brain[_ -]?extract(?:ed|ion)|"
    r"(?:skull[_ -]?)?strip(?:ped|ping)?|mni\w*|sri\w*|atlas|template",
    re.IGNORECASE,
)


SPM = "w?r?m?|[mrw]{2}|wmr"  # warped, resliced, bias-corrected: what SPM writes before a name
# and s before that of an image, smoothed or structural; an id may begin with it (s01)
SPM_IMAGE = re.compile(f"s?(?:{SPM})s?(?=(?:T[12]|FLAIR|Flair)[^ ]*$)")


def unprocessed(stem: str) -> str:
    """Return a name less what says that its image was registered or stripped."""
    return PROCESSED.sub("", SPM_IMAGE.sub("", stem, count=1))


def is_processed(stem: str) -> bool:
    """Return whether a name says that its image was registered or stripped."""
    return unprocessed(stem) != stem


def is_stage(name: str) -> bool:
    """Return whether a folder, or a part of an id, names no more than a state of its images."""
    return STAGE.fullmatch(name) is not None


def less_spm(subject: str) -> str:
    """Return an id less the letters that SPM writes before it: of ``rP1`` it is ``P1``."""
    found = re.fullmatch(f"(?:{SPM})([A-Z0-9].*)", subject)
    return found[1] if found else subject


def contrast_spelt(text: str, contrasts: Contrasts) -> str | None:
    """Return the contrast that a name of the field means, or T1 and words on an agent, or None."""
    return contrasts.named(text) or says_agent(text)
