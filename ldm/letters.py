"""Words of any language as they are compared: in letters without accents."""

from __future__ import annotations

import unicodedata

LETTERS = str.maketrans({"ø": "o", "ł": "l", "ı": "i", "đ": "d", "æ": "ae", "ß": "ss"})


def unaccented(text: str) -> str:
    """Return a text in lower case without accents: of ``Oedème`` it is ``oedeme``."""
    parts = unicodedata.normalize("NFKD", text.lower().translate(LETTERS))
    plain = "".join(c for c in parts if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", plain)  # which Korean needs
