"""Phone numbers: by their form where it is plain, else by the numbering plans of the package phonenumbers.

Of phonenumbers the plans are used and not its matcher, which takes a millisecond a number and no linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache

from tool_aware.dataset.redaction_rules import Found, Rule

_CANDIDATE = re.compile(
    r"(?<![A-Za-z0-9_.,@#/\\=&%$*^<:+-])(?:[:=](?=\+))?(?:\+|\(\+?)?\d(?:[ \u00a0./()-]{0,3}\d){6,17}(?![A-Za-z0-9_%])(?!\.\d)"
)
_ASSIGNED_NUMBER = re.compile(r"(?<=[=:#/])\+?\d(?:[ .()-]{0,2}\d){6,14}(?![A-Za-z0-9_%])(?!\.\d)")
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d[-/. ](?:0?[1-9]|1[0-2])[-/. ](?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])[-/.](?:0?[1-9]|[12]\d|3[01])[-/.](?:19|20)?\d\d)(?!\d)"
)
_SAYS_PHONE = re.compile(
    r"(?:phone|call|ring|dial|tel\b|tél|tele|mobil(?!e site)|móvil|cell|celular|handy|fax|whats\W?app|signal|sms|text|reach|num[ée]ro(?!s)|"
    r"n[uú]mero(?!s)|numer(?!i)|rufnummer|nummer(?!n)|ruf|anruf|contact|portable|gsm|ll[aá]m|appel|chiam|lig[au]|bel me|bel mij|zadzwo|"
    r"звон|телефон|номер|手机|手機|电话|電話|携帯|전화|번호|(?:my|mein|mon|mi|il mio|meu) (?:\w+ )?(?:number|no|nr)|number is)"
)
_CALLS = re.compile(r"(?:phone|call|tel\b|tel\.|mobil|handy|ring|dial|reach|fax|whats\W?app)\w*")
_SAYS_ID = re.compile(
    r"(?<![a-z])(?:order|invoice|ticket|case|ref(?:erence)?|isbn|issn|ean|gtin|upc|asin|sku|part|serial|version|build|port|pid|"
    r"line|row|page|rfc|item|article|po|id|customer|account|tracking|shipment|parcel|bestell\w*|rechnung\w*|commande|"
    r"facture|pedido|factura|ordine|kunden\w*|aktenzeichen|zip|plz|ssn|sin|bsn|tax|population|seed|epoch|timestamp|"
    r"commit|size|bytes|hash|lot|batch|model|cve|doi|arxiv)[\s_.-]{0,3}(?:no|nr|number|nummer|num|id|code|#)?[\s:#_=.-]{0,4}$"
)
_DIGIT, _GROUP = re.compile(r"\d"), re.compile(r"\d+")
_MOST_GROUPS = 7  # of a number as it is written, +33 6 12 34 56 78
_SAID_BEFORE, _SAID_BEHIND = 48, 24  # characters around a number in which a word says what it is
# Where people are asked for without any separator: regions in the order of how many are on the Internet.
_REGIONS = ("US", "GB", "DE", "FR", "IN", "CN", "BR", "JP", "ES", "IT", "NL", "PL", "MX", "AU", "CH", "AT", "BE", "SE",
            "PT", "TR", "KR", "RU", "ID", "ZA", "AR", "DK", "NO", "FI", "CZ", "IE")  # fmt: skip
_SHAPES = (  # of numbers that are written with separators, whoever has them
    re.compile(r"\(?0\d{1,5}\)?[ ./-]{1,3}\d{2,5}(?:[ ./-]?\d{2,5}){0,3}"),
    re.compile(r"(?:1[ .-])?\(?[2-9]\d{2}\)?[ .-]{1,2}\d{3}[ .-]\d{4}"),
    re.compile(r"\(\d{2}\) ?9?\d{4}-\d{4}|1[3-9]\d[ -]\d{4}[ -]\d{4}|0\d{1,3}-\d{3,4}-\d{4}"),
)


@cache
def _plan(region: str) -> tuple[str, str, re.Pattern[str], frozenset[int]] | None:
    """Return a region's country code, trunk prefix, pattern of national numbers, and their possible lengths."""
    from phonenumbers import PhoneMetadata

    metadata = PhoneMetadata.metadata_for_region(region, None)
    if metadata is None or metadata.general_desc is None:
        return None
    general = metadata.general_desc
    pattern = re.compile(general.national_number_pattern or r"(?!)")
    return str(metadata.country_code), metadata.national_prefix or "", pattern, frozenset(general.possible_length)


