"""What steps named one after the other come to: their English words are read from left to right and done by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

THEN = re.compile(r", then |; | and then |, ")


def _rank(values: list[Any], count: int, *, largest: bool) -> list[Any]:
    left, found = list(values), []
    for _ in range(min(count, len(left))):
        best = max(left) if largest else min(left)
        left.remove(best)
        found.append(best)
    return found


def _without(text: str, unwanted: Callable[[str], bool]) -> str:
    return "".join("" if unwanted(letter) else letter for letter in text)


def _mean(values: list[Any]) -> Fraction:
    return Fraction(sum(values), len(values))


# Words, with # for a number, and what they do to what there is so far.
NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "leave out everything below #|without those below #|drop all under #": lambda v, n: [x for x in v if not x < n],
    "only those of # or more": lambda v, n: [x for x in v if not x < n],
    "leave out everything above #|without those above #|drop all over #": lambda v, n: [x for x in v if not x > n],
    "only those up to #": lambda v, n: [x for x in v if not x > n],
    "keep the even ones|only the even numbers|without the odd ones": lambda v, n: [
        x for x in v if str(x)[-1] in "02468"
    ],
    "keep the odd ones|only the odd numbers|without the even ones": lambda v, n: [
        x for x in v if str(x)[-1] in "13579"
    ],
    "multiply each by #|each of them times #": lambda v, n: [sum([x] * int(n)) for x in v],
    "add # to each|each of them plus #": lambda v, n: [int(n) + x for x in v],
    "subtract # from each|each of them minus #|take # off each": lambda v, n: [-(int(n) - x) for x in v],
    "square each|square them": lambda v, n: [x * x for x in v],
    "keep the # largest|only the # highest|the # biggest ones": lambda v, n: _rank(v, int(n), largest=True),
    "keep the # smallest|only the # lowest": lambda v, n: _rank(v, int(n), largest=False),
    "add them up|the sum|what is the total|print the sum": lambda v, n: sum(v),
    "how many are left|count them|how many": lambda v, n: sum(1 for _ in v),
    "sort them, smallest first|in ascending order": lambda v, n: str(_rank(v, len(v), largest=False)),
    "sort them, largest first|in descending order": lambda v, n: str(_rank(v, len(v), largest=True)),
    "the average|what is the mean|average them": lambda v, n: _mean(v),
    "the largest|what is the maximum": lambda v, n: _rank(v, 1, largest=True)[0],
    "the smallest|what is the minimum": lambda v, n: _rank(v, 1, largest=False)[0],
}
NUMBER: dict[str, Callable[[Any, Any], Any]] = {
    "add #|plus #": lambda v, n: v + n,
    "subtract #|minus #|take # away": lambda v, n: v - n,
    "multiply by #|times #": lambda v, n: v * n,
    "divide by #|divided by #": lambda v, n: v / n,
    "add #%|plus # percent|raise it by # %": lambda v, n: v + v * n / 100,
    "take #% off|minus # percent|lower it by # %": lambda v, n: v - v * n / 100,
}
WORDS: dict[str, Callable[[Any, Any], Any]] = {
    "only those with more than # letters|keep the ones longer than # letters": lambda v, n: [
        w for w in v if len(w) > n
    ],
    "only those with fewer than # letters|keep the ones shorter than # letters": lambda v, n: [
        w for w in v if len(w) < n
    ],
    "in capitals|make them upper case": lambda v, n: [w.swapcase().upper() for w in v],
    "only their first letters|just the first letter of each": lambda v, n: [w[:1] for w in v],
    "spell each backwards|each word backwards": lambda v, n: ["".join(reversed(w)) for w in v],
    "sort them|in alphabetical order": lambda v, n: _rank(v, len(v), largest=False),
    "in reverse order|turn the order round": lambda v, n: list(reversed(v)),
    "only the first #|keep the first #": lambda v, n: [w for at, w in enumerate(v) if at < n],
    "only the last #|keep the last #": lambda v, n: [w for at, w in enumerate(v) if at >= len(v) - n],
    "with commas between|print them with commas": lambda v, n: str(v)[1:-1].replace("'", ""),
    "with dashes between|joined by dashes": lambda v, n: str(v)[1:-1].replace("'", "").replace(", ", "-"),
    "with spaces between|in one line with spaces": lambda v, n: str(v)[1:-1].replace("'", "").replace(", ", " "),
    "how many are left|count them": lambda v, n: sum(1 for _ in v),
    "show the list|print what is left": lambda v, n: str(v),
    "how many letters is that altogether|count all letters": lambda v, n: len("".join(v)),
}
TEXT: dict[str, Callable[[Any, Any], Any]] = {
    "in lower case|make it lower case": lambda v, n: "".join(letter.lower() for letter in v),
    "in capitals|make it upper case": lambda v, n: "".join(letter.upper() for letter in v),
    "take out the spaces|without spaces": lambda v, n: _without(v, lambda letter: letter == " "),
    "dashes instead of spaces|put dashes for the spaces": lambda v, n: "-".join(v.split(" ")),
    "turn it round|spell it backwards": lambda v, n: "".join(reversed(v)),
    "only the first # characters|cut it after # characters": lambda v, n: "".join(
        c for at, c in enumerate(v) if at < n
    ),
    "only the letters|keep nothing but letters": lambda v, n: _without(v, lambda letter: not letter.isalpha()),
    "print it|show it": lambda v, n: v.strip(),
    "how many characters is that|count the characters": lambda v, n: sum(1 for _ in v),
    "how many different characters|count the different characters": lambda v, n: sum(
        c not in v[:at] for at, c in enumerate(v)
    ),
    "how many times does @ occur, large or small|count the letter @, large or small": lambda v, n: sum(
        letter in (n, n.upper()) for letter in v
    ),
}
BY_WORDS = {"of_numbers": NUMBERS, "of_a_number": NUMBER, "of_an_amount": NUMBER, "of_words": WORDS, "of_a_text": TEXT}


def done(kind: str, start: Any, said: str, times: int = 1) -> Any:
    """Return what the steps come to, done so many times; numbers exactly."""
    value = start
    for _ in range(times):
        rest = said
        while rest:
            step, n, length = _first(BY_WORDS[kind], rest)
            value = step(value, n)
            rest = rest[length:]
            joint = THEN.match(rest)
            assert joint or not rest, rest
            rest = rest[joint.end() :] if joint else ""
    return value


def _first(rules: dict[str, Callable[[Any, Any], Any]], said: str) -> tuple[Callable[[Any, Any], Any], Any, int]:
    """Return what the text begins with, its number or letter, and how long it is: the longest that is known."""
    found = []
    for words, step in rules.items():
        pattern = "|".join(map(re.escape, words.split("|"))).replace(r"\#", r"[\d.]+\b").replace("@", r"\w")
        match = re.match(rf"(?:{pattern})", said)
        if match:
            number = re.search(r"\d+(?:\.\d+)?", match[0])
            letter = re.search(r"\b[a-z]\b", match[0])
            value = Fraction(number[0]) if number else letter and letter[0]
            found.append((match.end(), step, value))
    assert found, f"no step is known that begins {said!r}"
    length, step, value = max(found, key=lambda one: one[0])
    return step, value, length
