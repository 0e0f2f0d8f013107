"""Which contrast a DICOM series is, by its ``SeriesDescription`` and ``ContrastBolusAgent``.

Descriptions are typed at the scanner, in the language of the hospital. They become words, and are
read in this order: what is no image of brain anatomy is passed over; pairs that only seem to speak
of an agent (``post op``, ``no fat sat``) are put aside; then denials (``w/o contrast``, ``C-``,
``oKM``), because each holds the word that it denies; then the agent (``+C``, ``GADO``, ``mKM``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm.letters import unaccented

# Signs, and words within words (Philips eT1W_SE, 3DT1, T2FLAIR; German oKM, mKM), as words.
SPELLINGS = [
    (r"^t1_mpr_", "t1 mprage "),  # Siemens; any other "mpr" is a reformation
    (r"_", " "),
    (r"mp[ -]?rage", " mprage "),
    (r"dark[ -]?fl(uid)?\b|\bda-fl\b|\bir ?prep\b|\b[es](?=flair)", " flair "),
    (r"(multi|dual)[ -]?echo", " echoes "),
    (r"(造影|[增増][强強])[剤剂]?(前|な|無し?)し?|平[扫掃]|単純|без к\w*|до к\w*", " native "),
    (r"비 ?조영|조영(제|증강)? ?전|χωρις \w+|\b(khong|chua|truoc) tiem\w*", " native "),
    (r"造影後?|[增増][强強]|с к(онтраст\w*|у|в)\b|после к\w*", " gd "),
    (r"조영(제|증강)?( ?후)?|με σκιαγραφ\w*|\b(co|sau) tiem\w*|\b(po|s) ?kl\b|\+ ?k\b", " gd "),
    (r"\b[ck]ontrast(frei|los|less|fri|fritt|vrij|siz)\b", " native "),
    (r"\b(c ?\(?[/ ]?|ce|cm|km|gd|gado?)-(?![a-z0-9])|(?<= )-(ce|cm|km|gd|gado?)\b", " native "),
    (r"\(-\)|\w+[ -](free|nelkul|oncesi|elott)\b", " native "),
    (r"\(\+\)", " gd "),
    (r"\bce(?=t1)", "ce "),
    (r"(?<![a-z0-9])(?:[desv]|[23]d|ax|sag|cor|tra)?(t[12])(?:weighted|wi?)?(?!\d(?!d))", r" \1 "),
    (r"\*", " star "),
    (r"\b[ctl][ -]?spine", " spine "),
    (r"\bw(?:ith)?[ /]*(?:and|&|or)?[ /]*w(?:ith|/)?(?:o|out)\b", " without post "),
    (r"\bw ?[/\\.] ?o(ut)?\b|\bs/ ?c?\b|\bw o\b", " without "),
    (r"\bn/c\b|-ve\b|\bminus\b", " without "),
    (r"(?<!post)- ?c\b", " native "),
    (r"\bc ?\(?[/ ]?\+|\+ ?c\b|\+\s*$|\bc/c\b|\bw ?/ ?c\b|\bwc\b|\bw ?/? ?con\b", " gd "),
    (r"\b(o|ohne|m|mit|n|nach|p|vor)?[. ]?k\.? ?m\b", r" \1 km "),
]
JOINED = re.compile(r"(non?|pre|wo|post|with)(op|con|ce?|contrast\w*|gad\w*|gd|km|enh\w*|inj\w*)")
T1_WORDS = {"t1", "mprage", "memprage", "spgr", "fspgr", "irspgr", "bravo"}
T1_WORDS |= {"tfl3d", "vibe"}
NO_T2 = {"star", "gre", "hemo", "heme", "medic", "fl2d", "fl3d", "ffe", "flash"}  # T2*
NO_T2 |= {"tirm", "decay", "echoes"}
OTHER = re.compile(  # maps, other physics, scouts, reformations, other parts of the body
    r"swi|swan|qsm|dwi|dti|e?adc|isodwi|ep2d|epi|diff\w*|trace\w?|tensor|fa|colfa|perf\w*|d[sc][ce]|"
    r"pwi|p?c?asl|r?cb[fv]|mtt|ttp|tmax|dyn\w*|twist|ktrans|bold|fmri|loc|locali[sz]er|scout|survey|"
    r"aahead|calib\w*|field\w*|fmap|b[01]\w*|plane|sub|subtr\w*|mip|minip|mpr|ref(or)?ma?t\w*|"
    r"sous\w*|sottra\w*|sub?stra[ck]\w*|resta\w*|carte|kart\w*|mapp?as?|screen\w*|report|fusion|rgb|maps?|mapping|rho|relax\w*|fit|quant\w*|(sh)?molli|despot\w*|mrf|"
    r"fingerprint\w*|symri|magic|synth\w*|vfa|ratio|r[12]|images|inv[12]?|mt[crw]?|magneti\w*|cest|"
    r"apt|phase|pha|mag|mra|mrv|tof|angio\w*|venogr\w*|csi|svs|mrs|spectro\w*|press|psir|dir|stir|"
    r"pdw?|ciss|fiesta|blood|opp|vnav|setter|\w*spine|cerv\w*|csp|tsp|lsp|thoracic|lumbar|sacr\w*|"
    r"[hbl]ws|rachis|columna|colonna|myelo\w*|orbits?|ia[cm]|inner|ear|temporal|tmj|face|facial|"
    r"sinus\w*|parotid\w*|larynx|pharynx|sella|pituitary|hypophys\w*|neck|chest|abdomen|liver|pelvis|"
    r"prostate|breast|knee|hip|shoulder|heart|cardiac"
)
FAT = re.compile(r"fs|fat\w*|mt|spir|spair")
TIME = re.compile(r"op\w*|surg\w*|rt|radi\w*|treat\w*|tx|chemo\w*|biops\w*|resect\w*|scan")
NATIVE = {"native", "nativ", "nativa", "natif", "plain", "pre", "without", "wo", "sans", "ohne"}
NATIVE |= {"senza", "zonder", "unenhanced", "nce", "bez", "utan", "uden", "uten", "ilman", "fara"}
NATIVE |= {"nativni", "nativne", "natiivi", "natywny", "natywne"}
DENIAL = NATIVE | {"no", "non", "none", "not", "o", "before", "bef", "vor", "avant", "antes"}
DENIAL |= {"prior", "pree", "sin", "sem", "kein", "keine", "nicht", "geen", "aucun", "ninguno"}
DENIAL |= {
    "nessuno",
    "nil",
    "nein",
    "przed",
    "pred",
    "fore",
    "for",
    "ennen",
    "inainte",
    "prae",
    "pra",
}
WITH = {"with", "w", "mit", "m", "avec", "con", "com", "met", "med", "cu", "z", "s", "se", "gd"}
WITH |= {"after", "nach", "n", "apres", "dopo", "tras", "na", "po", "efter", "etter", "dupa"}
WITH |= {"pos", "apos", "iv", "and", "plus", "enh"}
SCAN = re.compile(  # short words of a protocol, which deny nothing
    r"ax|axial|tra|trans|sag|cor|coron|obl|oax|[ft]?se|gre|t?f[ef]e?|ir|cube|space|vista|dixon|iso|"
    r"fs|fat|sat|spir|spair|brain|head|cs|sense|wip|orig|water|multi|thin|star|flair"
)
FILLER = {"iv", "de", "d", "the", "to", "di", "mezzo"}
AGENTS = (  # by their names, gadolinium and ferumoxytol
    r"gd(?!ansk|ynia)\w*|\w*gado\w*|gad\w*|gbca|dtpa|magnev\w*|magnog\w*|dotarem|dotagraf|clarisc\w*|cyclolux|"
    r"artirem|prohance|multih\w*|omnisc\w*|optimark|eovist|primovist|ablavar|vasovist|"
    r"eluc[iy]rem|vueway|pixxoscan|feraheme|ferumox\w*|dota|(?:iv)?km|[ck]ontras\w*|tehost\w*"
)
AGENT_WORD = re.compile(rf"{AGENTS}|c|ce|mdc|enh\w*|inj\w*|post|apres|dose")
SPOKEN = re.compile(r"[ck]ontras\w*|gadol\w*|inj\w*|enh\w*|tehost\w*")  # in a sentence
LONGEST_PARTICLE = 6
DENIED = re.compile(rf"{AGENT_WORD.pattern}|con|cont|cm|agent|kl")  # these only if denied
AGENT = re.compile(  # ContrastBolusAgent: by its name, or a dose
    rf"\b(?:{AGENTS}|yes|y|true|ja|oui|iv|given|applied|administered)\b|"
    r"(?<![\d.,])(?=[\d.,]*[1-9])\d+(?:[.,]\d+)? ?(?:ml|cc|mmol)"
)
NO_AGENT = re.compile(
    r"(?:n ?[/.]? ?a?|0+(?:[.,]0+)? ?(?:ml|cc|mmol)?|[-?x]+|null|nan|unk(?:nown)?|unspecified|"
    rf"false|off|negative|(?:w ?/? ?o(?:ut)?|{'|'.join(sorted(DENIAL))})(?:[ -].*)?)?"
)


class Series(NamedTuple):
    """What a series is: its contrast, or None where it is passed over; ``doubt`` says in a
    sentence what does not fit together, and is empty where all does."""

    contrast: str | None
    doubt: str = ""


def contrast_of_series(description: str, agent: str = "") -> str | None:
    """Return the contrast that ``SeriesDescription`` and ``ContrastBolusAgent`` mean, or None."""
    return read_series(description, agent).contrast


def read_series(description: str, agent: str = "") -> Series:
    """Return which contrast a series is, and what its two tags disagree about.

    A T1 FLAIR is T1-weighted. The description outweighs the agent, which often stands in every
    header of an examination; an image that is called enhanced and native at once is passed over.
    """
    words = _words(description)
    kind = _weighting(words)
    if kind is None:
        return Series(None)
    shown = f"SeriesDescription '{description}', ContrastBolusAgent '{agent.strip()}'"
    described, given = _enhancement(words), _given(agent)
    if None in described and False not in described:
        if given is None or not agent.strip():
            return Series(None, f"{shown}: a word before the agent is not known; passed over")
        described = {given}
    described.discard(None)
    if len(described) > 1:
        return Series(None, f"{shown}: called native and enhanced at once; passed over")
    said = next(iter(described), None)
    if kind != "t1":
        return Series(None if kind == "flair" and said else kind)
    contrast = "t1ce" if said or (said is None and given) else "t1"
    if agent.strip() and said is not None and said != bool(given):
        return Series(contrast, f"{shown}: they disagree; read as {contrast}")
    if given is None and said is None:
        return Series(contrast, f"{shown}: this agent is not known; read as {contrast}")
    if said is None and not given and not "".join(words).isascii():
        return Series(contrast, f"{shown}: in words that are not known; read as {contrast}")
    return Series(contrast)


def names_agent(sidecar: Mapping[str, Any]) -> bool:
    """Return whether the JSON beside a volume names an agent."""
    told = (sidecar.get(key) for key in ("ContrastBolusAgent", "ContrastBolusIngredient"))
    return _given(str(next(filter(None, told), ""))) is True


def says_agent(name: str, before: bool = False) -> str | None:
    """Return the contrast of T1 and words on an agent alone, or None.

    Args:
        before: the words may also stand before T1, as in ``KM_T1``; else only behind it, as in
            ``T1_ohne_KM``, because what is before it may be an id.
    """
    words = _words(name)
    is_t1 = words.count("t1") == 1 if before else words[:1] == ["t1"] and "t1" not in words[1:]
    if not is_t1 or read_series(name).doubt:
        return None
    given = _agent_alone([word for word in words if word != "t1"])
    return None if given is None else "t1ce" if given else "t1"


def agent_said(name: str) -> bool | None:
    """Return whether a name of words on an agent alone (``post_gd``, ``oKM``) says that one was
    given; None: it is another name. A lone ``C`` is a letter, and what has digits a number."""
    if any(map(str.isdigit, name)):
        return None
    words = _words(name)
    return None if words == ["c"] else _agent_alone(words)


def _agent_alone(words: list[str]) -> bool | None:
    known = (w in DENIAL | WITH | FILLER or AGENT_WORD.fullmatch(w) for w in words)
    said = _enhancement(words)
    return said.pop() if all(known) and "dose" not in words and len(said) == 1 else None


def says_native(text: str) -> bool:
    """Return whether a name of an agent denies one, as ``none`` or ``pre``."""
    return _given(text) is False or _enhancement(_words(text)) == {False}


def _words(description: str) -> list[str]:
    """Return the words of a description, in lower case and without accents; signs become words."""
    text = unaccented(description)
    for pattern, word in SPELLINGS:
        text = re.sub(pattern, word, text)
    words = []
    for word in re.findall(r"[a-z0-9]+|[^\W\d_a-z]+", text):
        joined = JOINED.fullmatch(word)
        words += joined.groups() if joined else [word]
    return words


def _weighting(words: list[str]) -> str | None:
    """Return ``t1``, ``t2`` or ``flair``; None: no image of the brain's anatomy."""
    found = set(words)
    if any(OTHER.fullmatch(word) for word in found):
        return None
    if found & T1_WORDS:
        return None if "t2" in found else "t1"
    if "flair" in found:
        return "flair"
    return "t2" if "t2" in found and not found & NO_T2 else None


