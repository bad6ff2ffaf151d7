"""Slot values: words, numbers, lists, dates, texts, tables, each as a person types it and as a Python program needs it.

A person types numbers and dates in the manner of their language: 1,250.50 or 1.250,50, 3.5 or 3,5, 12. März.
In a program a number stands as it was typed, with a point for its decimals and nothing between its thousands; a text
that was pasted stands between three apostrophes, which keep quotes and line ends as they are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

from tool_aware.dataset.synthesis.frames import fill, fill_known
from tool_aware.dataset.synthesis.pools import pools, steps

_LIST_STYLES = (", ", ", ", ", ", " ", "; ", ",", " / ", " and ")
_LIST_STYLES_OF_COMMA_NUMBERS = ("; ", " ", " / ", " and ")
_LIST_STYLES_OF_BLANK_NUMBERS = ("; ", " / ")  # 13 450; 9 800
_TABLE_FORMS = (",", ",", ",", ";", ";", "\t", "|", " | ", "| a |", "| a |")  # what stands between cells
_LINE_FORMS = (" ", " ", ": ", "; ", "\t")  # of a table without a head
_COMMA_SHARE = 0.6  # of numbers in languages with a decimal comma: the others are typed with a point
_GROUPED_SHARE = 0.35  # of amounts of four digits and more
_GROUPED_FROM = 10_000  # of whole numbers that go so far, some have a mark between the thousands; years do not
_PLAIN = "plain"  # in place of a language: numbers as a program writes them, as in the cells of a table
_SHORT_SHARE = 0.12  # of whole hundreds above a thousand: 12k, 1.5k


class Value(NamedTuple):
    """A filler: `text` goes into the sentence, `code` into the program."""

    text: str
    code: str


def draw(spec: object, random_: random.Random, language: str = "en") -> Value:
    """Draw and return one value, as a person types it in a language.

    `spec` is a list of texts, or one of: `{choose: {text: code}}`; `{verbatim: [code]}`; `{int: [low, high, step]}`,
    perhaps with `bare: true`, for a number without a mark between its thousands;
    `{decimal: [low, high, digits]}`; `{amount: [low, high, step]}`, of money, perhaps with a mark between the
    thousands; `{numbers: SPEC, count: [low, high]}`; `{words: [...] or the name of a pool, count: [low, high]}`, both
    perhaps with `joint: TEXT` between the items, or with `one_most: true`, so that one is the most frequent;
    `{date: [first, last]}`; `{pool: NAME}`, one word of a pool; `{text: [low, high]}`, so many pasted clauses;
    `{sentences: [low, high]}`, the same with full stops;
    `{table: [SPEC for each column], head: TEXT, rows: [low, high]}`, perhaps with `mark: TEXT` between the cells,
    or with `as_rows: true` in any form, perhaps with `covers: N`, a column whose words are all there;
    `{priced: NAME of a pool, numbers: SPEC, count: [low, high]}`, things with their prices; `{durations: [low, high]}`,
    so many times such as 7:45; `{clock: [low, high]}`, a time of day between these hours, such as 06:05;
    `{month: [first year, last year]}`;
    `{steps: NAME in steps.yaml, count: [low, high]}`, so many steps and a last one, a line
    of the program each, perhaps with `indent: N`. Raises ValueError for anything else.
    """
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        text = str(random_.choice(spec))
        return Value(text, repr(text))
    if not isinstance(spec, Mapping):
        raise ValueError(f"{spec!r} describes no filler")
    for kind, make in _KINDS.items():  # in their order: `numbers` stands in other kinds, too
        if kind in spec:
            return make(spec, random_, language)
    raise ValueError(f"{dict(spec)!r} describes no filler")


def _choose(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    text, code = random_.choice(list(spec["choose"].items()))
    return Value(str(text), str(code))


def _verbatim(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    text = str(random_.choice(spec["verbatim"]))
    return Value(text, text)


def _int(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    low, high, *step = spec["int"]
    number = str(random_.randrange(low, high + 1, *step))
    is_grouped = _may_be_grouped(spec) and random_.random() < _GROUPED_SHARE
    mark = pools()["thousands"].get(language, "") if is_grouped else ""
    return Value(_typed(number, has_comma=False, mark=mark), number)


def _decimal(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    low, high, digits = spec["decimal"]
    number = f"{random_.uniform(low, high):.{digits}f}"
    number = number.removesuffix(".0")  # nobody types 5.0 %
    return Value(_typed(number, has_comma=_has_comma(random_, language)), number)


def _amount(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    low, high, step = spec["amount"]
    is_whole = step >= 1
    steps = random_.randint(0, round((high - low) / step))
    number = f"{low + steps * step:.{0 if is_whole else 2}f}"
    whole = number.partition(".")[0]
    if is_whole and language == "en" and len(whole) > 3 and whole.endswith("00") and random_.random() < _SHORT_SHARE:
        return Value(f"{int(whole) / 1000:g}k", number)
    has_comma = _has_comma(random_, language)
    is_grouped = len(whole) > 3 and random_.random() < _GROUPED_SHARE
    return Value(
        _typed(number, has_comma=has_comma, mark=_thousands(language, has_comma) if is_grouped else ""), number
    )


def _numbers(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    """Return a list whose numbers are all typed in one manner, with a mark between them that is none within them."""
    drawn = [draw(spec["numbers"], random_, _PLAIN) for _ in range(random_.randint(*spec["count"]))]
    if spec.get("one_most"):
        _make_one_most_frequent(drawn, random_)
    has_comma = _has_comma(random_, language)
    is_grouped = _may_be_grouped(spec["numbers"]) and random_.random() < _GROUPED_SHARE
    mark = _thousands(language, has_comma) if is_grouped else ""
    typed = [_typed(number.text, has_comma=has_comma, mark=mark) for number in drawn]
    numbers = [Value(text, number.code) for text, number in zip(typed, drawn, strict=True)]
    if any(" " in number.text for number in numbers):
        return _listing(numbers, random_, _LIST_STYLES_OF_BLANK_NUMBERS, language)
    if any("," in number.text for number in numbers):
        return _listing(numbers, random_, _LIST_STYLES_OF_COMMA_NUMBERS, language)
    return _listing(numbers, random_, [spec["joint"]] if "joint" in spec else _LIST_STYLES, language)


def _has_comma(random_: random.Random, language: str) -> bool:
    return language in pools()["decimal_comma"] and random_.random() < _COMMA_SHARE


def _thousands(language: str, has_comma: bool) -> str:
    """Return the mark between thousands; none where a point is in the place of a decimal comma."""
    return pools()["thousands"].get(language, "") if has_comma or language not in pools()["decimal_comma"] else ""


def _may_be_grouped(spec: Mapping[str, Any]) -> bool:
    """Return whether numbers may have a mark between the thousands: amounts do, and large counts; years do not."""
    return "amount" in spec or ("int" in spec and spec["int"][1] >= _GROUPED_FROM and not spec.get("bare"))


def _typed(number: str, *, has_comma: bool, mark: str = "") -> str:
    """Return a number of a program as it is typed."""
    whole, _, decimals = number.partition(".")
    shown = f"{int(whole):,}".replace(",", mark) if mark else whole
    return shown + (("," if has_comma else ".") + decimals if decimals else "")


def _words(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    among = spec["words"] if not isinstance(spec["words"], str) else _pool(spec["words"], language)
    chosen = random_.sample(among, random_.randint(*spec["count"]))
    if spec.get("one_most"):
        _make_one_most_frequent(chosen, random_)
    return _listing([Value(str(word), repr(str(word))) for word in chosen], random_, _LIST_STYLES[:3], language)


def _make_one_most_frequent(items: list[Any], random_: random.Random) -> None:
    """Put one more of the most frequent items somewhere into a list if there are several."""
    counts = Counter(items)
    most = [item for item, count in counts.items() if count == max(counts.values())]
    if len(most) > 1:
        items.insert(random_.randint(0, len(items)), random_.choice(most))


def _listing(values: Sequence[Value], random_: random.Random, joints: Sequence[str], language: str) -> Value:
    joint = random_.choice(joints)
    *first, last = (value.text for value in values)
    if joint == " and ":
        comma = "; " if any("," in value.text for value in values) else ", "
        word = pools()["and"].get(language)
        text = f"{comma.join(first)} {word} {last}" if word else comma.join([*first, last])
    else:
        text = joint.join([*first, last])
    return Value(text, f"[{', '.join(value.code for value in values)}]")


def _priced(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    """Return things with their prices, as they stand on a receipt; the program has the prices."""
    things = random_.sample(_pool(spec["priced"], language), random_.randint(*spec["count"]))
    prices = [draw(spec["numbers"], random_, language) for _ in things]
    between = random_.choice((" ", " ", ": "))
    joint = "; " if any("," in price.text for price in prices) else ", "
    text = joint.join(f"{thing}{between}{price.text}" for thing, price in zip(things, prices, strict=True))
    return Value(text, f"[{', '.join(price.code for price in prices)}]")


def _durations(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    """Return hours and minutes; the program has them in minutes, worked out there."""
    times = [(random_.randint(0, 9), random_.randrange(5, 60, 5)) for _ in range(random_.randint(*spec["durations"]))]
    text = ", ".join(f"{hours}:{minutes:02d}" for hours, minutes in times)
    return Value(text, f"[{', '.join(f'{hours} * 60 + {minutes}' for hours, minutes in times)}]")


def _clock(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    """Return a time of day such as 06:05; the program has it in minutes, worked out there."""
    hour, minute = random_.randint(*spec["clock"]), random_.randrange(60)
    return Value(f"{hour:02d}:{minute:02d}", f"{hour} * 60 + {minute}")


def _steps(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    """Return steps as a person names them one after the other, and the lines that do them."""
    among = steps()[spec["steps"]]
    language = language if language in among["last"][0]["say"] else "en"
    chosen = random_.sample(among["steps"], random_.randint(*spec["count"]))
    needs_some = not any(step.get("may_empty") for step in chosen)
    chosen.append(random_.choice([one for one in among["last"] if needs_some or not one.get("needs_some")]))
    said, lines = "", []
    for step in chosen:
        values = {slot: draw(one, random_, language) for slot, one in step.get("slots", {}).items()}
        text = fill(random_.choice(step["say"][language]), {slot: value.text for slot, value in values.items()})
        said += (random_.choice(steps()["then"][language]) if said else "") + text
        code = fill_known(step["code"], {slot: value.code for slot, value in values.items()})
        lines.append(" " * spec.get("indent", 0) + code)
    return Value(said, "\n".join(lines))


def _sentences(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    sentences = random_.sample(_texts(language), random_.randint(*spec["sentences"]))
    return pasted(" ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences))


def _date(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    first, last = (date.fromisoformat(str(day)) for day in spec["date"])
    day = first + timedelta(days=random_.randint(0, (last - first).days))
    months, patterns = pools()["months"], pools()["dates"]
    month = months[language][day.month - 1] if language in months else ""
    pattern = random_.choice(patterns.get(language, patterns["other"]))
    text = pattern.format(y=day.year, m=day.month, d=day.day, month=month, short=month[:3])
    return Value(text, f"date({day.year}, {day.month}, {day.day})")


def _month(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    """Return a month of these years; the program has its first day."""
    year, month = random_.randint(*spec["month"]), random_.randint(1, 12)
    names = pools()["months"].get(language)
    pattern = pools()["of_a_year"].get(language, "{month} {y}" if names else "{m:02d}/{y}")
    text = pattern.format(y=year, m=month, month=names[month - 1] if names else "")
    return Value(text, f"date({year}, {month}, 1)")


def _one_of_pool(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    word = random_.choice(_pool(spec["pool"], language))
    return Value(word, repr(word))


def _pool(name: str, language: str) -> Sequence[str]:
    pool = pools()["pools"][name]
    return pool.get(language) or pool["en"]


def _text(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    sentences = random_.sample(_texts(language), random_.randint(*spec["text"]))
    return pasted(random_.choice((". ", ", ")).join(sentences))


def _texts(language: str) -> Sequence[str]:
    return pools()["texts"].get(language) or pools()["texts"]["en"]


def _table(spec: Mapping[str, Any], random_: random.Random, language: str) -> Value:
    """Return a pasted table; the program has its text, or with `as_rows` its rows as a list of tuples."""
    rows = [[draw(cell, random_, _PLAIN) for cell in spec["table"]] for _ in range(random_.randint(*spec["rows"]))]
    if not spec.get("as_rows"):
        mark = spec.get("mark", ",")
        first = [spec["head"].replace(",", mark)] if spec["head"] else []
        return pasted("\n".join([*first, *(mark.join(cell.text for cell in row) for row in rows)]))
    if "covers" in spec:  # each word of this column stands in the table
        column, words = (
            spec["covers"],
            random_.sample(spec["table"][spec["covers"]], len(spec["table"][spec["covers"]])),
        )
        for row, word in zip(rows, words, strict=False):
            row[column] = Value(word, repr(word))
    head = spec["head"] if isinstance(spec["head"], str) else spec["head"].get(language, spec["head"]["en"])
    form = random_.choice(_TABLE_FORMS if head else _LINE_FORMS)
    has_comma = form != "," and _has_comma(random_, language)
    numeric = [isinstance(cell, Mapping) and bool({"int", "decimal", "amount"} & cell.keys()) for cell in spec["table"]]
    typed = [
        [
            _typed(cell.text, has_comma=has_comma) if is_number else cell.text
            for cell, is_number in zip(row, numeric, strict=True)
        ]
        for row in rows
    ]
    lines = [_line(cells, form) for cells in ([head.split(","), *typed] if head else typed)]
    if form == "| a |":
        lines.insert(1, _line([random_.choice(("---", "---", "-----"))] * len(numeric), form))
    code = ", ".join(f"({', '.join(cell.code for cell in row)})" for row in rows)
    return Value("\n".join(lines), f"[{code}]")


def _line(cells: Sequence[str], form: str) -> str:
    return f"| {' | '.join(cells)} |" if form == "| a |" else form.join(cells)


def pasted(text: str) -> Value:
    """Return the value of a text that was pasted into the query."""
    return Value(text, f"'''{text}'''")


_KINDS = {
    "steps": _steps, "priced": _priced,
    "choose": _choose, "verbatim": _verbatim, "int": _int, "decimal": _decimal, "amount": _amount, "numbers": _numbers,
    "words": _words, "date": _date,
    "pool": _one_of_pool, "text": _text, "table": _table, "durations": _durations, "clock": _clock,
    "month": _month, "sentences": _sentences,
}  # fmt: skip


def problem_of(spec: object) -> str | None:
    """Return why `spec` cannot be drawn from, in words; None if it can."""
    try:
        draw(spec, random.Random(0))
    except (ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        return str(error) or type(error).__name__
    return None
