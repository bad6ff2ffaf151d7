"""What programs on units, statistics and numbers have to print; see expected_values.py."""

# ruff: noqa: E741  slots of the content are named so
from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

from tests.unit.dataset.synthesis.other_ways import (
    Expected,
    by_letters,
    change,
    choose,
    exact,
    factors,
    fibonacci,
    inserted,
    is_prime,
    mean,
    middle,
    primes,
    printed_list,
    quartiles,
    roman_for,
    shared_birthday,
    spread,
)


def _covariance(a: list, b: list) -> Fraction:
    return sum(exact(x) * exact(y) for x, y in zip(a, b, strict=True)) / len(a) - mean(a) * mean(b)


def _line(a: list, b: list) -> list[Fraction]:
    slope = _covariance(a, b) / _covariance(a, a)
    return [slope, mean(b) - slope * mean(a)]


def _product_modulo(numbers: object, modulus: int) -> int:
    value = 1
    for number in numbers:
        value = value * number % modulus
    return value


def _digit_sum(number: int) -> int:
    return 0 if number == 0 else number % 10 + _digit_sum(number // 10)


def _most_frequent(values: list) -> object:
    """Return the value that occurs more often than each of the others."""
    (value,) = [one for one in {*values} if all(values.count(one) > values.count(other) for other in {*values} - {one})]
    return value


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


def _between(ordered: list, share: Fraction) -> Fraction:
    place = share * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)


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
    "rectangle": lambda l, w: exact(l) * exact(w),
    "circumference": lambda a: math.tau * a,
    "circle": lambda a: math.tau * a * a / 2,
    "sphere": lambda a: math.pi * (2 * a) ** 3 / 6,
    "volume_tank": lambda d, h: math.pi * d * d / 4 * h / 1000,
    "polygon": lambda n, s: n * s * s / 4 / math.tan(math.radians(180 / n)),
    "distance": lambda a, b, c, d: abs(complex(a, b) - complex(c, d)),
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
    "percentile": lambda numbers: _between(sorted(numbers), Fraction(9, 10)),
    "variance_sample": lambda numbers: spread(numbers, 1) ** 2,
    "rolling_three": lambda numbers: [
        round(float(mean([a, b, c])), 2) for a, b, c in zip(numbers, numbers[1:], numbers[2:], strict=False)
    ],
    "count_below": lambda numbers, k: len([x for x in numbers if x < k]),
    "share_above": lambda numbers, k: Fraction(100 * len([x for x in numbers if x > k]), len(numbers)),
    "mean_without_extremes": lambda numbers: mean(sorted(numbers)[1:-1]),
    "occurrences": lambda numbers, n: len([x for x in numbers if x == n]),
    "average": mean,
    "median": middle,
    "median_spread": lambda numbers: [middle(numbers), spread(numbers, 1)],
    "stdev": lambda numbers: spread(numbers, 1),
    "pstdev": lambda numbers: spread(numbers, 0),
    "variance": lambda numbers: spread(numbers, 0) ** 2,
    "mode": _most_frequent,
    "value_range": lambda numbers: sorted(numbers)[-1] - sorted(numbers)[0],
    "maximum": lambda numbers: sorted(numbers)[-1],
    "minimum": lambda numbers: sorted(numbers)[0],
    "largest": lambda numbers: [sorted(numbers)[-1], sorted(numbers)[0], sorted(numbers)[-1] - sorted(numbers)[0]],
    "total": lambda numbers: sum(map(exact, numbers)),
    "total_int": lambda numbers: sum(map(exact, numbers)),
    "product_of": lambda numbers: math.prod(map(exact, numbers)),
    "sort_descending": lambda numbers: printed_list(sorted(numbers, reverse=True)),
    "sort_numbers": lambda numbers: printed_list(inserted(numbers)),
    "differences": lambda numbers: printed_list(numbers[i + 1] - numbers[i] for i in range(len(numbers) - 1)),
    "cumulative": lambda numbers: printed_list(sum(numbers[: i + 1]) for i in range(len(numbers))),
    "quartiles": quartiles,
    "count_above": lambda numbers, k: len([x for x in numbers if x > k]),
    "values_above": lambda numbers, k: printed_list(filter(lambda x: x > k, numbers)),
    "top_values": lambda numbers, n: printed_list(inserted(numbers)[::-1][:n]),
    "moving_average": lambda numbers, n: [
        round(float(mean(numbers[i : i + n])), 2) for i in range(len(numbers) + 1 - n)
    ],
    "even_values": lambda numbers: printed_list(x for x in numbers if not x & 1),
    "weighted_average": lambda a, p, b, q: (exact(a) * p + exact(b) * q) / (p + q),
    "weighted": lambda a, b, p: exact(a) * exact(p) + exact(b) * (1 - exact(p)),
    "correlation_of": lambda a, b: _covariance(a, b) / math.sqrt(_covariance(a, a) * _covariance(b, b)),
    "correlation": _line,
    "takings": lambda numbers: [mean(numbers), 100 * exact(sorted(numbers)[-1]) / sum(numbers)],
    "outlier": lambda numbers: printed_list(x for x in numbers if abs(x - mean(numbers)) > 1.5 * spread(numbers, 1)),
    "our_growth": lambda numbers: [round(float(change(a, b)), 1) for a, b in pairwise(numbers)],
    "class_average": lambda numbers: [mean(numbers), middle(numbers), len([x for x in numbers if x >= 50])],
    "zscore": lambda x, m, s: Fraction(x - m, s),
    "sample_size": lambda e: math.ceil((1.96 * 0.5 / e) ** 2),
    "histogram_text": lambda numbers: "\n".join(f"{n} {'#' * n}" for n in numbers),
}


