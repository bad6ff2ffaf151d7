"""What programs with two results, with tables and with amounts from period to period have to print, in another way."""

from __future__ import annotations

import json
import math
from calendar import Calendar
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from itertools import count

from tests.unit.dataset.synthesis.other_ways import Expected, exact, grown, middle

Rows = list[tuple]


def _mean(values: list) -> Fraction:
    return sum(map(exact, values), Fraction(0)) / len(values)


def _words_and_numbers(*wanted: object) -> Callable[[str], bool]:
    """Return a check of what was printed: words as they are, numbers to four decimals."""

    def is_right(printed: str) -> bool:
        found = printed.split()
        return len(found) == len(wanted) and all(
            one == two if isinstance(two, str) else abs(float(one) - float(two)) < 6e-5
            for one, two in zip(found, wanted, strict=True)
        )

    return is_right


def _ordered(table: Rows, value: Callable[[tuple], Fraction]) -> str:
    """Return the name in the row of the largest value, the first of equal ones."""
    largest = max(value(row) for row in table)
    return next(row[0] for row in table if value(row) == largest)


def _column(table: Rows, at: int = 1, **where: str) -> list[Fraction]:
    return [exact(row[at]) for row in table if not where or row[2] == where["is_"]]


def _per_name(table: Rows, combine: Callable[[list[Fraction]], Fraction], names: list[str]) -> Callable[[str], bool]:
    pairs = [(name, combine([exact(value) for other, value in table if other == name])) for name in names]
    return _words_and_numbers(*(part for pair in pairs for part in pair))


QUESTIONS: dict[str, Callable[..., Expected]] = {
    "table_highest_and_average": lambda table: _words_and_numbers(
        _ordered(table, lambda row: exact(row[1])), _mean(_column(table))
    ),
    "table_least_and_total": lambda table: _words_and_numbers(
        _ordered(table, lambda row: -exact(row[1])), sum(_column(table))
    ),
    "table_average_where": lambda table, v: _mean(_column(table, is_=v)),
    "table_sum_where": lambda table, v: sum(_column(table, is_=v)),
    "table_above_and_total": lambda table, k: [len([1 for hours in _column(table) if hours > k]), sum(_column(table))],
    "lines_per_name": lambda table: _per_name(table, sum, list(dict.fromkeys(row[0] for row in table))),
    "lines_total_and_mean": lambda table: [sum(_column(table)), _mean(_column(table))],
    "table_group_average": lambda table: _per_name(table, _mean, ["north", "south"]),
    "table_dearest_line": lambda table: _words_and_numbers(
        _ordered(table, lambda row: exact(row[1]) * exact(row[2])),
        sum(exact(count) * exact(price) for _, count, price in table),
    ),
    "table_to_json": lambda table: lambda printed: [tuple(row.values()) for row in json.loads(printed)] == table,
}


def _deviation(values: list, fewer: int) -> float:
    """Return the standard deviation from sums of squares; of a sample with `fewer` 1, of all there are with 0."""
    numbers = list(map(exact, values))
    squares = sum(number * number for number in numbers) - sum(numbers) ** 2 / len(numbers)
    return math.sqrt(squares / (len(numbers) - fewer))


def _correlation(one: list, other: list) -> float:
    products = sum((a - _mean(one)) * (b - _mean(other)) for a, b in zip(one, other, strict=True))
    return float(products) / (_deviation(one, 0) * _deviation(other, 0) * len(one))


def _of_binary(text: str) -> int:
    return sum(2**at for at, digit in enumerate(reversed(text)) if digit == "1")


def _base(number: int, base: int) -> str:
    return (_base(number // base, base) if number >= base else "") + "0123456789abcdef"[number % base]


PAIRS: dict[str, Callable[..., Expected]] = {
    "mean_and_deviation": lambda numbers: [_mean(numbers), _deviation(numbers, 1)],
    "spread_and_mean": lambda numbers: [exact(sorted(numbers)[-1]) - exact(sorted(numbers)[0]), _mean(numbers)],
    "median_and_mean": lambda numbers: [middle(numbers), _mean(numbers)],
    "lowest_and_highest": lambda numbers: [sorted(numbers)[0], sorted(numbers)[-1]],
    "above_and_total": lambda numbers, k: [len([n for n in numbers if n > k]), math.fsum(numbers)],
    "below_and_mean": lambda numbers, k: [len([n for n in numbers if k > n]), _mean(numbers)],
    "far_from_mean": lambda numbers, k: [
        n for n in numbers if (n - _mean(numbers)) ** 2 > (exact(k) * exact(_deviation(numbers, 0))) ** 2
    ],
    "correlation_of_two_lists": _correlation,
    "nearest_rank": lambda numbers, p: next(
        n for n in sorted(numbers) if 100 * len([m for m in numbers if m <= n]) >= p * len(numbers)
    ),
    "decimal_and_hex": lambda a: lambda printed: printed == f"{_of_binary(str(a))} 0x{_base(_of_binary(str(a)), 16)}",
    "binary_and_hex": lambda n: lambda printed: printed == f"{_base(n, 2)} {_base(n, 16)}",
    "area_and_perimeter": lambda a, b: [exact(a) * exact(b), exact(a) + exact(b) + exact(a) + exact(b)],
    "net_and_tax": lambda a, t: [exact(a) * 100 / (100 + t), exact(a) * t / (100 + t)],
    "hours_minutes_seconds": lambda n: [n // 60 // 60, n // 60 % 60, n % 60],
    "old_to_new_percent": lambda a, b: 100 * exact(b) / exact(a) - 100,
    "yearly_pay": lambda a, h, w: sum(exact(a) * exact(h) for _ in range(w)),
}


def _days_of(start: date) -> list[date]:
    return [day for day in Calendar().itermonthdates(start.year, start.month) if day.month == start.month]


def _kept_up(amount: object, rate: object, payment: object, periods: int) -> Fraction:
    """Return an amount that grows, less each payment with what it would have grown to."""
    return grown(amount, rate, periods) - sum(grown(payment, rate, later) for later in range(periods))


def _ways(dice: int, total: int) -> int:
    return sum(_ways(dice - 1, total - eyes) for eyes in range(1, 7)) if dice else int(total <= 0)


PERIODS: dict[str, Callable[..., Expected]] = {
    "periods_until_below": lambda a, r, b: math.floor(math.log(b / a) / math.log(1 - r / 100)) + 1,
    "periods_until_above": lambda a, r, b: math.floor(math.log(b / a) / math.log(1 + r / 100)) + 1,
    "growth_and_withdrawal": _kept_up,
    "monthly_deposits": lambda a, r, y: sum(float(exact(a)) * (1 + float(r) / 1200) ** n for n in range(12 * y)),
    "balances_listed": lambda a, r, y: [grown(a, r, year) for year in range(1, y + 1)],
    "doubles_every": lambda a, k: sum([a, *(a * 2**n for n in range(k))]),
    "doubling_time": lambda a, d, h: a * math.exp(math.log(2) * h / d),
    "months_to_repay": lambda a, r, p: next(n for n in count(1) if _kept_up(a, r, p, n) <= 0),
    "dice_at_least": lambda k, s: Fraction(_ways(k, s), 6**k),
    "workdays_of_a_month": lambda m: len([day for day in _days_of(m) if day.isoweekday() not in (6, 7)]),
    "minutes_over_midnight": lambda a, b: (24 * 60 - a) + b,
}
