"""What the programs of the content have to print, worked out in another way: by fractions, loops, the calendar module.

A function has the slots of its kind of program as arguments, as Python values, and returns a number, numbers in order,
or the printed text. Programs that draw at random return a check of what was printed.
"""

from __future__ import annotations

import ast
import base64
import calendar
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise, permutations, product
from typing import Any
from urllib.parse import unquote

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


def instalment(amount: object, rate: object, years: int) -> float:
    """Return the monthly payment that leaves nothing, found by halving an interval."""
    low, high = 0.0, float(exact(amount)) * 2
    for _ in range(200):
        middle, left = (low + high) / 2, float(exact(amount))
        for _ in range(years * 12):
            left += left * float(exact(rate)) / 1200 - middle
        low, high = (middle, high) if left > 0 else (low, middle)
    return low


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


def cells(table: str, mark: str = ",") -> list[list[str]]:
    return [line.split(mark) for line in table.split("\n")][1:]


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


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def _roman(number: int) -> Callable[[str], bool]:
    def is_right(printed: str) -> bool:
        values = [_VALUES[sign] for sign in printed]
        return number == sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))

    return is_right


MONEY: dict[str, Callable[..., Expected]] = {
    "compound_interest": lambda a, r, y: grown(a, r, y),
    "interest_earned": lambda a, r, y: grown(a, r, y) - exact(a),
    "simple_interest": lambda a, r, y: sum(percent(r, a) for _ in range(y)),
    "future_price": lambda a, r, y: grown(a, r, y),
    "inflation_value": lambda a, r, y: exact(a) / grown(1, r, y),
    "inflation_abroad": lambda a, r, y: exact(a) / grown(1, r, y),
    "population": lambda a, r, y: round(grown(a, r, y)),
    "cagr": lambda a, b, y: 100 * (math.exp(math.log(b / a) / y) - 1),
    "loan": lambda a, r, y: instalment(a, r, y),
    "loan_interest": lambda a, r, y: instalment(a, r, y) * 12 * y - float(exact(a)),
    "savings_plan": lambda a, r, y: saved(a, r, y),
    "savings_abroad": lambda a, r, y: saved(a, r, y),
    "depreciation": lambda a, r, y: exact(a) * Fraction(100 - exact(r), 100) ** y,
    "investment_compare": lambda a, r, s, y: [r, grown(a, r, y), s, grown(a, s, y)],
    "doubling": lambda r: math.log(2, 1 + r / 100),
    "vat": lambda a, t: more(a, t),
    "vat_included": lambda a, t: exact(a) * 100 / (100 + exact(t)),
    "sales_tax": lambda a, t: percent(t, a),
    "discount": lambda a, t: less(a, t),
    "discount_abroad": lambda a, t: less(a, t),
    "price_before_discount": lambda a, t: exact(a) * 100 / (100 - exact(t)),
    "discount_percent": lambda a, b: -change(a, b),
    "net_gross": lambda a, p: less(a, p),
    "markup": lambda a, p: more(a, p),
    "raise": lambda a, r: more(a, r),
    "exchange_given": lambda a, x: exact(a) * exact(x),
    "yearly_salary": lambda a, n: sum(exact(a) for _ in range(n)),
    "hourly_from_monthly": lambda a, h: exact(a) * 12 / (52 * exact(h)),
    "subscription": lambda a, n: sum(exact(a) for _ in range(n)),
    "instalments": lambda a, n: exact(a) / n,
    "margin": lambda a, b: 100 - 100 * exact(a) / exact(b),
    "shared_cost": lambda numbers, n: sum(map(exact, numbers)) / n,
    "quantity_price": lambda n, p: sum(exact(p) for _ in range(n)),
    "split_bill": lambda a, n, t: more(a, t) / n,
    "tip": lambda a, p, n: more(a, p) / n,
    "split_even": lambda a, n: exact(a) / n,
    "unequal_split": lambda a, n: [2 * exact(a) / (n + 1), exact(a) / (n + 1)],
    "wage": lambda h, w: exact(h) * exact(w),
    "hours_pay": lambda numbers, p: sum(exact(hours) * exact(p) for hours in numbers),
    "per_unit": lambda a, b: 1000 * exact(a) / b,
    "proportion": lambda a, p, b: exact(p) * b / a,
    "room_cost": lambda l, w, p: exact(p) * exact(l) * exact(w),
    "times_and_plus": lambda a, p, s: exact(s) + sum(exact(p) for _ in range(a)),
    "packs": lambda n, s, p: [-(-n // s), -(-n // s) * exact(p)],
    "break_even": lambda f, p, c: next(n for n in range(f) if n * (p - c) >= f),
    "energy_cost": lambda w, h, p: sum(exact(w) * exact(h) * exact(p) / 1000 for _ in range(365)),
    "running_total": lambda a, numbers: exact(a) - sum(map(exact, numbers)),
    "grade_needed": lambda numbers, t: next(
        x for x in range(-2000, 2000) if sum([*numbers, x]) == t * (len(numbers) + 1)
    ),
    "share_of": lambda a, b: 100 * exact(a) / b,
    "growth": change,
    "percent_change": change,
    "percentage_of": percent,
    "round_percent": lambda a, p: percent(p, a),
    "decoy_percent": lambda p, n, **_: percent(p, n),
    "party": lambda n, b, p: [-(-n * exact(b) // 1), -(-n * exact(b) // 1) * exact(p)],
    "fence": lambda a, d, p: [-(-a // exact(d)) + 1, (-(-a // exact(d)) + 1) * exact(p)],
}

DATES: dict[str, Callable[..., Expected]] = {
    "days_between": days_from,
    "weeks_between": lambda a, b: list(divmod(days_from(a, b), 7)),
    "weekday": lambda a: calendar.day_name[calendar.weekday(a.year, a.month, a.day)],
    "date_plus": lambda a, n: str(date.fromordinal(a.toordinal() + n)),
    "date_plus_abroad": lambda a, n: str(date.fromordinal(a.toordinal() + n)),
    "date_minus": lambda a, n: str(date.fromordinal(a.toordinal() - n)),
    "date_weeks": lambda a, n: str(date.fromordinal(a.toordinal() + 7 * n)),
    "days_from_today": lambda n: str(date.fromordinal(date.today().toordinal() + n)),
    "decoy_date": lambda n, **_: str(date.fromordinal(date.today().toordinal() + n)),
    "business_days": weekdays,
    "business_days_abroad": weekdays,
    "add_working_days": lambda a, n: str(after_working_days(a, n)),
    "working_days_from_today": lambda n: str(after_working_days(date.today(), n)),
    "age": lambda a: age(a, date.today()),
    "age_on": lambda a, b: age(a, b),
    "countdown": lambda a: days_from(date.today(), a),
    "iso_week": lambda a: int(a.strftime("%V")),
    "quarter_of": lambda a: int(a.strftime("%V")),
    "day_of_year": lambda a: int(a.strftime("%j")),
    "days_in_month": lambda m, y: days_from(date(y, m, 1), date(y + m // 12, m % 12 + 1, 1)),
    "is_leap": lambda y: str(days_from(date(y, 1, 1), date(y + 1, 1, 1)) == 366),
    "leap_years": lambda a, b: printed_list(y for y in range(a, b + 1) if y % 400 == 0 or (y % 4 == 0 and y % 100)),
    "add_months": lambda a, n: str(_months_later(a, n)),
    "nth_weekday": lambda k, w, m, y: str([day for day in _days_of(y, m) if day.weekday() == w][k - 1]),
    "friday_13": lambda y: printed_list(m for m in range(1, 13) if calendar.weekday(y, m, 13) == calendar.FRIDAY),
    "quarter": lambda a: (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)[a.month - 1],
    "weekend_days": lambda y, m: sum(day.isoweekday() > 5 for day in _days_of(y, m)),
    "latest_date": lambda words: sorted(words)[-1],
    "unix_time": lambda n: str(datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=n)),
    "clock_plus": lambda h, m, a, b: clock((h * 60 + m + a * 60 + b) % 1440),
    "clock_difference": lambda a, b, c, d: clock((c - a) * 60 + d - b),
    "time_difference": lambda a, b, c, d: clock((c - a) * 60 + d - b),
    "add_times": lambda a, b, c, d: clock((a + c) * 60 + b + d),
    "sum_durations": lambda a, b, c, d, e: clock((a + c) * 60 + b + d + e),
    "minutes": lambda a: clock(a),
    "minutes_abroad": lambda a: clock(a),
    "hours_to_minutes": lambda h: exact(h) * 60,
    "seconds_in": lambda w, d: int(timedelta(weeks=w, days=d).total_seconds()),
    "weeks_of_days": lambda n: list(divmod(n, 7)),
    "schedule_slots": lambda n, m, b: clock(n * (m + b) - b),
    "arrival": lambda h, m, k, v: clock((h * 60 + m + round(Fraction(60 * k, v))) % 1440),
    "speed": lambda k, v: clock(round(Fraction(60 * k, v))),
    "travel_time": lambda k, v: clock(round(Fraction(60 * k, v))),
    "pace": lambda k, m: list(divmod(round(60 * m / exact(k)), 60)),
}


def _days_of(year: int, month: int) -> list[date]:
    return [day for day in calendar.Calendar().itermonthdates(year, month) if day.month == month]


def _months_later(start: date, months: int) -> date:
    year, month = start.year, start.month
    for _ in range(months):
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return min(start.replace(day=1, year=year, month=month) + timedelta(days=start.day - 1), _days_of(year, month)[-1])


UNITS: dict[str, Callable[..., Expected]] = {
    "convert": lambda a, u: exact(a) * Fraction(u),
    "miles_to_km": lambda a: exact(a) * 5280 * 12 * Fraction(254, 10_000_000) * 1000 / 1000,
    "km_to_miles": lambda a: exact(a) * 100_000 / (5280 * 12 * Fraction(254, 100)),
    "pounds_to_kg": lambda a: exact(a) * 45359237 / 10**8,
    "inches_to_cm": lambda a: exact(a) * 254 / 100,
    "celsius_to_f": lambda a: (exact(a) + 40) * 9 / 5 - 40,
    "temperature": lambda a: (exact(a) + 40) * 9 / 5 - 40,
    "fahrenheit": lambda a: (exact(a) + 40) * 5 / 9 - 40,
    "celsius_list": lambda numbers: [round(float((exact(c) + 40) * 9 / 5 - 40), 1) for c in numbers],
    "kmh_to_ms": lambda a: exact(a) * 1000 / 3600,
    "gallons": lambda a: exact(a) * 231 * Fraction(254, 100) ** 3 / 1000,
    "ounces": lambda a: exact(a) * 45359237 / 10**8 * 1000 / 16,
    "acres": lambda a: exact(a) * 43560 * Fraction(3048, 10000) ** 2 / 10000,
    "convert_units": lambda a: exact(a) * Fraction(3048, 10000) ** 2,
    "feet_inches": lambda f, i: (exact(f) * 12 + i) * Fraction(254, 100),
    "download_time": lambda g, s: exact(g) * 8000 / (60 * s),
    "data_size": lambda g, s: exact(g) * 8000 / (60 * s),
    "rectangle": lambda l, w: exact(l) * exact(w),
    "circumference": lambda a: math.tau * a,
    "circle": lambda a: math.tau * a * a / 2,
    "sphere": lambda a: math.pi * (2 * a) ** 3 / 6,
    "volume_tank": lambda d, h: math.pi * d * d / 4 * h / 1000,
    "polygon": lambda n, s: n * s * s / 4 / math.tan(math.radians(180 / n)),
    "distance": lambda a, b, c, d: abs(complex(a, b) - complex(c, d)),
    "triangle": lambda a, b: abs(complex(a, b)),
    "hypotenuse": lambda a, b: abs(complex(a, b)),
    "bmi": lambda w, h: Fraction(w * 10000, h * h),
    "fuel": lambda k, l, p: k * exact(l) * exact(p) / 100,
    "co2": lambda k, c: k * exact(c) * Fraction(237, 10000),
    "average_speed": lambda k, m: exact(k) * 60 / m,
    "scale_recipe": lambda a, n, m: Fraction(a * m, n),
    "rule_of_three": lambda a, d, b: Fraction(a * d, b),
    "stairs": lambda h, s: [round(100 * exact(h) / exact(s)), 100 * exact(h) / round(100 * exact(h) / exact(s))],
    "tiles": lambda l, w, t: -(-100 * exact(l) // t) * -(-100 * exact(w) // t),
    "paint": lambda a, c: exact(a) / exact(c) + exact(a) / exact(c),
    "garden": lambda l, w, g: exact(l * w * g) / 1000,
    "half_life": lambda a, h, t: a * math.exp(-math.log(2) * t / h),
    "concentration": lambda c, t, v: Fraction(v * t, c),
    "molarity": lambda m, w, v: exact(m) / exact(w) / v * 1000,
    "ohm": lambda v, r: [exact(v) / r, exact(v) / r * exact(v)],
    "free_fall": lambda h: (2 * h / 9.81) ** 0.5,
    "battery": lambda v, c, n: exact(v) * c * n / 1000,
    "heart_rate": lambda a, r, p: round(r + (220 - a - r) * p / 100),
}

STATISTICS: dict[str, Callable[..., Expected]] = {
    "average": mean,
    "mean_decimals": mean,
    "median": middle,
    "median_abroad": middle,
    "median_spread": lambda numbers: [middle(numbers), spread(numbers, 1)],
    "stdev": lambda numbers: spread(numbers, 1),
    "pstdev": lambda numbers: spread(numbers, 0),
    "variance": lambda numbers: spread(numbers, 0) ** 2,
    "mode": lambda numbers: max(numbers, key=lambda x: (numbers.count(x), -numbers.index(x))),
    "value_range": lambda numbers: sorted(numbers)[-1] - sorted(numbers)[0],
    "maximum": lambda numbers: sorted(numbers)[-1],
    "minimum": lambda numbers: sorted(numbers)[0],
    "largest": lambda numbers: [sorted(numbers)[-1], sorted(numbers)[0], sorted(numbers)[-1] - sorted(numbers)[0]],
    "total": lambda numbers: sum(map(exact, numbers)),
    "sum_up": lambda numbers: sum(map(exact, numbers)),
    "decoy_sum": lambda numbers: sum(map(exact, numbers)),
    "total_int": lambda numbers: sum(map(exact, numbers)),
    "product_of": lambda numbers: math.prod(map(exact, numbers)),
    "sort_descending": lambda numbers: printed_list(reversed(sorted(numbers))),
    "sort_numbers": lambda numbers: printed_list(_inserted(numbers)),
    "differences": lambda numbers: printed_list(numbers[i + 1] - numbers[i] for i in range(len(numbers) - 1)),
    "cumulative": lambda numbers: printed_list(sum(numbers[: i + 1]) for i in range(len(numbers))),
    "quartiles": quartiles,
    "count_above": lambda numbers, k: len([x for x in numbers if x > k]),
    "values_above": lambda numbers, k: printed_list(filter(lambda x: x > k, numbers)),
    "top_values": lambda numbers, n: printed_list(_inserted(numbers)[::-1][:n]),
    "moving_average": lambda numbers, n: [
        round(float(mean(numbers[i : i + n])), 2) for i in range(len(numbers) + 1 - n)
    ],
    "even_values": lambda numbers: printed_list(x for x in numbers if not x & 1),
    "weighted_average": lambda a, p, b, q: (exact(a) * p + exact(b) * q) / (p + q),
    "weighted": lambda a, b, p: exact(a) * exact(p) + exact(b) * (1 - exact(p)),
    "correlation_of": lambda a, b: _covariance(a, b) / math.sqrt(_covariance(a, a) * _covariance(b, b)),
    "correlation": lambda a, b: _line(a, b),
    "takings": lambda numbers: [mean(numbers), 100 * exact(sorted(numbers)[-1]) / sum(numbers)],
    "outlier": lambda numbers: printed_list(x for x in numbers if abs(x - mean(numbers)) > 1.5 * spread(numbers, 1)),
    "our_growth": lambda numbers: [round(float(change(a, b)), 1) for a, b in zip(numbers, numbers[1:], strict=False)],
    "class_average": lambda numbers: [mean(numbers), middle(numbers), len([x for x in numbers if x >= 50])],
    "zscore": lambda x, m, s: Fraction(x - m, s),
    "sample_size": lambda e: math.ceil((1.96 * 0.5 / e) ** 2),
    "histogram_text": lambda numbers: "\n".join(f"{n} {'#' * n}" for n in numbers),
}


def _inserted(values: list) -> list:
    ordered: list = []
    for value in values:
        ordered.insert(sum(other < value for other in ordered), value)
    return ordered


def _covariance(a: list, b: list) -> Fraction:
    return sum(exact(x) * exact(y) for x, y in zip(a, b, strict=True)) / len(a) - mean(a) * mean(b)


def _line(a: list, b: list) -> list[Fraction]:
    slope = _covariance(a, b) / _covariance(a, a)
    return [slope, mean(b) - slope * mean(a)]


NUMBERS: dict[str, Callable[..., Expected]] = {
    **{name: lambda a, b, **_: sum(a for _ in range(b)) for name in ("product", "decoy_product", "document_count")},
    **{name: lambda a, b: Fraction(a, b) for name in ("quotient", "quotient_abroad")},
    **{name: lambda a, b: math.prod([a] * b) for name in ("power", "power_abroad", "decoy_power")},
    "modulo": lambda a, b: a - a // b * b,
    "sum_difference": lambda a, b, c: exact(a) + exact(b) - exact(c),
    "difference": lambda a, b: exact(a) - exact(b),
    "sum_two": lambda a, b: exact(a) + exact(b),
    "expression": lambda a, b, c, d: exact(a * c + b * c) - Fraction(a, d),
    "quick_math": lambda a, b, c: Fraction(a * c, b),
    "small_sum": lambda a, b: [b + a, b * a],
    "square_root": lambda a: math.exp(math.log(a) / 2),
    "cube_root": lambda a: math.exp(math.log(a) / 3),
    "factorial": lambda a: math.prod(range(1, a + 1)),
    "arrangements": lambda n: math.prod(range(1, n + 1)),
    "decoy_factorial": lambda a, m: _product_modulo(range(1, a + 1), m),
    "gcd": lambda a, b: max(d for d in range(1, min(a, b) + 1) if a % d == b % d == 0),
    "gcd_abroad": lambda a, b: max(d for d in range(1, min(a, b) + 1) if a % d == b % d == 0),
    "lcm": lambda a, b: next(n for n in range(a, a * b + 1, a) if n % b == 0),
    "is_prime": lambda a: str(is_prime(a)),
    "prime_list": lambda a: printed_list(primes(a)),
    "primes_abroad": lambda a: printed_list(primes(a)),
    "prime_count": lambda a: len(primes(a)),
    "nth_prime": lambda k: primes(4000)[k - 1],
    "prime_factors": lambda a: printed_list(factors(a)),
    "prime_factors_abroad": lambda a: printed_list(factors(a)),
    "divisors": lambda a: printed_list(
        sorted({d for n in range(1, math.isqrt(a) + 1) if a % n == 0 for d in (n, a // n)})
    ),
    "divisible": lambda a, b, c: printed_list(range(math.lcm(b, c), a + 1, math.lcm(b, c))),
    "claim_check": lambda n, d: len(range(d, n + 1, d)),
    "fibonacci": lambda a: printed_list(fibonacci(n) for n in range(a)),
    "nth_fibonacci": fibonacci,
    "range_sum": lambda a: a * (a + 1) // 2,
    "even_sum": lambda a: a // 2 * (a // 2 + 1),
    "squares_sum": lambda a: a * (a + 1) * (2 * a + 1) // 6,
    "geometric_sum": lambda a, q, n: a * (q**n - 1) // (q - 1),
    "is_perfect": lambda a: str(a in (6, 28, 496, 8128)),
    "digit_sum": lambda n: _digit_sum(n),
    "digit_count": lambda n, d: len(str(n).split(str(d))) - 1,
    **{name: lambda n: f"{n:b}" for name in ("binary", "binary_abroad")},
    "number_base": lambda a: f"{a:b}",
    "to_hex": lambda a: f"{a:x}",
    "from_binary": lambda b: sum(2**i for i, digit in enumerate(reversed(str(b))) if digit == "1"),
    "from_hex": lambda b: sum(16**i * "0123456789abcdef".index(digit) for i, digit in enumerate(reversed(str(b)))),
    "hex_bits": lambda a, b: [a + b, (a | b) - (a & b)],
    "mod_power": lambda a, b, m: _product_modulo([a] * b, m),
    "fraction_of": lambda n, d, a: Fraction(n, d) * a,
    "fraction_sum": lambda a, b, c, d: str(Fraction(a * d + c * b, b * d)),
    "linear_equation": lambda a, b, c: Fraction(c - b, a),
    "linear_system": lambda a, b: [b - Fraction(b, a + 1), Fraction(b, a + 1)],
    "quadratic": lambda a, b, c: _roots(a, b, c),
    "log_trig": lambda a: math.log2(a) / math.log2(math.e),
    "log10": lambda a: math.log2(a) / math.log2(10),
    "sine": lambda a: math.cos(math.radians(a - 90)),
    "matrix": lambda a, b, c, d: exact(a) * d - exact(b) * c,
    "complex_product": lambda a, b: str(complex(2 * a + b, 2 * b - a)),
    "derivative_numeric": lambda a, x: _derivative(a, x),
    "integral": lambda a, b: Fraction(b**3 - a**3, 3),
    "roman": lambda a: _roman(a),
    **{name: choose for name in ("combinations", "combinations_abroad", "decoy_lottery")},
    "permutations_of": lambda n, k: math.prod(range(n - k + 1, n + 1)),
    "handshakes": lambda n: sum(range(n)),
    "letter_arrangements": by_letters,
    "code_count": lambda a, n: math.prod([a] * n),
    "binomial": lambda n, k, p: choose(n, k) * Fraction(p, 100) ** k * (1 - Fraction(p, 100)) ** (n - k),
    "probability": lambda n, k: 1 - Fraction(sum(choose(n, i) for i in range(k)), 2**n),
    "at_least_one_six": lambda n: 1 - Fraction(5, 6) ** n,
    "lottery_odds": lambda n, k: Fraction(1, choose(n, k)),
    "birthday_paradox": shared_birthday,
    "loop_script": lambda a: "\n".join(f"{i} {i**2}" for i in range(1, a + 1)),
    "times_table": lambda a: "\n".join(f"{i} * {a} = {sum([a] * i)}" for i in range(1, 11)),
    "plot_values": lambda a, b: "\n".join(f"{x} {a * x * x + b}" for x in range(-5, 6)),
    "plot_function": lambda a, b: "\n".join(f"{x} {x * x * x - a * x + b}" for x in range(-10, 11, 2)),
    "table_print": lambda a, b: "\n".join(f"{i} {a * i} {i * i}" for i in range(1, b + 1)),
    "collatz": lambda n: _collatz(n),
    "fizz": lambda n: "\n".join(_fizz(i) for i in range(1, n + 1)),
    "write_and_run": lambda n: printed_list(i for i in range(1, n + 1) if i < 10 or i % 11 == 0),
    "loan_end": lambda a, r, m: _until_paid(a, r, m),
}


def _product_modulo(numbers: object, modulus: int) -> int:
    value = 1
    for number in numbers:
        value = value * number % modulus
    return value


def _digit_sum(number: int) -> int:
    return 0 if number == 0 else number % 10 + _digit_sum(number // 10)


def _roots(a: int, b: int, c: int) -> list[float]:
    centre, reach = -b / (2 * a), abs(complex(b * b - 4 * a * c) ** 0.5) / (2 * a)
    return [centre + reach, centre - reach]


def _derivative(n: int, x: int) -> Fraction:
    step = Fraction(1, 10**12)
    return round(((x + step) ** n - (x - step) ** n) / (2 * step))


def _collatz(n: int) -> int:
    return 0 if n == 1 else 1 + _collatz(3 * n + 1 if n & 1 else n >> 1)


def _fizz(i: int) -> str:
    return {0: "FizzBuzz", 3: "Fizz", 5: "Buzz", 6: "Fizz", 9: "Fizz", 10: "Buzz", 12: "Fizz"}.get(i % 15, str(i))


def _until_paid(amount: int, rate: object, payment: int) -> list[int]:
    """Return years and months, by the formula of an annuity."""
    monthly = float(exact(rate)) / 1200
    if amount * monthly >= payment:
        return [100, 0]
    months = math.ceil(-math.log(1 - amount * monthly / payment) / math.log(1 + monthly) - 1e-9)
    return list(divmod(months, 12))


TEXTS: dict[str, Callable[..., Expected]] = {
    **{
        name: lambda t: len(list(filter(None, t.split(" "))))
        for name in ("text_words", "word_count", "count_words_abroad")
    },
    "decoy_count": lambda t: t.count(" ") + 1,
    "text_characters": lambda t: sum(1 for _ in t),
    "letter_in_text": lambda t, l: sum(letter in (l, l.upper()) for letter in t),
    "letter_in_word": lambda w, l: sum(letter in (l, l.upper()) for letter in w),
    "count_letter": lambda w, l: sum(letter in (l, l.upper()) for letter in w),
    **{name: lambda t: sorted(t.split(" "), key=lambda w: -len(w))[0] for name in ("longest_word_of", "longest_word")},
    "most_common_word": lambda words: sorted(words, key=lambda w: (-words.count(w), words.index(w)))[0],
    "word_occurrences": lambda t, w: sum(word.strip(",") == w for word in t.split()),
    "reverse_words": lambda t: " ".join(t.split()[::-1]),
    **{name: lambda t: "".join(reversed(t)) for name in ("reverse_text", "reverse", "decoy_reverse")},
    **{name: lambda w: "".join(reversed(w)) for name in ("reverse_word", "reverse_any")},
    "to_upper": lambda t: "".join(letter.upper() for letter in t),
    "to_title": lambda t: t.title(),
    "upper": lambda t: f"{t.upper()}\n{t.title()}",
    "title_case": lambda t, f: getattr(t, str(f))(),
    "dedupe_list": lambda words: printed_list(_once(words)),
    "dedupe_numbers": lambda numbers: printed_list(_once(numbers)),
    "count_unique": lambda numbers: len(_once(numbers)),
    **{
        name: lambda words: printed_list(sorted(sorted(words), key=lambda word: word.lower()))
        for name in ("sort_food", "sort_words", "sort_things", "sort_abroad", "sort_things_abroad", "decoy_sort")
    },
    "count_items": lambda words: sum(1 for _ in words),
    "join_semicolon": lambda words: str(words)[2:-2].replace("', '", ";"),
    "quote_items": lambda words: "\n".join(words),
    "word_lengths": lambda words: printed_list(sum(1 for _ in word) for word in words),
    "longest_of": lambda words: sorted(words, key=lambda word: -len(word))[0],
    "sort_length": lambda words: printed_list(sorted(words, key=lambda word: sum(1 for _ in word))),
    "replace_word": lambda t, a, b: f" {t} ".replace(" ", "  ").replace(f" {a} ", f" {b} ").replace("  ", " ").strip(),
    "remove_spaces": lambda t: "".join(t.split(" ")),
    "squeeze_spaces": lambda t: " ".join(filter(None, t.split(" "))),
    "slug": lambda t: "-".join("".join(c if c in f"{_LETTERS}0123456789" else " " for c in t.lower()).split()),
    "strip_punctuation": lambda t: "".join(c for c in t if c not in ",.;:!?"),
    "extract_emails": lambda t: printed_list(word.strip(",") for word in t.split() if "@" in word),
    "sum_in_text": lambda a, b, c, **_: sum((a, b, c)),
    "sort_by_number": lambda words: printed_list(sorted(words, key=lambda word: int(word[5:]))),
    "every_other": lambda words: printed_list(word for at, word in enumerate(words) if at % 2 == 0),
    "starts_with": lambda words, l: printed_list(word for word in words if word[0] == l),
    "is_anagram": lambda p: str(Counter(p[0]) == Counter(p[1])),
    "vowel_count": lambda t: sum(map(t.lower().count, "aeiou")),
    "char_count": lambda w: sum(map(w.lower().count, "aeiou")),
    **{name: lambda w: sum(1 for _ in w) for name in ("letters_of", "letters_in", "short_word")},
    "palindrome": lambda t: str(_letters(t) == "".join(reversed(_letters(t)))),
    "unique": lambda words: printed_list(sorted(_once([word.lower() for word in words]))),
    "frequency": lambda words: (
        lambda printed: dict(ast.literal_eval(printed)) == dict(Counter(" ".join(words).split()))
    ),
    "decoy_letters": lambda w: lambda printed: eval(printed, {"Counter": dict}) == {c: w.count(c) for c in w},
    "case": lambda t: "".join(f"_{c}".lower() if c in _LETTERS.upper() else c for c in t),
    "camel": lambda t: t[0] + t.title().replace("_", "")[1:],
    "acronym": lambda t: "".join(word.upper()[:1] for word in t.split(" ")),
    "replace": lambda t: "-".join(t.split("/")),
    "hash": lambda t, a: getattr(hashlib, a.replace("-", ""))(t.encode()).hexdigest(),
    "checksum": lambda t, a: getattr(hashlib, a)(t.encode()).hexdigest(),
    "base64": lambda t: lambda printed: base64.b64decode(printed).decode() == t,
    "url_encode": lambda t: lambda printed: unquote(printed) == t and " " not in printed,
    "json_keys": lambda t: lambda printed: json.loads(printed) == json.loads(t) and "\n  " in printed,
    "csv_to_json": lambda t: (
        lambda printed: [list(row.values()) for row in json.loads(printed)] == cells(t.replace(";", "\n"))
    ),
    "csv_median": lambda t: _median_sum_top(t),
    "extract_numbers": lambda t: printed_list(map(int, "".join(c if c.isdigit() else " " for c in t).split())),
    "anagrams": lambda t: lambda printed: len(ast.literal_eval(printed)) == by_letters(t),
    "caesar": lambda t, n: t.translate(str.maketrans(_LETTERS, _LETTERS[n % 26 :] + _LETTERS[: n % 26])),
    "common": lambda a, b: f"{sorted({x for x in a if x in b})} {sorted({x for x in a + b if (x in a) != (x in b)})}",
    "compare_lists": lambda words, w: (
        f"{[x for x in words if x in w]} {[x for x in words if x not in w]} {[x for x in w if x not in words]}"
    ),
    "nth_words": lambda t, k: " ".join(word for at, word in enumerate(t.split(), 1) if at % k == 0),
    "number_list": lambda words: "\n".join(f"{at + 1} {word}" for at, word in enumerate(words)),
    "guest_list": lambda words: "\n".join(f"{at + 1} {word}" for at, word in enumerate(_inserted(words))),
    "pairs": lambda words: printed_list((a, b) for a, b in product(words, words) if words.index(a) < words.index(b)),
    "strip_vowels": lambda t: t.translate(str.maketrans("", "", "aeiouAEIOU")),
    "initials_sort": lambda words: printed_list(f"{w.split(', ')[1]} {w.split(', ')[0]}" for w in words),
    "dedupe_mails": lambda words: printed_list(
        w for i, w in enumerate(words) if w.lower() not in map(str.lower, words[:i])
    ),
}


def _once(values: list) -> list:
    return [value for at, value in enumerate(values) if value not in values[:at]]


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text.lower()))


def _median_sum_top(table: str) -> Callable[[str], bool]:
    rows = [(name, exact(value)) for name, value in (pair.split(",") for pair in table.split())]
    values = [value for _, value in rows]
    wanted = [float(middle(values)), float(sum(values))]

    def is_right(printed: str) -> bool:
        *numbers, name = printed.split()
        return list(map(float, numbers)) == wanted and name == max(rows, key=lambda row: row[1])[0]

    return is_right


TABLES: dict[str, Callable[..., Expected]] = {
    "table_sum_amount": lambda table: sum(exact(row[1]) for row in cells(table)),
    "table_sum_semicolon": lambda table: sum(exact(row[1]) for row in cells(table, ";")),
    "table_average": lambda table: mean([row[1] for row in cells(table)]),
    "table_top": lambda table: sorted(cells(table), key=lambda row: -exact(row[1]))[0][0],
    "table_lowest": lambda table: sorted(cells(table), key=lambda row: exact(row[1]))[0][0],
    "table_count_above": lambda table, k: len([row for row in cells(table) if exact(row[1]) > k]),
    "table_filter": lambda table, k: printed_list(name for name, points in cells(table) if exact(points) > k),
    "table_sort": lambda table: "\n".join(
        f"{name} {old}" for name, old in sorted(cells(table), key=lambda row: int(row[1]))
    ),
    "table_revenue": lambda table: sum(exact(count) * exact(price) for _, count, price in cells(table)),
    "table_group": lambda table: _grouped(table, ",", lambda rows: float(sum(exact(row[1]) for row in rows))),
    "table_group_count": lambda table: _grouped(table, ";", len),
    "table_rows": lambda table: table.count("\n"),
    "table_max": lambda table: sorted(int(row[1]) for row in cells(table))[-1],
    "table_median": lambda table: middle([row[1] for row in cells(table)]),
    "table_column": lambda table: printed_list(name for name, _ in cells(table)),
    "lines_sum": lambda table: sum(exact(line[line.rindex(" ") + 1 :]) for line in table.split("\n")),
    "lines_sort": lambda table: "\n".join(_inserted(table.split("\n"))),
    "lines_count": lambda table: table.count("\n") + 1,
    "log_errors": lambda table: table.count(" ERROR "),
}


def _grouped(table: str, mark: str, combine: Callable[[list], object]) -> str:
    rows = cells(table, mark)
    return str({key: combine([row for row in rows if row[0] == key]) for key in dict.fromkeys(row[0] for row in rows)})


SIMULATIONS: dict[str, Callable[..., Expected]] = {
    "dice": lambda n, s: near(two_dice(s), n),
    "dice_sum_share": lambda n, s: near(two_dice(s), n),
    **{name: lambda n: about(n / 2, 5 * math.sqrt(n) / 2) for name in ("coin", "coin_heads")},
    "dice_mean": lambda n: about(3.5, 5 * 1.71 / math.sqrt(n)),
    "monty_hall": lambda n: near(2 / 3, n),
    "random_walk": lambda n: lambda printed: abs(int(printed)) <= 5 * math.sqrt(n) and (int(printed) - n) % 2 == 0,
    "birthday": lambda n: near(shared_birthday(n), 20_000),
    "two_same_birthday": lambda n, r: near(shared_birthday(n), r),
    "six_wait": lambda n: about(6, 5 * 5.48 / math.sqrt(n)),
    "pi": lambda n: about(math.pi, 5 * 1.65 / math.sqrt(n)),
    "coin_streak": lambda n: about(math.log2(n), 9),
    **{name: lambda words: lambda printed: printed in words for name in ("pick_one", "pick_any")},
    **{
        name: lambda n: lambda printed: len(d := ast.literal_eval(printed)) == n and {*d} <= {*range(1, 7)}
        for name in ("roll_dice", "dice_abroad")
    },
    "shuffle_list": lambda words: sample(words, len(words)),
    **{name: lambda words, n: sample(words, n) for name in ("winners", "raffle")},
    "shuffle": lambda words, n: parted(words, n),
    "teams": lambda words: parted(words, 2),
    "secret_santa": lambda words: lambda printed: _is_ring(printed, words),
    "lottery": lambda n, k: sample(list(range(1, n + 1)), k),
    "random_number": lambda a, b: lambda printed: a <= int(printed) <= b,
    **{name: lambda n: lambda printed: len(printed) == n and printed.isalnum() for name in ("password", "pin")},
    "time_it": lambda n: lambda printed: 0 < float(printed) < 60,
}


def _is_ring(printed: str, names: list) -> bool:
    pairs = [line.split(" -> ") for line in printed.splitlines()]
    return sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) == sorted(names) and all(a != b for a, b in pairs)


EXPECTED = {**MONEY, **DATES, **UNITS, **STATISTICS, **NUMBERS, **TEXTS, **TABLES, **SIMULATIONS}
AS_IN_THE_QUERY = {"run_snippet", "eval_expression", "try_functions", "regex"}  # the query has the program itself