NUMBERS: dict[str, Callable[..., Expected]] = {
    "bmi_again": lambda w, h: exact(w) / exact(h) / exact(h),
    "seating": lambda n, k: math.prod(range(n - k + 1, n + 1)),
    "division": lambda a, b: exact(a) / b,
    "remainder": lambda a, b: a - a // b * b,
    "lcm_three": lambda a, b, c: next(n for n in range(a, a * b * c + 1, a) if n % b == n % c == 0),
    "base_convert": lambda a, b: lambda printed: int(printed, b) == a,
    "product": lambda a, b, **_: sum(a for _ in range(b)),
    "power": lambda a, b: math.prod([a] * b),
    "sum_difference": lambda a, b, c: exact(a) + exact(b) - exact(c),
    "difference": lambda a, b: exact(a) - exact(b),
    "sum_two": lambda a, b: exact(a) + exact(b),
    "expression": lambda a, b, c, d: exact(a * c + b * c) - Fraction(a, d),
    "quick_math": lambda a, b, c: Fraction(a * c, b),
    "small_sum": lambda a, b: [b + a, b * a],
    "square_root": lambda a: math.exp(math.log(a) / 2),
    "cube_root": lambda a: math.exp(math.log(a) / 3),
    "factorial": lambda a: math.prod(range(1, a + 1)),
    "decoy_factorial": lambda a, m: _product_modulo(range(1, a + 1), m),
    "gcd": lambda a, b: max(d for d in range(1, min(a, b) + 1) if a % d == b % d == 0),
    "lcm": lambda a, b: next(n for n in range(a, a * b + 1, a) if n % b == 0),
    "is_prime": lambda a: str(is_prime(a)),
    "prime_list": lambda a: printed_list(primes(a)),
    "prime_count": lambda a: len(primes(a)),
    "nth_prime": lambda k: primes(4000)[k - 1],
    "prime_factors": lambda a: printed_list(factors(a)),
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
    "digit_sum": _digit_sum,
    "digit_count": lambda n, d: len(str(n).split(str(d))) - 1,
    "binary": lambda n: f"{n:b}",
    "to_hex": lambda a: f"{a:x}",
    "from_binary": lambda b: sum(2**i for i, digit in enumerate(reversed(str(b))) if digit == "1"),
    "from_hex": lambda b: sum(16**i * "0123456789abcdef".index(digit) for i, digit in enumerate(reversed(str(b)))),
    "hex_bits": lambda a, b: [a + b, (a | b) - (a & b)],
    "mod_power": lambda a, b, m: _product_modulo([a] * b, m),
    "fraction_of": lambda n, d, a: Fraction(n, d) * a,
    "fraction_sum": lambda a, b, c, d: str(Fraction(a * d + c * b, b * d)),
    "linear_equation": lambda a, b, c: Fraction(c - b, a),
    "linear_system": lambda a, b: [b - Fraction(b, a + 1), Fraction(b, a + 1)],
    "quadratic": _roots,
    "log_trig": lambda a: math.log2(a) / math.log2(math.e),
    "log10": lambda a: math.log2(a) / math.log2(10),
    "sine": lambda a: math.cos(math.radians(a - 90)),
    "matrix": lambda a, b, c, d: exact(a) * d - exact(b) * c,
    "complex_product": lambda a, b: str(complex(2 * a + b, 2 * b - a)),
    "derivative_numeric": _derivative,
    "integral": lambda a, b: Fraction(b**3 - a**3, 3),
    "roman": roman_for,
    "combinations": choose,
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
    "collatz": _collatz,
    "fizz": lambda n: "\n".join(_fizz(i) for i in range(1, n + 1)),
    "write_and_run": lambda n: printed_list(i for i in range(1, n + 1) if i < 10 or i % 11 == 0),
    "loan_end": _until_paid,
}
