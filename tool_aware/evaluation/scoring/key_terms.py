"""The words of a text that a search or a reader depends on: content words, and of these names, numbers, negations.

Works without a dictionary, in the languages that the data has and in others: function words are those of the lists in
bm25s (and two short ones of our own), names are what a cased language other than German writes in capitals, and
Chinese and Japanese, which have no spaces, are cut into pairs of neighbouring characters (Nie et al. 2000).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from tool_aware.config.yaml_file import shipped_yaml
from tool_aware.text import common_prefix_length

NEGATION = "(negation)"  # stands among the lost or added words

_PIECES = re.compile(
    r"(?P<date>\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{4})"
    r"|(?P<number>\d+(?:[.,]\d+)*)"
    r"|(?P<han>[\u3400-\u9fff々]+)"
    r"|(?P<kana>[\u30a0-\u30ff]+)"
    r"|(?P<hiragana>[\u3040-\u309f]+)"
    r"|(?P<word>[^\W\d_\u3040-\u30ff\u3400-\u9fff]+)"
)
_ASCII_PIECES = re.compile(  # the same of a text in ASCII, as most are, in a fifth of the time
    r"(?P<word>[A-Za-z]+)"
    r"|(?P<date>\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{4})"
    r"|(?P<number>\d+(?:[.,]\d+)*)"
)
_NEGATIVE_CHARACTERS = re.compile("不|没|沒|无|無|非|除|未|ない|なし|ません|ずに|抜き|以外|없|않|아닌|제외")
_CYRILLIC = re.compile("[\u0400-\u04ff]")
_ENDINGS = ("s", "es", "n", "en", "e", "less", "frei", "los")
_VOWELS = "aeiouyаеёиоуыэюя"
_FREE_OF = re.compile(r"[a-z]{3}less\b|\bfree\b|\w{3}(?:frei|los)(?:e[nrsm]?)?\b", re.IGNORECASE)
_LANGUAGES = {
    "en": "EN_PLUS", "de": "GERMAN", "fr": "FRENCH", "es": "SPANISH", "it": "ITALIAN", "pt": "PORTUGUESE",
    "nl": "DUTCH", "sv": "SWEDISH", "da": "DANISH", "no_": "NORWEGIAN", "ru": "RUSSIAN", "tr": "TURKISH",
}  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """The words of one text, folded: `content` in order, each once; `names` and `times` are among them.

    A number is written in every way it can be read: `1.250` is 1250 and 1.25. `capitals` are words that may be names:
    German writes all nouns so. `unspaced` is what the text has of scripts without spaces.
    """

    content: tuple[str, ...]
    names: frozenset[str]
    capitals: frozenset[str]
    unspaced: str
    numbers: tuple[frozenset[str], ...]
    times: frozenset[str]
    filler: int
    is_negated: bool
    is_free_of: bool  # says without by a word that need not: `fanless`, `gluten-free`

    def has(self, word: str) -> bool:
        """Return whether the text has a content word of another text, in some form."""
        return self._has_exactly(word) or any(same_word(word, other) for other in self._by_beginning.get(word[:3], ()))

    def has_name(self, name: str) -> bool:
        """Return whether the text has a name of another text."""
        return self._has_exactly(name) or any(same_name(name, other) for other in self._by_beginning.get(name[:3], ()))

    def _has_exactly(self, word: str) -> bool:
        return word in self._words or word in self.unspaced

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(self.content)

    @cached_property
    def _by_beginning(self) -> dict[str, list[str]]:
        """Return the content words by their first letters, which forms of one word share; so long texts take little."""
        words: dict[str, list[str]] = {}
        for word in self.content:
            words.setdefault(word[:3], []).append(word)
        return words


@lru_cache(maxsize=8_192)  # a row at a time is judged, by all systems' answers
def terms_of(text: str, language: str = "en") -> Terms:
    """Return the words of a text in a language, as `language_of` names it."""
    text = _present_phrases().sub(" ", unicodedata.normalize("NFKC", text))
    content: list[str] = []
    unspaced = ""
    numbers, filler = [], 0
    found: dict[str, set[str]] = {"name": set(), "capital": set(), "time": set()}
    is_negated = bool(_NEGATIVE_CHARACTERS.search(text))
    for match in _pieces(text):
        kind, piece = match.lastgroup, match[0]
        if kind == "date":
            numbers += [frozenset({part.lstrip("0") or "0"}) for part in re.findall(r"\d+", piece)]
        elif kind == "number":
            numbers.append(readings(piece))
        elif kind == "han":
            content += _pairs(piece)
            unspaced += piece
        elif kind == "kana":
            content.append(piece)
            unspaced += piece
        elif kind == "word":
            role, word = _word(piece, language)
            is_negated |= role == "negation"
            filler += role == "filler"
            if role not in ("negation", "filler"):
                content.append(word)
            if role in found:
                found[role].add(word)
    return Terms(
        tuple(dict.fromkeys(content)),
        frozenset(found["name"]),
        frozenset(found["capital"]),
        unspaced,
        tuple(dict.fromkeys(numbers)),
        frozenset(found["time"]),
        filler,
        is_negated,
        _is_free_of(text),
    )


def _is_free_of(text: str) -> bool:
    lowered = text.lower()
    if text.isascii() and not any(word in lowered for word in ("less", "free", "frei", "los")):
        return False  # in a tenth of the expression's time
    return bool(_FREE_OF.search(text))


@lru_cache(maxsize=65_536)  # texts share words
def _word(piece: str, language: str) -> tuple[str, str]:
    """Return what a word is to its text, empty for a content word of no further kind, and the word, folded."""
    folded, word = piece.casefold(), fold(piece)
    fillers = _fillers(language)
    if folded in _negations(language):
        return "negation", word
    if (folded in fillers or word in fillers) and not (piece.isupper() and len(piece) > 1):
        return "filler", word
    if folded in _times():
        return "time", word
    if _is_name(piece, language):
        return "name", word
    return "capital" if piece[0].isupper() else "", word


def index_tokens(text: str) -> list[str]:
    """Return the tokens by which a text is indexed and searched: folded words cut to 5 characters, numbers, pairs.

    Cutting is the stemmer: across European languages it serves retrieval as well as one (McNamee et al. 2009).
    Function words are left out.
    """
    tokens, fillers = [], _fillers(language_of(text))
    for match in _pieces(unicodedata.normalize("NFKC", text)):
        kind, piece = match.lastgroup, match[0]
        if kind in ("date", "number"):
            tokens += [part.lstrip("0") or "0" for part in re.findall(r"\d+", piece)]
        elif kind == "han":
            tokens += [*piece] if len(piece) == 1 else [piece[i : i + 2] for i in range(len(piece) - 1)]
        elif piece.casefold() not in fillers:
            tokens.append(fold(piece)[:5])
    return tokens


def _pieces(text: str) -> Iterator[re.Match[str]]:
    return (_ASCII_PIECES if text.isascii() else _PIECES).finditer(text)


def fold(word: str) -> str:
    """Return a word without case and accents."""
    if word.isascii():
        return word.lower()
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))


def readings(number: str) -> frozenset[str]:
    """Return the ways in which digits with points and commas can be read, as plain decimal numbers."""
    marks = re.findall(r"[.,]", number)
    if not marks:
        return frozenset({number.lstrip("0") or "0"})
    found = set()
    *whole, last = re.split(r"[.,]", number)
    if len(set(marks)) == 2 or len(marks) == 1:
        found.add(_decimal("".join(whole), last))
    if len(set(marks)) == 1 and all(len(part) == 3 for part in (*whole[1:], last)):
        found.add("".join((*whole, last)).lstrip("0") or "0")
    return frozenset(found or {number})


def _decimal(whole: str, fraction: str) -> str:
    fraction = fraction.rstrip("0")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{fraction}" if fraction else whole


def same_word(one: str, other: str) -> bool:
    """Return whether two folded words are one in different forms: equal, or alike but for a short ending."""
    shorter, longer = sorted((one, other), key=len)
    if one == other or (len(shorter) >= 3 and longer.startswith(shorter) and longer[len(shorter) :] in _ENDINGS):
        return True
    if len(shorter) < 4 or len(longer) - len(shorter) > 4:
        return False
    return common_prefix_length((one, other)) >= max(4, len(shorter) - 2)


def same_name(one: str, other: str) -> bool:
    """Return whether two folded names are one: equal but for an ending, or for the vowel at the end."""
    shorter, longer = sorted((one, other), key=len)
    is_inflected = len(shorter) >= 4 and longer.startswith(shorter) and len(longer) - len(shorter) <= 2
    has_other_vowel = len(one) == len(other) > 4 and one[:-1] == other[:-1] and one[-1] in _VOWELS
    return one == other or is_inflected or (has_other_vowel and other[-1] in _VOWELS)


def has_number(number: frozenset[str], among: Iterable[frozenset[str]]) -> bool:
    """Return whether a number, in some reading, is among others."""
    return any(number & other for other in among)


def month_number(word: str) -> frozenset[str]:
    """Return the number of the month that a word names, as a number's readings; empty if it names none."""
    number = _months().get(word)
    return frozenset({str(number)}) if number else frozenset()


