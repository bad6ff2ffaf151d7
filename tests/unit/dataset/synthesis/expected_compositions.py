"""What computations put together from parts come to: every part by its name, done in another way than its statement.

Numbers are fractions, so that nothing is rounded on the way. `outcome` returns what is printed, token by token: texts,
and numbers to the decimals that are printed.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

Items = list[Any]


def exact(value: Any) -> Any:
    """Return a value with its numbers, but for whole ones, as the fractions that were typed."""
    if isinstance(value, list | tuple):
        return type(value)(map(exact, value))
    return Fraction(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _mean(numbers: Sequence[Fraction]) -> Fraction:
    return Fraction(sum(numbers), len(numbers))


def _median(numbers: Sequence[Fraction]) -> Fraction:
    left = list(numbers)
    while len(left) > 2:
        left.remove(max(left))
        left.remove(min(left))
    return _mean(left)


def _squares(numbers: Sequence[Fraction]) -> Fraction:
    return sum(((one - _mean(numbers)) ** 2 for one in numbers), Fraction(0))


def _ranked(items: Items, key: Callable[[Any], Any] = lambda item: item, *, largest: bool = False) -> Items:
    """Return the items in order, equal ones as they stand: each time the first of the best."""
    left, found = list(items), []
    while left:
        at = 0
        for number, item in enumerate(left):
            if (key(item) > key(left[at])) if largest else (key(item) < key(left[at])):
                at = number
        found.append(left.pop(at))
    return found


def _most_frequent(items: Items) -> Any:
    return _ranked(items, lambda item: sum(other == item for other in items), largest=True)[0]


def _once(items: Items) -> Items:
    return [item for at, item in enumerate(items) if item not in items[:at]]


def _rest(number: Fraction, divisor: Fraction) -> Fraction:
    return number - math.floor(number / divisor) * divisor


def _rounded(number: Fraction) -> Fraction:
    """Return the nearest whole number; of two that are as near the even one."""
    return Fraction(round(number))


PICKS = {
    "first": lambda v, n: [x for at, x in enumerate(v) if at < n],
    "last": lambda v, n: [x for at, x in enumerate(v) if at >= len(v) - n],
}
NUMBER_STEPS: dict[str, Callable[..., Items]] = {
    "above": lambda v, k: [x for x in v if not x <= k],
    "below": lambda v, k: [x for x in v if not x >= k],
    "at_least": lambda v, k: [x for x in v if not x < k],
    "at_most": lambda v, k: [x for x in v if not x > k],
    "between": lambda v, a, b: [x for x in v if not (x < a or x > b)],
    "even": lambda v: [x for x in v if str(x)[-1] in "02468"],
    "odd": lambda v: [x for x in v if str(x)[-1] in "13579"],
    "divisible": lambda v, d: [x for x in v if _rest(x, d) == 0],
    "not_divisible": lambda v, d: [x for x in v if _rest(x, d)],
    "positive": lambda v: [x for x in v if x == abs(x) and x],
    "negative": lambda v: [x for x in v if x != abs(x)],
    "above_mean": lambda v: [x for x in v if x * len(v) > sum(v)],
    "below_mean": lambda v: [x for x in v if x * len(v) < sum(v)],
    **PICKS,
    "largest": lambda v, n: PICKS["first"](_ranked(v, largest=True), n),
    "smallest": lambda v, n: PICKS["first"](_ranked(v), n),
    "trimmed": lambda v: _ranked(v)[1 : len(v) - 1],
    "distinct": _once,
    "every_second": lambda v: [x for at, x in enumerate(v, 1) if at % 2],
    "times": lambda v, n: [x / (1 / n) for x in v],
    "divided": lambda v, n: [x * (1 / n) for x in v],
    "plus": lambda v, n: [n + x for x in v],
    "minus": lambda v, n: [-(n - x) for x in v],
    "raised": lambda v, p: [x + x * p / 100 for x in v],
    "lowered": lambda v, p: [x - x * p / 100 for x in v],
    "squared": lambda v: [x * x for x in v],
    "cubed": lambda v: [x * x * x for x in v],
    "roots": lambda v: [Fraction(math.sqrt(x)) for x in v],
    "rounded": lambda v: [_rounded(x) for x in v],
    "absolute": lambda v: [max(x, -x) for x in v],
    "differences": lambda v: [later - earlier for earlier, later in pairwise(v)],
    "running": lambda v: list(accumulate(v)),
    "shares": lambda v: [100 / (sum(v) / x) for x in v],
    "km_to_miles": lambda v: [x * 1000 / (Fraction("0.3048") * 5280) for x in v],
    "miles_to_km": lambda v: [x * 5280 * Fraction("0.3048") / 1000 for x in v],
    "pounds_to_kg": lambda v: [x * 7000 * Fraction("64.79891") / 10**6 for x in v],
    "inches_to_cm": lambda v: [x * Fraction("30.48") / 12 for x in v],
    "celsius": lambda v: [(x + 40) * Fraction("1.8") - 40 for x in v],
    "to_hours": lambda v: [Fraction(x, 60) for x in v],
    "sorted": _ranked,
    "sorted_down": lambda v: _ranked(v, largest=True),
    "reversed": lambda v: list(reversed(v)),
    "less_fee": lambda v, f: [x - f for x in v],
    "less_tax": lambda v, t: [x - x * t / 100 for x in v],
    "exchanged": lambda v, x: [one * x for one in v],
    "whole_amounts": lambda v: [_rounded(x) for x in v],
    "last_periods": PICKS["last"],
}
WORD_STEPS: dict[str, Callable[..., Items]] = {
    "longer": lambda w, n: [x for x in w if x[int(n) :]],
    "shorter": lambda w, n: [x for x in w if not x[int(n) - 1 :]],
    "starting": lambda w, l: [x for x in w if x[0] in (l, l.upper())],  # noqa: E741
    "ending": lambda w, l: [x for x in w if x[-1] in (l, l.upper())],  # noqa: E741
    "containing": lambda w, l: [x for x in w if l in x or l.upper() in x],  # noqa: E741
    "lacking": lambda w, l: [x for x in w if not (l in x or l.upper() in x)],  # noqa: E741
    "unique": _once,
    "lower": lambda w: ["".join(map(str.lower, x)) for x in w],
    "upper": lambda w: ["".join(map(str.upper, x)) for x in w],
    "title": lambda w: [x[0].upper() + x[1:].lower() for x in w],
    "backwards": lambda w: ["".join(reversed(x)) for x in w],
    "initials": lambda w: [next(iter(x)) for x in w],
    "cut": lambda w, n: ["".join(PICKS["first"](x, n)) for x in w],
    "alphabetical": lambda w: _ranked(w, str.lower),
    "by_length": lambda w: _ranked(w, len),
    "turned": lambda w: list(reversed(w)),
    "first_words": PICKS["first"],
    "last_words": PICKS["last"],
}
ROW_STEPS: dict[str, Callable[..., Items]] = {
    "over": lambda r, k: [x for x in r if not x[1] <= k],
    "under": lambda r, k: [x for x in r if not x[1] >= k],
    "within": lambda r, a, b: [x for x in r if not (x[1] < a or x[1] > b)],
    "top": lambda r, n: PICKS["first"](_ranked(r, lambda x: x[1], largest=True), n),
    "bottom": lambda r, n: PICKS["first"](_ranked(r, lambda x: x[1]), n),
    "first_rows": PICKS["first"],
    "raise_each": lambda r, p: [(name, x + x * p / 100) for name, x in r],
    "lower_each": lambda r, p: [(name, x - x * p / 100) for name, x in r],
    "add_each": lambda r, n: [(name, n + x) for name, x in r],
    "by_number": lambda r: _ranked(r, lambda x: x[1]),
    "by_number_down": lambda r: _ranked(r, lambda x: x[1], largest=True),
    "by_name": lambda r: _ranked(r, lambda x: x[0]),
    "of_group": lambda r, g: [x for x in r if x[1] == g],
    "not_of_group": lambda r, g: [x for x in r if x[1] != g],
    "amount_over": lambda r, k: [x for x in r if not x[2] <= k],
    "amount_under": lambda r, k: [x for x in r if not x[2] >= k],
    "by_amount": lambda r: _ranked(r, lambda x: x[2]),
    "by_amount_down": lambda r: _ranked(r, lambda x: x[2], largest=True),
    "by_first_column": lambda r: _ranked(r, lambda x: x[0]),
}


def _weekday(day: date) -> int:
    return calendar.weekday(day.year, day.month, day.day)


def _shifted(days: Items, number: Fraction) -> Items:
    return [date.fromordinal(day.toordinal() + int(number)) for day in days]


DAY_STEPS: dict[str, Callable[..., Items]] = {
    "working": lambda d: [x for x in d if x.isoweekday() not in (6, 7)],
    "weekend": lambda d: [x for x in d if x.isoweekday() in (6, 7)],
    "mondays": lambda d, w: [x for x in d if _weekday(x) == w],
    "before_day": lambda d, day: [x for x in d if x.toordinal() < day.toordinal()],
    "after_day": lambda d, day: [x for x in d if x.toordinal() > day.toordinal()],
    "in_month": lambda d, m: [x for x in d if x.timetuple()[1] == m],
    "in_year": lambda d, y: [x for x in d if x.timetuple()[0] == y],
    "first_days": PICKS["first"],
    "later_by": _shifted,
    "earlier_by": lambda d, n: _shifted(d, -n),
    "in_order": _ranked,
    "latest_first": lambda d: _ranked(d, largest=True),
}
# Of a text, whose items are its characters.
LETTER_STEPS: dict[str, Callable[..., Items]] = {
    "small": lambda c: [x.lower() for x in c],
    "capitals": lambda c: list("".join(c).upper()),
    "no_spaces": lambda c: [x for x in c if x != " "],
    "signs_for_spaces": lambda c, s: [s if x == " " else x for x in c],
    "only_letters": lambda c: [x for x in c if x not in " .,'-0123456789"],
    "without_letter": lambda c, l: [x for x in c if x not in (l, l.upper())],  # noqa: E741
    "mirrored": lambda c: list(reversed(c)),
    "beginning": PICKS["first"],
    "rear": PICKS["last"],
}
STEPS = {**NUMBER_STEPS, **WORD_STEPS, **ROW_STEPS, **DAY_STEPS, **LETTER_STEPS}


def started(name: str, slots: Mapping[str, Any]) -> Items:
    """Return the items of a source from its slots."""
    if name == "from_to":
        return [Fraction(number) for number in range(int(slots["a"]), 1 + int(slots["b"]))]
    if name == "day_range":
        first, last = slots["a"].toordinal(), slots["b"].toordinal()
        return [date.fromordinal(at) for at in range(first, last + 1)]
    if name in ("growing", "shrinking"):
        balances = [slots["a"]]
        while len(balances) <= slots["n"]:
            change = balances[-1] * slots["r"] / 100
            balances.append(balances[-1] + (change if name == "growing" else -change))
        return balances[1:]
    if name == "saving":
        return list(accumulate([slots["a"]] * int(slots["n"])))
    if name == "sentence":
        return [word.rstrip(".,") for word in slots["data"].split(" ")]
    return list(slots["data"])


def _percent(part: Any, whole: Any) -> Fraction:
    return Fraction(part) * 100 / Fraction(whole)


def _number_end(name: str, v: Items, before: Items, slots: Mapping[str, Any]) -> Any:
    """Return the one number of an end, or several; None for ends that are none."""
    spread = max(v) - min(v) if v else 0
    found: dict[str, Callable[[], Any]] = {
        "sum": lambda: sum(v),
        "mean": lambda: _mean(v),
        "median": lambda: _median(v),
        "deviation": lambda: math.sqrt(_squares(v) / (len(v) - 1)),
        "population_deviation": lambda: math.sqrt(_squares(v) / len(v)),
        "variance": lambda: _squares(v) / (len(v) - 1),
        "maximum": lambda: _ranked(v)[-1],
        "minimum": lambda: _ranked(v)[0],
        "spread": lambda: spread,
        "count": lambda: sum(1 for _ in v),
        "share_of_count": lambda: _percent(len(v), len(before)),
        "share_of_sum": lambda: _percent(sum(v), sum(before)),
        "product": lambda: list(accumulate([Fraction(1), *v], lambda a, b: a * b))[-1],
        "different": lambda: len(_once(v)),
        "mode": lambda: _most_frequent(v),
        "second_largest": lambda: _ranked(v)[-2],
        "third_largest": lambda: _ranked(v)[-3],
        "second_smallest": lambda: _ranked(v)[1],
        "sum_and_mean": lambda: (sum(v), _mean(v)),
        "low_and_high": lambda: (_ranked(v)[0], _ranked(v)[-1]),
        "count_and_sum": lambda: (len(v), sum(v)),
        "mean_minus_median": lambda: _mean(v) - _median(v),
        "max_minus_mean": lambda: _ranked(v)[-1] - _mean(v),
        "final": lambda: v[len(v) - 1],
        "gained": lambda: v[len(v) - 1] - slots["a"],
        "lost": lambda: slots["a"] - v[len(v) - 1],
        "mean_balance": lambda: _mean(v),
        "sum_of_balances": lambda: sum(v),
    }
    return found[name]() if name in found else None


def _word_end(name: str, w: Items) -> str:
    """Return the text that an end prints of words."""
    counted = _ranked(_once(w), w.count, largest=True)
    found: dict[str, Callable[[], Any]] = {
        "how_many": lambda: str(sum(1 for _ in w)),
        "letters_altogether": lambda: str(len("".join(w))),
        "distinct_count": lambda: str(len(_once(w))),
        "commas": lambda: "".join(f", {word}" for word in w)[2:],
        "dashes": lambda: "".join(f"-{word}" for word in w)[1:],
        "glued": lambda: "".join(f"{word}" for word in w),
        "one_a_line": lambda: "".join(f"\n{word}" for word in w)[1:],
        "as_list": lambda: str(w),
        "with_lengths": lambda: "".join(f"\n{word} {len(word)}" for word in w)[1:],
        "numbered": lambda: "".join(f"\n{at + 1} {word}" for at, word in enumerate(w))[1:],
        "longest": lambda: _ranked(w, len, largest=True)[0],
        "shortest": lambda: _ranked(w, len)[0],
        "most_frequent": lambda: _most_frequent(w),
        "frequencies": lambda: "".join(f"\n{word} {w.count(word)}" for word in counted)[1:],
        "last_of_alphabet": lambda: _ranked(w, str.lower, largest=True)[0],
    }
    return found[name]()


def _row_end(name: str, r: Items, before: Items) -> list[Any]:
    """Return what an end prints of rows, in order; their number is the last of each."""
    numbers = [row[-1] for row in r]
    ranked = _ranked(r, lambda row: row[-1], largest=True)
    best, worst = (ranked[0], _ranked(r, lambda row: row[-1])[0]) if r else ((), ())
    groups = {group: [row[-1] for row in r if row[1] == group] for group in _once([row[1] for row in r])}
    found: dict[str, Callable[[], list[Any]]] = {
        "who_most": lambda: [best[0]],
        "best_name": lambda: [best[0]],
        "who_least": lambda: [worst[0]],
        "lowest_name": lambda: [worst[0]],
        "best_with_number": lambda: [*best],
        "worst_with_number": lambda: [*worst],
        "runner_up": lambda: [ranked[1][0]],
        "sum_of_rows": lambda: [sum(numbers)],
        "total_amount": lambda: [sum(numbers)],
        "mean_of_rows": lambda: [_mean(numbers)],
        "mean_amount": lambda: [_mean(numbers)],
        "median_of_rows": lambda: [_median(numbers)],
        "gap_of_rows": lambda: [best[-1] - worst[-1]],
        "highest_amount": lambda: [best[-1]],
        "rows_left": lambda: [len(r)],
        "entries": lambda: [len(r)],
        "names_left": lambda: [row[0] for row in r],
        "first_column": lambda: [row[0] for row in r],
        "names_in_a_line": lambda: [row[0] for row in r],
        "row_lines": lambda: [part for row in r for part in row],
        "whole_lines": lambda: [part for row in r for part in row],
        "ranked_lines": lambda: [part for at, row in enumerate(r) for part in (at + 1, *row)],
        "percent_lines": lambda: [part for row in r for part in (row[0], _percent(row[1], sum(numbers)))],
        "top_share": lambda: [_percent(best[1], sum(numbers))],
        "share_of_rows": lambda: [_percent(len(r), len(before))],
        "group_share": lambda: [_percent(sum(numbers), sum(row[-1] for row in before))],
        "total_per_group": lambda: [part for group in groups for part in (group, sum(groups[group]))],
        "count_per_group": lambda: [part for group in groups for part in (group, len(groups[group]))],
        "mean_per_group": lambda: [part for group in groups for part in (group, _mean(groups[group]))],
        "best_group": lambda: [_ranked(list(groups), lambda group: sum(groups[group]), largest=True)[0]],
    }
    return found[name]()


def _day_end(name: str, d: Items, before: Items) -> list[Any]:
    ordinals = _ranked([day.toordinal() for day in d])
    gaps = [later - earlier for earlier, later in pairwise(ordinals)]
    found: dict[str, Callable[[], list[Any]]] = {
        "count_days": lambda: [len(d)],
        "earliest": lambda: [date.fromordinal(ordinals[0]).isoformat()],
        "latest": lambda: [date.fromordinal(ordinals[-1]).isoformat()],
        "span": lambda: [sum(gaps)],
        "iso_lines": lambda: [f"{day.year}-{day.month:02d}-{day.day:02d}" for day in d],
        "weekday_lines": lambda: [part for day in d for part in (str(day), calendar.day_name[_weekday(day)])],
        "gaps": lambda: [*gaps],
        "mean_gap": lambda: [Fraction(sum(gaps), len(gaps))],
        "day_share": lambda: [_percent(len(d), len(before))],
    }
    return found[name]()


def _letter_end(name: str, c: Items) -> str:
    """Return the text that an end prints of characters."""
    found: dict[str, Callable[[], Any]] = {
        "shown_text": lambda: "".join(c).strip(),
        "length": lambda: str(sum(1 for _ in c)),
        "different_characters": lambda: str(len(_once(c))),
        "vowels": lambda: str(sum("".join(c).lower().count(vowel) for vowel in "aeiou")),
        "consonants": lambda: str(sum(x.lower() not in "aeiou .,'-0123456789" for x in c)),
        "commonest_letter": lambda: _most_frequent(c),
        "spelled": lambda: "-".join(c).strip(),
        "in_order_of_alphabet": lambda: "".join(_ranked(c)),
    }
    return found[name]()


def outcome(
    type_: str, source: str, steps: Sequence[tuple[str, Mapping[str, Any]]], end: str, slots: Mapping[str, Any]
) -> list[Any] | str:
    """Return what a computation prints: its tokens in order, or of words the whole text."""
    items = before = started(source, slots)
    for name, drawn in steps:
        items = STEPS[name](items, *drawn.values())
    if type_ == "words":
        if end == "mean_length":
            return [Fraction(len("".join(items)), len(items))]
        return _word_end(end, items)
    if type_ == "letters":
        return _letter_end(end, items)
    if type_ in ("rows", "grouped"):
        return _row_end(end, items, before)
    if type_ == "days":
        return _day_end(end, items, before)
    if end == "numbered_balances":
        return [part for at, one in enumerate(items) for part in (at + 1, one)]
    numbers = _number_end(end, items, before, slots)
    if numbers is None:  # a list of them
        return items
    return [*numbers] if isinstance(numbers, tuple) else [numbers]
