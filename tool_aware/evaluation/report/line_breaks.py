"""Where the name of a tool or another long word may continue on the next line."""

from __future__ import annotations

import re
from html import escape

LONGEST_PIECE = 16  # characters that stay together
# A piece of a word: up to and with a separator before a letter, or up to a capital of camelCase; numbers are whole.
_PIECES = re.compile(r".+?(?:_(?=[^\W_])|[.\-/:=&?,](?=[^\W\d])|(?<=[a-z0-9])(?=[A-Z])|$)")


def pieces(word: str, longest: int = LONGEST_PIECE) -> list[str]:
    """Split a word behind its separators and before its inner capitals; a piece above `longest` is cut to length."""
    parts = _PIECES.findall(word)
    return [part[start : start + longest] for part in parts for start in range(0, len(part), longest)]


def wrapped(name: str, width: int) -> list[str]:
    """Return a name as lines of at most `width` characters."""
    lines = [""]
    for piece in (piece for word in re.findall(r"\S+\s?", name) for piece in pieces(word, width)):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def breakable(text: str) -> str:
    """Return text as HTML whose long words have a `<wbr>` where they may continue on the next line.

    Browsers break at a dash by themselves, which would tear an interval, `[72–100]`, or an arrow.
    """
    return "".join(_html(word) or blank for word, blank in re.findall(r"(\S+)|(\s+)", text))


def _html(word: str) -> str:
    if len(word) <= LONGEST_PIECE and re.search("[–-][^a-zA-Z]", word):
        return f"<span>{escape(word)}</span>"  # held together by the page's style
    return "<wbr>".join(map(escape, pieces(word)))
