"""Makes the search text of a request: what it is about, as it was typed.

One rule for all searches, so that a small model can learn it: the words of the asking are left out, and articles,
prepositions, pronouns, auxiliary verbs and question words before and behind what is asked about. All that stands
between two words of a sentence that stay, stays too, commas and colons included: a span that is copied loses no
negation, and a small model copies more surely than it picks words. Some questions would say something else, or nothing,
without their first word. So a question whose verb stands behind what it is about stays as it was asked ("which rooms
did the auditors get"), and so does a question word directly before the first word that stays ("who owns the patent").
The words to leave out are in content/search_words.yaml, by language. A language that is not there, such as Japanese, is
written without spaces: its frames name the words of their search text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

_EDGES = "¿¡?!.,;:…()[]\"'’“”„«»‹›—–-*"
_WORD = re.compile(r"[^\s¿¡]\S*")
_QUOTED = re.compile(r"[\"“„«]\s?[^\"“”„«»]{2,}?\s?[\"”“»]|(?<!\w)['‘][^'‘’]{2,}?['’](?!\w)")
_SENTENCE_BREAK = re.compile(
    r"(?<!\b[^\W\d])(?<!\b[dms][rt])[.?!][\"”»)]*\s"
    r"(?!(?:januar|februar|märz|april|mai|juni|juli|august|september|oktober|november|dezember)\b)",
    re.IGNORECASE,
)  # but not: Dr. E. Moreau, 20. Mai
_WIDE_SENTENCE_END = re.compile(r"[。？！?!\n]")
# French and Italian: l'ufficio, d'essai. Turkish: Ankara'da.
_ELISION = re.compile(
    r"(?:[ldjmtscn]|qu|jusqu|dell|all|nell|sull|dall|un|quest|quell|com|dov)['’](?=\w)", re.IGNORECASE
)
_SUFFIX = re.compile(r"(?<=\w)['’]\w+$")
_INVERSION = re.compile(r"-(?:t-)?(?:ils?|elles?|on|je|tu|nous|vous|moi|toi|les?|la)$")  # fonctionne-t-il
_KEPT_TEXTS = 256  # whose words are at hand: a text is asked about several times, one time behind the other
_JOINTS = frozenset(
    ["of", "the", "de", "da", "do", "di", "du", "des", "della", "del", "dei", "von", "van", "la", "las", "los", "le"]
)  # of names: Bank of America


@dataclass(frozen=True, eq=False)  # compared and hashed as an object: its sets are large
class SearchWords:
    """The words of one language that a search text leaves out."""

    language: str
    kept: re.Pattern[str]
    phrases: re.Pattern[str]
    function: frozenset[str]
    request: frozenset[str]
    opening: frozenset[str]
    openers: re.Pattern[str]
    doers: frozenset[str] = frozenset()
    closers: frozenset[str] = frozenset()
    asking: frozenset[str] = frozenset()
    verbs: frozenset[str] = frozenset()
    endings: frozenset[str] = frozenset()


class _Word(NamedTuple):
    """A word without the marks around it; whether a sentence begins with it, and whether a filler brought it.

    `start` and `end` are its place in the text, with what `_bare` takes off.
    """

    text: str
    is_first: bool
    is_value: bool
    start: int = 0
    end: int = 0

    @property
    def is_name(self) -> bool:
        return self.text[:1].isupper() and not self.is_first and self.text[:2] not in ("I", "I'", "I’")


def search_words(settings: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, SearchWords]:
    """Return the words to leave out by language, from the values of search_words.yaml."""
    return {
        language: SearchWords(
            language,
            kept=_phrases(words["kept"]),
            phrases=_phrases(words["phrases"]),
            function=frozenset(words["function"]),
            request=frozenset(words["request"]),
            opening=frozenset(words["opening"]),
            openers=re.compile(rf"{_phrases(words['openers']).pattern}\s*$", re.IGNORECASE),
            **{key: frozenset(words.get(key, ())) for key in ("doers", "closers", "asking", "verbs", "endings")},
        )
        for language, words in settings.items()
    }


def _phrases(phrases: Sequence[str]) -> re.Pattern[str]:
    """Return what finds any of the phrases, the longest first; those that begin alike share the test of a letter."""
    by_letter: dict[str, list[str]] = {}
    for phrase in sorted(phrases, key=len, reverse=True):
        end = "" if phrase.endswith("'") else r"(?![\w-])"
        by_letter.setdefault(re.escape(phrase[:1].lower()), []).append(re.escape(phrase[1:]) + end)
    alternatives = "|".join(f"{letter}(?:{'|'.join(rest)})" for letter, rest in by_letter.items())
    return re.compile(rf"(?<![\w'’-])(?:{alternatives})", re.IGNORECASE)


def search_text(text: str, words: SearchWords | None, values: Collection[str] = (), *, about: str | None = None) -> str:
    """Return what a careful person types into a search field for this request; the text itself if nothing is left.

    `values` are the fillers in it: of these only function words before and behind are left out. `about` names what is
    searched where a request says much else; its words are taken as the request has them. Without `words` the text is
    returned, or the span of it from the first word of `about` to the last.
    """
    if words is None:
        return _span_of(text, about) if about else text
    if not about:
        return " ".join(said for said, _ in _spans(text, words, tuple(values))) or text.strip(_EDGES + " ")
    found = _words(text, words, tuple(values))
    kept = _places_of(content_words(about, words, values), found)
    if kept is None:  # `about` has other words than the request
        return search_text(about, words, values)
    return _with_joints(text, found, kept, words) or text.strip(_EDGES + " ")


def _span_of(text: str, about: str) -> str:
    """Return what stands in one sentence of a text without spaces from the first of these words to the last."""
    start, end = -1, 0
    for word in about.split():
        place = text.find(word, end)
        if place < 0:
            return about
        start, end = start if start >= 0 else place, place + len(word)
    span = text[start:end]
    return about if _WIDE_SENTENCE_END.search(span) else span


def span_end(
    text: str, words: SearchWords | None, values: Collection[str] = (), *, about: str | None = None
) -> int | None:
    """Return where in a request the words end that its search text ends with; None if they do not stand in it."""
    if words is None:
        at = text.find(about or text)
        return None if at < 0 else at + len(about or text.rstrip("。？！?! "))
    if not about:
        return next((end for _, end in reversed(_spans(text, words, tuple(values)))), None)
    found = _words(text, words, tuple(values))
    kept = _places_of(content_words(about, words, values), found)
    return found[kept[-1]].end if kept else None


def continued_search_text(
    asked: str, said: str, about: str, words: SearchWords | None, values: Collection[str] = ()
) -> str:
    """Return the search text of a follow-up: words of the earlier request, then the span of the follow-up.

    Of the earlier request those words are taken that `about` has, too, in any form; all fillers if there are none.
    Without `words`, `about` is returned.
    """
    if words is None:
        return about
    earlier = content_words(asked, words, values)
    wanted = content_words(about, words, values)
    new = content_words(said, words, values)
    spans = _spans(said, words, tuple(values), is_whole=False) if new else ()
    span = " ".join(part for part, _ in spans)
    kept = [word for word in earlier if any(_is_form_of(word, other) for other in wanted)]
    names = [value for value in values if any(letter.isalpha() for letter in value)]
    kept = kept or [word for word in earlier if any(word in value.split() for value in names)]
    kept = [word for word in dict.fromkeys(kept) if word not in new]
    return " ".join([*kept, span]).strip() or said.strip(_EDGES + " ")


def content_words(text: str, words: SearchWords, values: Collection[str] = ()) -> list[str]:
    """Return the words of a request that a search is about, in its order; a quotation is one of them."""
    found = _words(text, words, tuple(values))
    return [found[place].text for place in _places_by_rule(found, words)]


@lru_cache(maxsize=_KEPT_TEXTS)
def _places_by_rule(found: tuple[_Word, ...], words: SearchWords) -> tuple[int, ...]:
    kept: list[int] = []
    for number in range(len(found)):
        if _is_kept(found, number, words, is_opening=not kept):
            kept.append(number)
    return tuple(kept)


def _places_of(wanted: Sequence[str], found: Sequence[_Word]) -> list[int] | None:
    """Return where these words stand one behind the other; None if they do not."""
    places: list[int] = []
    for word in wanted:
        behind = range(places[-1] + 1 if places else 0, len(found))
        place = next((n for n in behind if found[n].text.casefold() == word.casefold()), None)
        if place is None:
            return None
        places.append(place)
    return places


@lru_cache(maxsize=_KEPT_TEXTS)
def _spans(
    text: str, words: SearchWords, values: tuple[str, ...], *, is_whole: bool = True
) -> tuple[tuple[str, int], ...]:
    """Return of each sentence what stands from its first kept word to its last, and where that ends in the text.

    Unless `is_whole`, a question word directly before the first is left out.
    """
    found = _words(text, words, values)
    sentences: list[list[int]] = []
    for place in _places_by_rule(found, words):
        if sentences and not _is_break(text, found, sentences[-1][-1], place):
            sentences[-1].append(place)
        else:
            sentences.append([place])
    return tuple(_span(text, [found[place] for place in places], words, is_whole) for places in sentences)


def _is_break(text: str, found: Sequence[_Word], before: int, place: int) -> bool:
    """Return whether a sentence ends between two words."""
    mark = _SENTENCE_BREAK.search(text, found[before].end)
    return mark is not None and mark.end() <= found[place].start


def _span(text: str, kept: Sequence[_Word], words: SearchWords, is_whole: bool) -> tuple[str, int]:
    """Return what stands from the first of these words to the last, or the question around it, and where it ends."""
    start, end = kept[0].start, kept[-1].end
    said = text[start:end]  # with a verb's pronoun in French: utilise-t-elle
    if words.language == "tr":
        said = kept[0].text + "".join(text[one.end : two.start] + two.text for one, two in pairwise(kept))
    opener, asked = words.openers.search(text[:start]) if is_whole else None, None
    if any(word.casefold() in words.verbs for word in said.split()[1:]):
        asked = _asked_from(text[:start], words)
    if asked is not None:
        end = _asked_to(text, end, words)
    else:
        asked, end = opener.start() if opener else start, _closed(text, end, words)
    return " ".join(f"{text[asked:start]}{said}{text[kept[-1].end : end]}".split()), end


def _closed(text: str, end: int, words: SearchWords) -> int:
    """Return where the word ends that closes a clause and belongs to the word before it: the current one."""
    match = _WORD.match(text, end + 1)
    if not match or text[end] != " " or match[0].strip(_EDGES).casefold() not in words.closers:
        return end
    place = match.start() + len(match[0].rstrip(_EDGES))
    return place if place < match.end() or not text[match.end() :].strip() else end


def _asked_from(before: str, words: SearchWords) -> int | None:
    """Return where the question word stands that has only articles and the like behind it; None if there is none."""
    for match in reversed(list(_WORD.finditer(before))):
        plain = match[0].lstrip(_EDGES).casefold()
        if plain in words.asking:
            return match.end() - len(plain)
        if plain not in words.function or plain in words.verbs:
            return None
    return None


def _asked_to(text: str, end: int, words: SearchWords) -> int:
    """Return where the verb ends that closes a question, or a preposition and the like at the end of its sentence."""
    for match in _WORD.finditer(text, end):
        plain = match[0].strip(_EDGES).casefold()
        place = match.start() + len(match[0].rstrip(_EDGES))
        is_last = place < match.end() or not text[match.end() :].strip()
        if text[end : match.start()].strip() or not (plain in words.verbs or (is_last and plain in words.endings)):
            break
        end = place
        if is_last:
            break
    return end


def _with_joints(text: str, found: tuple[_Word, ...], kept: Sequence[int], words: SearchWords) -> str:
    """Return the kept words, with what stands between two of them if that is function words of the same sentence.

    If nothing that a search is about stands between any two of them, they are one span, verbs included.
    """
    others = set(_places_by_rule(found, words)) - set(kept)
    if not others & set(range(kept[0], kept[-1])) and not _is_break(text, found, kept[0], kept[-1]):
        is_all = not any(other > kept[-1] and not _is_break(text, found, kept[-1], other) for other in others)
        return _span(text, [found[place] for place in kept], words, is_whole=is_all)[0]
    said = ""
    for before, place in zip([None, *kept], kept, strict=False):
        word = found[place]
        if before is not None:
            between = found[before + 1 : place]
            is_joined = all(_plain(other) in words.function - words.verbs for other in between)
            is_joined = is_joined and not _is_break(text, found, before, place)
            said += text[found[before].end : word.start] if is_joined else " "
        said += word.text
    return " ".join(said.split())


def _is_form_of(word: str, other: str) -> bool:
    """Return whether two words are the same but for their ending."""
    one, two = word.casefold(), other.casefold()
    common = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return one == two or (common >= 4 and common >= min(len(one), len(two)) - 3)


@lru_cache(maxsize=_KEPT_TEXTS)
def _words(text: str, words: SearchWords, values: tuple[str, ...]) -> tuple[_Word, ...]:
    """Return the words of a text that are in no phrase to leave out; a quotation is one word."""
    return tuple(_words_of(text, words, [span for value in values for span in _places_in(text, value)]))


def _words_of(text: str, words: SearchWords, fixed: list[tuple[int, int]]) -> Iterator[_Word]:
    """Yield the same; `fixed` are the places of the values."""
    quoted = [match.span() for pattern in (_QUOTED, words.kept) for match in pattern.finditer(text)]
    gaps = [
        span
        for span in (match.span() for match in words.phrases.finditer(text))
        if span in fixed or not _within(span, fixed + quoted)
    ]
    pieces = sorted([*quoted, *(match.span() for match in _WORD.finditer(text))], key=lambda span: (span[0], -span[1]))
    done = 0
    for start, end in pieces:
        first, last = next((gap for gap in gaps if gap[0] < end and start < gap[1]), (end, end))
        if start < done or (first <= start and end <= last + 1):
            continue
        done = end
        is_first = _may_begin_sentence(text[:start])
        if (start, end) in quoted:
            yield _Word(text[start:end], is_first, is_value=True, start=start, end=end)
            continue
        piece = text[last if first <= start else start : end].strip(_EDGES)  # qu'est-ce qu'on
        bare, stop = _bare(piece, words.language), end - len(text[start:end]) + len(text[start:end].rstrip(_EDGES))
        first_letter = text.find(bare, start, end)
        yield _Word(bare, is_first, _within((start, start + 1), fixed), first_letter, stop)


def _places_in(text: str, value: str) -> Iterator[tuple[int, int]]:
    """Yield where a value stands in a text."""
    start = text.find(value) if value else -1
    while start >= 0:
        yield start, start + len(value)
        start = text.find(value, start + len(value))


def _may_begin_sentence(before: str) -> bool:
    """Return whether a sentence, or the text, begins behind this."""
    said = before.rstrip()
    return (said != before and said.rstrip('"”»)').endswith((".", "?", "!", ":"))) or not said.strip(_EDGES + " ")


def _bare(word: str, language: str) -> str:
    if language == "tr":
        return _SUFFIX.sub("", word)
    if language not in ("fr", "it"):
        return word
    word = word[match.end() :] if (match := _ELISION.match(word)) else word
    return _INVERSION.sub("", word) if language == "fr" else word


def _within(span: tuple[int, int], others: Collection[tuple[int, int]]) -> bool:
    return any(first <= span[0] and span[1] <= last for first, last in others)


def _is_kept(found: Sequence[_Word], number: int, words: SearchWords, *, is_opening: bool) -> bool:
    word = found[number]
    plain = _plain(word)
    if not plain:
        return False
    if plain in words.function:
        return words.language != "de" and (word.is_name or (plain in _JOINTS and _joins_names(found, number)))
    is_done = number > 0 and _plain(found[number - 1]) in words.doers  # who runs the branch
    is_asking = plain in words.request or (is_opening and not is_done and plain in words.opening)
    return word.is_value or not is_asking or (word.is_name and words.language != "de")


def _plain(word: _Word) -> str:
    return word.text.casefold().replace("’", "'")


def _joins_names(found: Sequence[_Word], number: int) -> bool:
    """Return whether the words on both sides are names, past further joints: Lord of the Rings."""
    before = next((word for word in reversed(found[:number]) if word.text.casefold() not in _JOINTS), None)
    after = next((word for word in found[number + 1 :] if word.text.casefold() not in _JOINTS), None)
    return all(word and word.text[:1].isupper() and not word.text.isupper() for word in (before, after))
