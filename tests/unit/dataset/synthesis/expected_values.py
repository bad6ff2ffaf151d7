"""What the programs of the content have to print, worked out in another way: by fractions, loops, the calendar module.

A function has the slots of its kind of program as arguments, as Python values, and returns a number, numbers in order,
or the printed text. Programs that draw at random return a check of what was printed.
"""

# ruff: noqa: E741  slots of the content are named so
from __future__ import annotations

import calendar
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction

from tests.unit.dataset.synthesis.expected_figures import NUMBERS, STATISTICS, UNITS
from tests.unit.dataset.synthesis.expected_pairs import PAIRS, PERIODS, QUESTIONS
from tests.unit.dataset.synthesis.expected_texts import SIMULATIONS, TABLES, TEXTS
from tests.unit.dataset.synthesis.other_ways import (
    Expected,
    after_working_days,
    age,
    change,
    clock,
    days_from,
    exact,
    grown,
    instalment,
    less,
    more,
    paid_off,
    percent,
    printed_list,
    saved,
    weekdays,
)


def _days_of(year: int, month: int) -> list[date]:
    return [day for day in calendar.Calendar().itermonthdates(year, month) if day.month == month]


def _months_later(start: date, months: int) -> date:
    year, month = start.year, start.month
    for _ in range(months):
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return min(start.replace(day=1, year=year, month=month) + timedelta(days=start.day - 1), _days_of(year, month)[-1])


def _working_days_before(day: date) -> list[date]:
    earlier = (date.fromordinal(day.toordinal() - back) for back in range(1, 400))
    return [one for one in earlier if one.isoweekday() < 6]


