"""Check digits of cards, accounts and national numbers, which tell a number of a person from any other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# Length of an IBAN by country: the registry of ISO 13616, release 99.
IBAN_LENGTHS: Mapping[str, int] = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def passes_luhn(text: str) -> bool:
    """Return whether the check digit of a payment card is right, ISO/IEC 7812-1 annex B."""
    digits = [int(character) for character in text if character.isdigit()]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and _luhn_sum(digits) % 10 == 0


def _luhn_sum(digits: list[int]) -> int:
    return sum(digit if place % 2 == 0 else sum(divmod(digit * 2, 10)) for place, digit in enumerate(reversed(digits)))


def passes_iban(text: str) -> bool:
    """Return whether the check digits of an IBAN are right, ISO 13616: mod 97 of the rearranged number is 1."""
    compact = re.sub(r"[\s-]", "", text).upper()
    if not 15 <= len(compact) <= 34 or not compact.isascii() or not compact.isalnum():
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def _is_dni(text: str) -> bool:  # Spain
    number = int(text[1:8], 10) + 10_000_000 * "XYZ".index(text[0]) if text[0] in "XYZ" else int(text[:8])
    return text[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]


def _is_day(year_month_day: str) -> bool:
    """Return whether YYMMDD can be a day; months from 21 on are those of another century, as in Poland."""
    month, day = int(year_month_day[2:4]) % 20, int(year_month_day[4:6])
    return 1 <= month <= 12 and 1 <= day <= 31


def _is_pesel(text: str) -> bool:  # Poland
    return _is_day(text) and -_weighted(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10 == int(text[10])


def _is_cpf(text: str) -> bool:  # Brazil
    first = _weighted(text, tuple(range(10, 1, -1))) * 10 % 11 % 10
    second = _weighted(text, tuple(range(11, 1, -1))) * 10 % 11 % 10
    return len(set(text)) > 1 and text[9:] == f"{first}{second}"


def _is_nir(text: str) -> bool:  # France
    return 97 - int(text[:13]) % 97 == int(text[13:])


def _is_chinese_id(text: str) -> bool:
    year_month_day = text[6:14]
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    is_born = year_month_day[:2] in ("19", "20") and _is_day(year_month_day[2:])
    return is_born and text[17].upper() == "10X98765432"[_weighted(text[:17], weights) % 11]


def _is_swedish_id(text: str) -> bool:
    return _is_day(text[-10:]) and _luhn_sum([int(digit) for digit in text[-10:]]) % 10 == 0


def _is_finnish_id(text: str) -> bool:
    number, check = text[:6] + text[-4:-1], text[-1]
    is_right = check == "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number) % 31]
    return is_right and _is_day(text[4:6] + text[2:4] + text[:2])


def _is_korean_id(text: str) -> bool:
    return _is_day(text)


def _is_south_african_id(text: str) -> bool:
    return _is_day(text) and _luhn_sum([int(digit) for digit in text]) % 10 == 0


def _is_singaporean_id(text: str) -> bool:
    total = _weighted(text[1:8], (2, 7, 6, 5, 4, 3, 2)) + (4 if text[0] in "TG" else 0)
    return text[-1] == ("JZIHGFEDCBA" if text[0] in "ST" else "XWUTRQPNMLK")[total % 11]


def _is_aadhaar(text: str) -> bool:  # India, Verhoeff's scheme in the dihedral group D5
    check = 0
    for place, character in enumerate(reversed(text)):
        digit = int(character)
        for _ in range(place % 8):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        check = _in_d5(check, digit)
    return text[0] not in "01" and check == 0


def _in_d5(first: int, second: int) -> int:
    if first < 5:
        return (first + second) % 5 if second < 5 else (first + second - 5) % 5 + 5
    return (first - 5 - second) % 5 + 5 if second < 5 else (first - second) % 5


def _is_ahv(text: str) -> bool:  # Switzerland, EAN-13
    return (10 - _weighted(text, (1, 3) * 6) % 10) % 10 == int(text[12])


def _always(_: str) -> bool:
    return True


# Forms that need no name beside them: pattern, and the check of the number without separators.
NATIONAL_IDS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = tuple(
    (re.compile(rf"(?<![\w.-])(?:{pattern})(?![\w-])"), check)
    for pattern, check in (
        (r"[XYZ]-?\d{7}-?[A-Z]|\d{8}-?[A-Z]", _is_dni),
        (r"\d{2}[0-3]\d[0-3]\d{6}", _is_pesel),
        (r"\d{3}\.\d{3}\.\d{3}-\d{2}", _is_cpf),
        (r"[12] ?\d\d ?[01]\d ?\d[0-9AB] ?\d{3} ?\d{3} ?\d{2}", _is_nir),
        (r"\d{17}[\dXx]", _is_chinese_id),
        (r"(?:19|20)?\d{6}[-+]\d{4}", _is_swedish_id),
        (r"\d{6}[-+A]\d{3}[0-9A-Y]", _is_finnish_id),
        (r"\d{6}-[1-8]\d{6}", _is_korean_id),
        (r"\d{13}", _is_south_african_id),
        (r"[STFG]\d{7}[A-Z]", _is_singaporean_id),
        (r"[2-9]\d{3} \d{4} \d{4}", _is_aadhaar),
        (r"756\.\d{4}\.\d{4}\.\d{2}", _is_ahv),
        (r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", _always),  # Italy
        (r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]", _always),  # United Kingdom
        (r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d", _always),  # Mexico
        (r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", _always),  # Belgium
        (r"[A-Z]{3}[PCHFATBLJG][A-Z]\d{4}[A-Z]", _always),  # India, PAN
        (r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", _always),  # Chile
    )
)