def _enhancement(words: list[str]) -> set[bool | None]:
    """Return whether a description says that an agent was given; empty: it says nothing; None: an
    agent stands behind a word that may deny it."""
    said: set[bool | None] = set()
    rest, word = [word for word in words if word not in FILLER], ""
    while rest:
        before, (word, *rest) = word, rest
        follows = rest[0] if rest else ""
        put_aside = TIME if word in ("pre", "post") else FAT if word in DENIAL else None
        if put_aside and put_aside.fullmatch(follows):
            rest = rest[1:]
        elif word in DENIAL and follows != "post" and DENIED.fullmatch(follows):
            said, rest = said | {False}, rest[1:]
        elif word in NATIVE:
            said = said | {False}
        elif AGENT_WORD.fullmatch(word):
            said = said | {None if _may_deny(before) and SPOKEN.fullmatch(word) else True}
    return said


def _may_deny(word: str) -> bool:
    """Return whether a word is as short as "without" is in most languages, and is not known."""
    known = word in T1_WORDS | WITH or SCAN.fullmatch(word) or AGENT_WORD.fullmatch(word)
    return word.isalpha() and len(word) <= LONGEST_PARTICLE and not known


def _given(agent: str) -> bool | None:
    """Return whether the tag names an agent; None where its text is neither one nor none."""
    text = re.sub(r"[_\s]+", " ", agent.lower()).strip(" .")
    if NO_AGENT.fullmatch(text):
        return False
    return True if AGENT.search(text) else None