def _months_earlier(day: date, count: int) -> date:
    months = day.year * 12 + day.month - 1 - count
    return min(_days_of(months // 12, months % 12 + 1), key=lambda one: abs(one.day - day.day))


def _full_months(start: date, end: date) -> int:
    """Return how often the day of the month comes round until the end."""
    months = [(start.year + (start.month + n - 1) // 12, (start.month + n - 1) % 12 + 1) for n in range(1, 200)]
    return sum((year, month, start.day) <= (end.year, end.month, end.day) for year, month in months)


MONEY: dict[str, Callable[..., Expected]] = {
    "loan_months": paid_off,
    "savings_start": lambda s, a, r, y: saved(a, r, y) + float(grown(s, exact(r) / 12, 12 * y)),
    "total_paid": lambda p, y: sum(exact(p) for _ in range(12 * y)),
    "trip_cost": lambda k, l, p, n: k * exact(l) * exact(p) / 100 / n,
    "salary_month": lambda a: exact(a) / 12,
    "tip_amount": lambda a, t: percent(t, a),
    "monthly_compounding": lambda a, r, y: float(grown(a, exact(r) / 12, 12 * y)),
    "years_to_goal": lambda a, b, r: next(n for n in range(500) if grown(a, r, n) >= b),
    "compound_interest": grown,
    "interest_earned": lambda a, r, y: grown(a, r, y) - exact(a),
    "simple_interest": lambda a, r, y: sum(percent(r, a) for _ in range(y)),
    "inflation_value": lambda a, r, y: exact(a) / grown(1, r, y),
    "population": lambda a, r, y: round(grown(a, r, y)),
    "cagr": lambda a, b, y: 100 * (math.exp(math.log(b / a) / y) - 1),
    "loan": instalment,
    "loan_interest": lambda a, r, y: instalment(a, r, y) * 12 * y - float(exact(a)),
    "savings_plan": saved,
    "depreciation": lambda a, r, y: exact(a) * Fraction(100 - exact(r), 100) ** y,
    "investment_compare": lambda a, r, s, y: [r, grown(a, r, y), s, grown(a, s, y)],
    "doubling": lambda r: math.log(2, 1 + r / 100),
    "vat": more,
    "vat_included": lambda a, t: exact(a) * 100 / (100 + exact(t)),
    "sales_tax": lambda a, t: percent(t, a),
    "discount": less,
    "price_before_discount": lambda a, t: exact(a) * 100 / (100 - exact(t)),
    "discount_percent": lambda a, b: -change(a, b),
    "raise": more,
    "exchange_given": lambda a, x: exact(a) * exact(x),
    "yearly_salary": lambda a, n: sum(exact(a) for _ in range(n)),
    "hourly_from_monthly": lambda a, h: exact(a) * 12 / (52 * exact(h)),
    "subscription": lambda a, n: sum(exact(a) for _ in range(n)),
    "instalments": lambda a, n: exact(a) / n,
    "margin": lambda a, b: 100 - 100 * exact(a) / exact(b),
    "shared_cost": lambda numbers, n: sum(map(exact, numbers)) / n,
    "quantity_price": lambda n, p: sum(exact(p) for _ in range(n)),
    "split_bill": lambda a, t, n: more(a, t) / n,
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
    "percent_change": change,
    "percentage_of": percent,
    "party": lambda n, b, p: [-(-n * exact(b) // 1), -(-n * exact(b) // 1) * exact(p)],
    "fence": lambda a, d, p: [-(-a // exact(d)) + 1, (-(-a // exact(d)) + 1) * exact(p)],
}


DATES: dict[str, Callable[..., Expected]] = {
    "weekday_count": lambda a, b, w: sum(
        date.fromordinal(day).isoweekday() == w + 1 for day in range(a.toordinal(), b.toordinal() + 1)
    ),
    "next_weekday": lambda a, w: str(date.fromordinal(a.toordinal() + ((w - a.weekday() - 1) % 7) + 1)),
    "working_days_before": lambda a, n: str(_working_days_before(a)[n - 1]),
    "months_before": lambda a, n: str(_months_earlier(a, n)),
    "age_days": days_from,
    "months_between": _full_months,
    "last_day": lambda m, y: _days_of(y, m)[-1].strftime("%A"),
    "sum_hours": lambda numbers: clock(sum(numbers)),
    "overnight": lambda a, b, c, d: clock((24 - a) * 60 - b + c * 60 + d),
    "days_between": days_from,
    "weeks_between": lambda a, b: list(divmod(days_from(a, b), 7)),
    "weekday": lambda a: calendar.day_name[calendar.weekday(a.year, a.month, a.day)],
    "date_plus": lambda a, n: str(date.fromordinal(a.toordinal() + n)),
    "date_minus": lambda a, n: str(date.fromordinal(a.toordinal() - n)),
    "date_weeks": lambda a, n: str(date.fromordinal(a.toordinal() + 7 * n)),
    "days_from_today": lambda n: str(date.fromordinal(date.today().toordinal() + n)),
    "business_days": weekdays,
    "add_working_days": lambda a, n: str(after_working_days(a, n)),
    "working_days_from_today": lambda n: str(after_working_days(date.today(), n)),
    "age": lambda a: age(a, date.today()),
    "age_on": age,
    "countdown": lambda a: days_from(date.today(), a),
    "iso_week": lambda a: int(a.strftime("%V")),
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
    "unix_time": lambda n: str(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=n)),
    "clock_plus": lambda h, m, a, b: clock((h * 60 + m + a * 60 + b) % 1440),
    "time_difference": lambda a, b, c, d: clock((c - a) * 60 + d - b),
    "add_times": lambda a, b, c, d: clock((a + c) * 60 + b + d),
    "sum_durations": lambda a, b, c, d, e: clock((a + c) * 60 + b + d + e),
    "minutes": clock,
    "hours_to_minutes": lambda h: exact(h) * 60,
    "seconds_in": lambda w, d: int(timedelta(weeks=w, days=d).total_seconds()),
    "weeks_of_days": lambda n: list(divmod(n, 7)),
    "schedule_slots": lambda n, m, b: clock(n * (m + b) - b),
    "arrival": lambda h, m, k, v: clock((h * 60 + m + round(Fraction(60 * k, v))) % 1440),
    "travel_time": lambda k, v: clock(round(Fraction(60 * k, v))),
    "pace": lambda k, m: list(divmod(round(60 * m / exact(k)), 60)),
}


EXPECTED = {
    **MONEY,
    **DATES,
    **UNITS,
    **STATISTICS,
    **NUMBERS,
    **TEXTS,
    **TABLES,
    **SIMULATIONS,
    **QUESTIONS,
    **PAIRS,
    **PERIODS,
}


AS_IN_THE_QUERY = {"run_snippet", "eval_expression"}  # the query has the program itself