@lru_cache(maxsize=8_192)
def language_of(text: str) -> str:
    """Return the language whose function words the text has most of; English if it has none."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    if not text.isascii() and len(_CYRILLIC.findall(text)) > len(text) / 3:
        return "ru"
    known = _languages_of_function_words()
    counts = Counter(chain.from_iterable(map(known.get, words, repeat(()))))
    return max((*_LANGUAGES, "pl"), key=lambda language: counts[language])  # of equal ones the first


def _is_name(piece: str, language: str) -> bool:
    if len(piece) == 1:
        return False
    is_mixed = piece[1:] != piece[1:].lower() or (piece.isupper() and len(piece) > 1)
    return is_mixed or (piece[0].isupper() and language != "de")


def _pairs(run: str) -> list[str]:
    """Cut a run of Chinese characters into pairs, between its function words."""
    return [part[i : i + 2] for part in _han_filler().split(run) for i in range(0, len(part), 2)]


@cache
def _word_lists() -> Any:

    return shipped_yaml(Path(__file__).with_name("word_lists.yaml"))


@cache
def _function_words(language: str) -> frozenset[str]:
    if language not in _LANGUAGES:
        return frozenset(_word_lists()["function_words"][language].split())
    return frozenset(getattr(bm25s_module().stopwords, f"STOPWORDS_{_LANGUAGES[language]}"))


@cache
def bm25s_module() -> Any:
    """Import bm25s without JAX.

    Where JAX is installed, bm25s computes with it while it is imported, which takes three quarters of a GPU's memory.
    """
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "jax"}
    sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        import bm25s
        import bm25s.stopwords
    finally:
        del sys.modules["jax"]
        sys.modules.update(hidden)
    return bm25s


@cache
def _languages_of_function_words() -> dict[str, list[str]]:
    languages: dict[str, list[str]] = {}
    for language in (*_LANGUAGES, "pl"):
        for word in _function_words(language):
            languages.setdefault(word, []).append(language)
    return languages


@cache
def _fillers(language: str) -> frozenset[str]:
    lists = _word_lists()
    said = {*lists["polite"].split(), *lists["present"].split(), *_function_words(language)}
    return frozenset(said - _negations(language) - _times())


@cache
def _times() -> frozenset[str]:
    lists = _word_lists()
    return frozenset([*lists["times"].split(), *(name for names in lists["months"] for name in names.split())])


@cache
def _negations(language: str) -> frozenset[str]:
    return frozenset(_word_lists()["negations"][language].split())


@cache
def _present_phrases() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(_word_lists()['present_phrases'])})\b", re.IGNORECASE)


@cache
def _han_filler() -> re.Pattern[str]:
    return re.compile("|".join(_word_lists()["han"].split()))


@cache
def _months() -> dict[str, int]:
    return {fold(name): number for names in _word_lists()["months"] for number, name in enumerate(names.split(), 1)}
