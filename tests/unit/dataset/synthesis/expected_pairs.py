"""What programs with two results, with tables and with amounts from period to period have to print, in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction

from tests.unit.dataset.synthesis.other_ways import Expected, exact

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
