"""Other ways than those of the programs to work a value out: by fractions, loops, sieves, the calendar module."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction
from itertools import pairwise, permutations, product
from typing import Any

Expected = Any  # a number, a list of numbers, a text, or a function that says whether a printed text is right


def exact(number: object) -> Fraction:
    """Return a number of a query as a fraction, so that nothing is rounded on the way."""
    return Fraction(str(number))


def grown(amount: object, rate: object, years: int) -> Fraction:
    """Return an amount after so many years, a year at a time."""
    value = exact(amount)
    for _ in range(years):
        value += value * exact(rate) / 100
    return value


def paid_off(amount: object, rate: object, months: int) -> float:
    """Return the monthly payment that leaves nothing, found by halving an interval."""
    low, high = 0.0, float(exact(amount)) * 2
    for _ in range(200):
        middle, left = (low + high) / 2, float(exact(amount))
        for _ in range(months):
            left += left * float(exact(rate)) / 1200 - middle
        low, high = (middle, high) if left > 0 else (low, middle)
    return low


def instalment(amount: object, rate: object, years: int) -> float:
    return paid_off(amount, rate, 12 * years)


def saved(amount: object, rate: object, years: int) -> Fraction:
    """Return what monthly deposits come to: each one on its own, for the months that it lies there."""
    growth = float(1 + exact(rate) / 1200)
    return sum(float(exact(amount)) * growth**months for months in range(years * 12))


def days_from(start: date, end: date) -> int:
    return end.toordinal() - start.toordinal()


def weekdays(start: date, end: date) -> int:
    return sum(
        day.isoweekday() not in (6, 7) for day in map(date.fromordinal, range(start.toordinal(), end.toordinal() + 1))
    )


def after_working_days(start: date, count: int) -> date:
    """Return the last of so many working days, whole weeks first."""
    day = start
    while day.isoweekday() > 5:  # counting begins on a Friday as well as on a weekend
        day -= timedelta(days=1)
    day += timedelta(weeks=count // 5)
    for _ in range(count % 5):
        day += timedelta(days=3 if day.isoweekday() == 5 else 1)
    return day


def age(born: date, day: date) -> int:
    return next(
        n for n in range(-50, 150) if (born.year + n + 1, born.month, born.day) > (day.year, day.month, day.day)
    )


def is_prime(n: int) -> bool:
    return n > 1 and not any(n % d == 0 for d in range(2, math.isqrt(n) + 1))


def primes(limit: int) -> list[int]:
    """Return the primes below a limit by the sieve of Eratosthenes."""
    sieve = [False, False, *[True] * max(0, limit - 2)]
    for n in range(2, limit):
        for multiple in range(n * n, limit, n):
            sieve[multiple] = False
    return [n for n in range(limit) if sieve[n]]


def factors(n: int) -> list[int]:
    return [p for p in primes(n + 1) if n % p == 0 for k in range(1, 40) if n % p**k == 0]


def fibonacci(n: int) -> int:
    golden = (1 + math.sqrt(5)) / 2
    if n < 60:
        return round(golden**n / math.sqrt(5))
    return fibonacci(n - 1) + fibonacci(n - 2) if n < 64 else _pairs(n)


def _pairs(n: int) -> int:
    a, b = fibonacci(60), fibonacci(61)
    for _ in range(n - 60):
        a, b = b, a + b
    return a


def choose(n: int, k: int) -> int:
    """Return binomial coefficients by Pascal's triangle."""
    row = [1]
    for _ in range(n):
        row = [1, *map(sum, pairwise(row)), 1]
    return row[k]


def mean(values: list) -> Fraction:
    return sum(map(exact, values), Fraction(0)) / len(values)


def spread(values: list, less: int) -> float:
    centre = mean(values)
    return math.sqrt(sum((exact(value) - centre) ** 2 for value in values) / (len(values) - less))


def middle(values: list) -> Fraction:
    ordered = sorted(map(exact, values))
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def quartiles(values: list) -> list[float]:
    ordered = sorted(values)
    places = [(len(ordered) - 1) * part / 4 for part in (1, 2, 3)]
    return [
        ordered[int(at)] + (ordered[min(int(at) + 1, len(ordered) - 1)] - ordered[int(at)]) * (at % 1) for at in places
    ]


def cells(table: str | list[tuple]) -> list[list[str]]:
    """Return the cells below the head of a table that was pasted, or that stands in a program as rows."""
    if isinstance(table, str):
        return [line.split(",") for line in table.split("\n")][1:]
    return [list(map(str, row)) for row in table]


def clock(minutes: int) -> list[int]:
    return list(divmod(minutes, 60))


def printed_list(values: list) -> str:
    return str(list(values))


def near(chance: float, rounds: int) -> Callable[[str], bool]:
    """Return a check that an estimate lies within five standard errors of a chance."""
    allowed = 5 * math.sqrt(max(chance * (1 - chance), 1e-4) / rounds) + 1e-9
    return lambda printed: abs(float(printed) - chance) <= allowed


def about(wanted: float, allowed: float) -> Callable[[str], bool]:
    return lambda printed: abs(float(printed) - wanted) <= allowed


def sample(words: list, count: int) -> Callable[[str], bool]:
    def is_sample(printed: str) -> bool:
        drawn = ast.literal_eval(printed)
        return len(drawn) == count and not Counter(drawn) - Counter(words)

    return is_sample


def parted(words: list, count: int) -> Callable[[str], bool]:
    def is_parted(printed: str) -> bool:
        groups = ast.literal_eval(printed)
        sizes = [len(group) for group in groups]
        return (
            len(groups) == count
            and max(sizes) - min(sizes) <= 1
            and sorted(word for group in groups for word in group) == sorted(words)
        )

    return is_parted


def two_dice(total: int) -> float:
    return sum(a + b == total for a, b in product(range(1, 7), repeat=2)) / 36


def shared_birthday(people: int) -> float:
    return 1 - math.exp(sum(math.log1p(-i / 365) for i in range(people)))


def by_letters(word: str) -> int:
    return len(set(permutations(word))) if len(word) < 9 else _repeated(word)


def _repeated(word: str) -> int:
    ways, left = 1, len(word)
    for count in Counter(word).values():
        ways, left = ways * choose(left, count), left - count
    return ways


def percent(part: object, whole: object) -> Fraction:
    return exact(whole) * exact(part) / 100


def more(amount: object, rate: object) -> Fraction:
    return exact(amount) + percent(rate, amount)


def less(amount: object, rate: object) -> Fraction:
    return exact(amount) - percent(rate, amount)


def change(before: object, after: object) -> Fraction:
    return 100 * exact(after) / exact(before) - 100


ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def roman_for(number: int) -> Callable[[str], bool]:
    def is_right(printed: str) -> bool:
        values = [_VALUES[sign] for sign in printed]
        return number == sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))

    return is_right


def inserted(values: list) -> list:
    ordered: list = []
    for value in values:
        ordered.insert(sum(other < value for other in ordered), value)
    return ordered
