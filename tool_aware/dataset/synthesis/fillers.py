"""Slot values: words, numbers, lists and dates, each as a person types it and as a Python program needs it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_LIST_STYLES = (", ", ", ", ", ", " ", "; ", ",", " and ")


@dataclass(frozen=True)
class Value:
    """A filler: `text` goes into the sentence, `code` into the program."""

    text: str
    code: str


def draw(spec: object, random_: random.Random) -> Value:
    """Draw and return one value.

    `spec` is one of: a list of texts; `{choose: {text: code}}`; `{verbatim: [code]}`; `{int: [low, high, step]}`;
    `{decimal: [low, high, digits]}`; `{numbers: SPEC, count: [low, high]}`; `{words: [...], count: [low, high]}`,
    both perhaps with `joint: TEXT` between the items; `{date: [first, last]}`.
    Raises ValueError for anything else.
    """
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        text = str(random_.choice(spec))
        return Value(text, repr(text))
    if not isinstance(spec, Mapping):
        raise ValueError(f"{spec!r} describes no filler")
    if "choose" in spec:
        text, code = random_.choice(list(spec["choose"].items()))
        return Value(str(text), str(code))
    if "verbatim" in spec:
        text = str(random_.choice(spec["verbatim"]))
        return Value(text, text)
    if "int" in spec:
        low, high, *step = spec["int"]
        number = str(random_.randrange(low, high + 1, *step))
        return Value(number, number)
    if "decimal" in spec:
        low, high, digits = spec["decimal"]
        number = f"{random_.uniform(low, high):.{digits}f}"
        return Value(number, number)
    if "numbers" in spec:
        numbers = [draw(spec["numbers"], random_) for _ in range(random_.randint(*spec["count"]))]
        return _listing(numbers, random_, joints=[spec["joint"]] if "joint" in spec else _LIST_STYLES)
    if "words" in spec:
        chosen = random_.sample(spec["words"], random_.randint(*spec["count"]))
        return _listing([Value(str(word), repr(str(word))) for word in chosen], random_, joints=_LIST_STYLES[:3])
    if "date" in spec:
        first, last = (date.fromisoformat(str(day)) for day in spec["date"])
        return _date(first, last, random_)
    raise ValueError(f"{dict(spec)!r} describes no filler")


def _listing(values: Sequence[Value], random_: random.Random, joints: Sequence[str] = _LIST_STYLES) -> Value:
    joint = random_.choice(joints)
    *first, last = (value.text for value in values)
    text = f"{', '.join(first)} and {last}" if joint == " and " else joint.join([*first, last])
    return Value(text, f"[{', '.join(value.code for value in values)}]")


def _date(first: date, last: date, random_: random.Random) -> Value:
    day = first + timedelta(days=random_.randint(0, (last - first).days))
    month = _MONTHS[day.month - 1]
    text = random_.choice(
        (
            day.isoformat(),
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}, {day.year}",
            f"{day.day} {month[:3]} {day.year}",
            f"{day.day:02d}.{day.month:02d}.{day.year}",
        )
    )
    return Value(text, f"date({day.year}, {day.month}, {day.day})")


def problem_of(spec: object) -> str | None:
    """Return why `spec` cannot be drawn from, in words; None if it can."""
    try:
        draw(spec, random.Random(0))
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        return str(error) or type(error).__name__
    return None