@cache
def _regions_of(code: str) -> tuple[str, ...]:
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

    return tuple(COUNTRY_CODE_TO_REGION_CODE.get(int(code), ()))


def _is_international(digits: str) -> bool:
    """Return whether digits behind a + are a country code and as many digits as that country's numbers have."""
    for length in (1, 2, 3):
        for region in _regions_of(digits[:length])[:1]:
            plan = _plan(region)
            if plan is None:  # a code of no country, such as +800
                return len(digits) >= 8
            rest = digits[length:]
            return len(rest) in plan[3] or (plan[1] != "" and len(rest.removeprefix(plan[1])) in plan[3])
    return False


@lru_cache(maxsize=10_000)
def _is_national(digits: str, *, needs_trunk: bool) -> bool:
    """Return whether digits are a number of some region's plan, with its trunk prefix (0 in most) or without one."""
    for region in _REGIONS:
        plan = _plan(region)
        if plan is None:
            continue
        code, trunk, pattern, _ = plan
        if trunk and digits.startswith(trunk) and pattern.fullmatch(digits, len(trunk)):
            return True
        if not needs_trunk and (pattern.fullmatch(digits) or _has_code(digits, code, pattern)):
            return True
    return False


def _has_code(digits: str, code: str, pattern: re.Pattern[str]) -> bool:
    return len(digits) > 10 and digits.startswith(code) and pattern.fullmatch(digits, len(code)) is not None


def find_phones(text: str) -> Iterator[Found]:
    """Yield phone numbers, without a last group that belongs to what follows, such as an amount or a year."""
    for pattern in (_CANDIDATE, _ASSIGNED_NUMBER):
        for match in pattern.finditer(text):
            start = match.start() + (1 if match[0][0] in ":=" else 0)
            if match[0].startswith("(") and ")" not in match[0]:
                start += 1
            for end in _ends(text, start, match.end()):
                if _is_phone(text, start, end, is_assigned=pattern is _ASSIGNED_NUMBER):
                    yield Found("phone", start, end)
                    break


def _ends(text: str, start: int, end: int) -> list[int]:
    """Return where a number of 7 to 15 digits may end, the farthest place first."""
    ends, digits = [], 0
    for group in list(_GROUP.finditer(text, start, end))[:_MOST_GROUPS]:
        digits += len(group[0])
        if 7 <= digits <= 15:
            ends.append(group.end())
    return ends[::-1]


def _is_phone(text: str, start: int, end: int, *, is_assigned: bool) -> bool:
    number = text[start:end]
    digits = re.sub(r"\D", "", number)
    groups = _GROUP.findall(number)
    if len(set(digits)) < 3 or _is_row_of_numbers(groups) or _DATE.search(number):
        return False
    if number.lstrip("(").startswith("+"):
        return len(digits) >= 8 and _is_international(digits)
    before = text[max(0, start - _SAID_BEFORE) : start].lower()
    if _SAYS_ID.search(before):
        return False
    if digits.startswith("00"):
        return digits[2] != "0" and len(digits) >= 11 and _is_international(digits[2:])
    if _SAYS_PHONE.search(before) or _SAYS_PHONE.search(text[end : end + _SAID_BEHIND].lower()):
        is_called = not is_assigned and len(digits) <= 12 and _CALLS.search(before[-16:])
        return bool(is_called) or _is_national(digits, needs_trunk=False)
    if is_assigned:
        return False
    if len(groups) == 1:
        is_long = digits[0] == "0" and digits[1] != "0" and 10 <= len(digits) <= 11
        return is_long and _is_national(digits, needs_trunk=True)
    return any(shape.fullmatch(number) for shape in _SHAPES) and (len(digits) >= 9 or digits[0] != "0" or "/" in number)


def _is_row_of_numbers(groups: list[str]) -> bool:
    """Return whether groups are numbers of their own: years, powers of two, a row of one-digit numbers."""
    if len(groups) < 2:
        return False
    if all(len(group) == 4 and group[:2] in ("19", "20") for group in groups):
        return True
    values = [int(group) for group in groups]
    return all(value > 0 and value & (value - 1) == 0 for value in values) or sum(len(g) == 1 for g in groups) > 2


def _may_have(text: str, _: str) -> bool:
    return len(_DIGIT.findall(text)) >= 7


RULES = (Rule(_may_have, find_phones),)
