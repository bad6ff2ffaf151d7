"""Detection of texts that could mislead a model or a reader: control tokens, invisible characters, encoded blobs."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 2000

_CONTROL_TOKEN = re.compile(
    r"</?s>|\[/?INST\]|<\|[\w ]{1,30}\|>|<</?SYS>>|\[/?(?:TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
)
_BLOB = re.compile(
    r"(?:[A-Za-z0-9+/]{80,}={0,2}|(?:[0-9a-fA-F]{2}){40,}|(?:\\x[0-9a-fA-F]{2}){8,}|(?:%[0-9a-fA-F]{2}){12,})"
)
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ZERO_WIDTH = frozenset("\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060\u2061\u2062\u2063\u2064\ufeff")
_JOINERS = frozenset("\u200c\u200d")  # needed inside Persian, Indic scripts and emoji; suspicious between Latin letters
_HIDDEN_JOINER = re.compile("[A-Za-z0-9][\u200c\u200d]+[A-Za-z0-9]")


def reason_to_quarantine(text: str) -> str | None:
    """Return what is wrong with a logged text; None for one that may be used."""
    if not text.strip():
        return "empty"
    if len(text) > MAX_CHARACTERS:
        return "too_long"
    if _CONTROL_TOKEN.search(text):
        return "control_token"
    if not text.isascii():
        characters = frozenset(text)
        if characters & _BIDI:
            return "bidi"
        if characters & _ZERO_WIDTH or (characters & _JOINERS and _HIDDEN_JOINER.search(text)):
            return "zero_width"
        if any(0xE0000 <= ord(character) <= 0xE007F for character in characters):
            return "tag_characters"
    if not text.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Cs", "Co") and character not in "\n\t\r" for character in set(text)
    ):
        return "control_character"
    if _BLOB.search(text):
        return "encoded_blob"
    return None
