"""Noise as in what people type: greetings, sentences around the request, typos, lost capitals, hostile wrapping.

Noise changes the query only. Parameters and reasoning are made from the clean sentence, and words a program depends on
(`protected`) are never touched.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"[^\W\d_]{4,}")
_NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_TYPING = ("typos", "no_final_mark", "lower_case")
_MARKS = frozenset("\"'()[]{}<>.,;:!?*|-¿¡«»„“”")
MAX_TYPOS = 3
_ALIKE = 0.75  # of words that are the wanted ones, mistyped
_BEFORE = (1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 5, 7, 10)  # sentences in front of the request; ten make about 90 words
_AFTER = (0, 0, 0, 1, 1, 3)


@dataclass(frozen=True)
class Noisy:
    """A query with noise, and the slice it then belongs to (None = the frame's own)."""

    text: str
    slice: str | None = None
    letters: str = "as written"  # or lower, or upper: all of the query is typed so

    def as_typed(self, text: str) -> str:
        """Return a part of the request with the capitals and the final mark that it has in the query, without typos."""
        bare = text.rstrip(" ?.!")
        start = self.text.lower().find(bare.lower())
        if bare and start >= 0:
            end = start + len(bare)
            marks = text[len(bare) :]
            return self.text[start:end] + (marks if self.text[end:].startswith(marks) else "")
        return self.in_its_letters(text)

    def quoted(self, text: str) -> str:
        """Return a part of the request as it stands in the query, typos and all: the same number of words in a row."""
        found = _most_alike(text, self.text)
        if found is None:
            return self.as_typed(text)
        return found.rstrip("".join(set(".,;:!?") - set(text[-1:])))

    def span(self, text: str, of: str) -> str:
        """Return a part of the request `of` as it stands in the query, typos and all, without the marks around it.

        What is no part of it in one piece is returned word by word.
        """
        written = self.in_its_letters(text)
        if written in self.text:
            return written
        if text not in of:
            return " ".join(word if word in self.text else self.quoted(word) for word in written.split())
        found = _most_alike(text, self.text)
        if found is None:
            return written
        return found.lstrip("".join(_MARKS - set(text[:1]))).rstrip("".join(_MARKS - set(text[-1:])))

    def in_its_letters(self, text: str) -> str:
        """Return a text in small or capital letters where the query, or its only such word, is typed so."""
        if self.letters != "as written":
            return text.lower() if self.letters == "lower" else text.upper()
        return " ".join(
            word.lower() if word not in self.text and word.lower() in self.text else word for word in text.split(" ")
        )


def _bare_words(text: str) -> list[str]:
    return [word.strip(".,;:!?") for word in text.lower().split()]


def _most_alike(part: str, text: str) -> str | None:
    """Return the words in a row of a text that are most like a part of it; None if none are alike.

    They are so by their own letters, in any order, so that a typo counts little.
    """
    wanted, words = _bare_words(part), _bare_words(text)
    count = len(wanted)
    places = range(len(words) - count + 1) if wanted else ()
    exact = (at for at in places if words[at] == wanted[0] and words[at : at + count] == wanted)
    if (at := next(exact, None)) is not None:
        return " ".join(text.split()[at : at + count])
    letters, given = [set(word) for word in wanted], [set(word) for word in words]
    best, likeness = 0, 0.0
    for at in places:
        pairs = zip(letters, given[at : at + count], strict=True)
        found = sum(len(one & two) / max(len(one | two), 1) for one, two in pairs) / count
        if found > likeness:
            best, likeness = at, found
    return " ".join(text.split()[best : best + count]) if likeness >= _ALIKE else None


class Noise:
    """The wrapping described in noise.yaml, within the slices that are wanted."""

    def __init__(self, settings: Mapping[str, Any], slices: frozenset[str] | None = None) -> None:
        self._settings = settings
        self._probability = {
            name: chance
            for name, chance in settings["probabilities"].items()
            if slices is None or name not in settings["slices"] or name in slices
        }

    def apply(
        self,
        text: str,
        *,
        tool: str,
        other_tools: Sequence[str],
        protected: str,
        random_: random.Random,
        names: str = "",
    ) -> Noisy:
        """Return an English sentence meant for `tool` with wrapping, typos and lost capitals.

        No noise touches `protected`, and no typo the words of `names`, which nobody could correct.
        """
        slice_, sentence = None, _as_sentence(text, protected)
        rolls = {name: random_.random() < chance for name, chance in self._probability.items()}
        if rolls.get("injection") and other_tools:
            text, slice_ = (
                self._wrapped("injections", text, tool, other_tools, random_, protected=protected),
                "injection",
            )
        elif rolls.get("decoy") and other_tools:
            text, slice_ = self._wrapped("decoys", text, tool, other_tools, random_, protected=protected), "decoy"
        elif rolls.get("negation") and other_tools:
            text, slice_ = self._negated(text, tool, other_tools, random_, protected=protected), "negation"
        elif rolls.get("several_sentences"):
            text, slice_ = self._surrounded(text, protected, random_), "several_sentences"
        elif rolls.get("chatty"):
            text, slice_ = self._greeted(text, protected, random_), "chatty"
        if sentence.endswith("\n"):
            text = text.replace(f"{sentence} ", sentence).strip()
        return self._typed(text, slice_, rolls, protected=protected, names=names, random_=random_)

    def typed(self, text: str, *, random_: random.Random, names: str = "") -> Noisy:
        """Return a sentence in any language with typos and lost capitals, without wrapping."""
        rolls = {name: random_.random() < self._probability.get(name, 0) for name in _TYPING}
        return self._typed(text, None, rolls, protected="", names=names, random_=random_)

    def _typed(
        self,
        text: str,
        slice_: str | None,
        rolls: Mapping[str, bool],
        *,
        protected: str,
        names: str,
        random_: random.Random,
    ) -> Noisy:
        if rolls.get("typos"):
            typed = with_typos(text, f"{protected} {names}", random_)
            if typed != text:
                text, slice_ = typed, slice_ or "typos"
        if rolls.get("no_final_mark") and not protected.endswith(text[-1:]):
            text = text.rstrip("?.!")
        letters = "as written"
        if rolls.get("lower_case") and protected == protected.lower():
            letters, text = "lower", text.lower()
        elif rolls.get("upper_case") and protected == protected.upper():
            letters, text = "upper", text.upper()
        return Noisy(text, slice_, letters)

    def _greeted(self, text: str, protected: str, random_: random.Random) -> str:
        opener, closer = random_.choice(self._settings["openers"]), random_.choice(self._settings["closers"])
        if random_.random() < 0.35:
            opener = ""
        elif random_.random() < 0.5:
            closer = ""
        return " ".join(part for part in (opener, _decapitalised(text, protected) if opener else text, closer) if part)

    def _surrounded(self, text: str, protected: str, random_: random.Random) -> str:
        before = random_.sample(self._settings["sentences_before"], random_.choice(_BEFORE))
        after = random_.sample(self._settings["sentences_after"], random_.choice(_AFTER))
        return " ".join([*before, _as_sentence(text, protected), *after])

    def _negated(
        self, text: str, tool: str, other_tools: Sequence[str], random_: random.Random, *, protected: str
    ) -> str:
        """Return the text with a sentence that forbids one of the other tools, never the right one."""
        actions = self._settings["actions"]
        others = [name for name in other_tools if name in actions]
        if not others:
            return text
        action = random_.choice(actions[random_.choice(others)])
        pattern = random_.choice(self._settings["negations"])
        return pattern.format(
            action=action, text=_decapitalised(text, protected), sentence=_as_sentence(text, protected), tool=tool
        )

    def _wrapped(
        self, kind: str, text: str, tool: str, other_tools: Sequence[str], random_: random.Random, *, protected: str
    ) -> str:
        pattern = random_.choice(self._settings[kind])
        return pattern.format(
            other=random_.choice(list(other_tools)), text=text, sentence=_as_sentence(text, protected), tool=tool
        )


def with_typos(text: str, protected: str, random_: random.Random) -> str:
    """Return the text with typos in one to three words of four letters or more, none of which occurs in `protected`."""
    kept = set(_WORD.findall(protected))
    words = [match for match in _WORD.finditer(text) if match[0] not in kept]
    if not words:
        return text
    count = min(len(words), random_.randint(1, 1 + min(MAX_TYPOS - 1, len(words) // 3)))
    for match in sorted(random_.sample(words, count), key=re.Match.start, reverse=True):
        text = text[: match.start()] + _mistyped(match[0], random_) + text[match.end() :]
    return text


def _mistyped(word: str, random_: random.Random) -> str:
    at = random_.randrange(1, len(word) - 1)
    kind = random_.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + random_.choice(_NEIGHBOURS.get(word[at].lower(), word[at])) + word[at + 1 :]


def _starts_with_data(text: str, protected: str) -> bool:
    """Return whether a request begins with what a program has from it, which stays as it is typed."""
    return text.split(maxsplit=1)[0] in protected.split()


def _decapitalised(text: str, protected: str) -> str:
    """Return a sentence in lower case at its start, unless that is data, I, or a word with a capital further on."""
    first = re.match(r"[A-Z][a-z]*(?=[\s,'’])", text)
    if not first or first[0] == "I" or text.startswith(("I'", "I’")) or _starts_with_data(text, protected):
        return text
    return text[0].lower() + text[1:]


def _as_sentence(text: str, protected: str) -> str:
    """Return a request as a sentence; behind a word or text that a program has from it a line ends, not a full stop."""
    if not _starts_with_data(text, protected):
        text = text[0].upper() + text[1:]
    if text[-1] in ".?!…\"'`)":
        return text
    last = text.split()[-1]
    return f"{text}\n" if last in protected.split() and any(map(str.isalpha, last)) else f"{text}."
