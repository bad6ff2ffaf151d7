"""Replacement of personal data and secrets by stable placeholders, before anything is written.

The same secret gets the same placeholder within one run (`<EMAIL_1>`), so that a text stays readable. Rules are
ordered from the most specific to the least; counts per rule go into the manifest.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Rule:
    """A kind of secret: its pattern, and a check of what matches.

    `real_part` returns the secret within a match, or None for a look-alike (an order number, a version), which stays.
    Where the pattern has a group `secret`, only that group is checked and replaced.
    """

    name: str
    pattern: re.Pattern[str]
    real_part: Callable[[str], str | None] = lambda text: text


def passes_luhn(text: str) -> bool:
    """Return whether the check digit of a payment card is right, ISO/IEC 7812-1 annex B."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit if place % 2 == 0 else sum(divmod(digit * 2, 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def passes_iban(text: str) -> bool:
    """Return whether the check digits of an IBAN are right, ISO 13616: mod 97 of the rearranged number is 1."""
    compact = re.sub(r"[\s-]", "", text).upper()
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _card(text: str) -> str | None:
    """Return the card number within a run of digits, which a date or a code may follow."""
    starts = [0, *(match.end() for match in re.finditer(r"[ -]", text))]
    for start in starts:
        ends = [match.end() for match in re.finditer(r"\d", text[start:])]
        for digits in _CARD_DIGITS:
            if digits <= len(ends) and passes_luhn(text[start : start + ends[digits - 1]]):
                return text[start : start + ends[digits - 1]]
    return None


def _iban(text: str) -> str | None:
    """Return the IBAN at the start of a match, which may include the words behind it."""
    while not passes_iban(text):
        shorter = re.match(r"(.*)[ -]", text)
        if not shorter:
            return None
        text = shorter[1]
    return text


def _ip(text: str) -> str | None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return None
    return text


_DATE = re.compile(r"(?:0[1-9]|[12]\d|3[01])([./-])(?:0[1-9]|1[0-2])\1(?:19|20)\d\d")  # 04.06.2018


def _phone(text: str) -> str | None:
    if _DATE.fullmatch(text):
        return None
    digits = re.sub(r"\D", "", text)
    return text if 7 <= len(digits) <= 15 and len(set(digits)) > 2 else None


def _random(text: str) -> str | None:
    """Return the text if it mixes letters and digits, as a key does and a word does not."""
    kinds = [any(test(character) for character in text) for test in (str.islower, str.isupper, str.isdigit)]
    return text if sum(kinds) >= 2 and len(set(text)) >= 8 else None


_CARD_DIGITS = (16, 15, 14, 19, 13, 18, 17)  # the most common lengths first

RULES: tuple[Rule, ...] = (
    Rule("private_key", re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)),
    Rule("jwt", re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?")),
    Rule("provider_key", re.compile(
        r"\b(?:(?:AKIA|ASIA|AROA)[A-Z0-9]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}"
        r"|sk-(?:ant-|proj-|svcacct-)?[\w-]{16,}|[sr]k_(?:live|test)_\w{16,}|xox[abeoprs]-[\w-]{10,}|xapp-[\w-]{10,}"
        r"|AIza[\w-]{30,}|ya29\.[\w-]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|npm_[A-Za-z0-9]{20,}|pypi-[\w-]{16,}"
        r"|dop_v1_[a-f0-9]{32,}|shpat_[a-fA-F0-9]{24,}|key-[0-9a-f]{32}|r8_\w{30,}|gsk_\w{20,}"
        r"|AC[0-9a-f]{32}|SK[0-9a-f]{32}|tvly-\w{16,}|wandb_v1_\w{20,})")),
    Rule("bearer_token", re.compile(r"(?i)\b(?:bearer|basic)\s+(?P<secret>[\w.~+/-]{12,}=*)"), _random),
    Rule("url_credentials", re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://(?P<secret>[^\s/:@]*:[^\s/@]+)@")),
    Rule("password", re.compile(
        r"(?i)\b(?:password|passwd|passwort|passphrase|kennwort|mot de passe|contraseña|senha|wachtwoord|hasło|pwd|pin|"
        r"(?:api|access|auth|secret|client)[ _-]?(?:key|token|secret)|secret|token)\b"
        r"(?:\s*(?:is|was|ist|war|est|es|è|:|=|->)+\s*|\s+)[\"'`]?(?P<secret>(?=\S*[\d!@#$%^&*+=?])[^\s\"'`,;<>]{4,})")),
    Rule("email", re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[\w-]+(?:\.[\w-]+)+", re.UNICODE)),
    Rule("iban", re.compile(r"\b[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{1,4}){3,8}\b"), _iban),
    Rule("card", re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,26}(?!\d)"), _card),
    Rule("ip", re.compile(r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"), _ip),
    Rule("ip", re.compile(r"(?<![\w.:])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:)[0-9A-Fa-f:]{3,39}(?:\.\d+){0,3}(?![\w:])"),
         lambda text: _ip(text) if len(text) >= 6 else None),
    Rule("phone", re.compile(r"(?<![\w.])(?:\+|00)[1-9]\d{0,2}(?:[ ./()-]{0,3}\d{1,5}){2,6}(?!\w)"), _phone),
    Rule("phone", re.compile(r"(?<![\w.+-])\(?0\d{1,5}\)?[ ./-]{1,3}\d{2,5}(?:[ ./-]?\d{2,5}){0,3}(?![\w%])"), _phone),
    Rule("phone", re.compile(r"(?<![\w.+-])(?:1[ .-])?\(?[2-9]\d{2}\)?[ .-]{1,2}\d{3}[ .-]\d{4}(?!\w)"), _phone),
    Rule("phone", re.compile(
        r"(?i)\b(?:phone|call|tel|mobile|cell|fax|whatsapp|telefon|handy|number is|reach (?:me|him|her) (?:at|on))"
        r"[.:]?\s+"
        r"(?:me |him |her )?(?:at |on |is )?(?P<secret>\d[\d ./-]{5,17}\d)\b"), _phone),
)  # fmt: skip


class Redactor:
    """Replaces secrets in texts and remembers which placeholder stands for which."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._placeholders: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()

    def redact(self, text: str) -> str:
        """Return `text` with every secret replaced. Redacting twice changes nothing more."""
        if not _MAYBE.search(text):
            return text
        for rule in RULES:
            text = rule.pattern.sub(partial(self._replacement, rule), text)
        return text

    def _replacement(self, rule: Rule, match: re.Match[str]) -> str:
        whole = match[0]
        found = match["secret"] if "secret" in rule.pattern.groupindex else whole
        secret = rule.real_part(found)
        if secret is None or secret.startswith("<"):
            return whole
        self.counts[rule.name] += 1
        placeholder = self._placeholders.get((rule.name, secret))
        if placeholder is None:
            self._numbers[rule.name] += 1
            placeholder = f"<{rule.name.upper()}_{self._numbers[rule.name]}>"
            self._placeholders[rule.name, secret] = placeholder
        start = match.start("secret") - match.start() if found is not whole else 0
        return whole[:start] + whole[start:].replace(secret, placeholder, 1)


_MAYBE = re.compile(r"[\d@]|://|PRIVATE KEY|(?i:bearer|pass|secret|token|key|pwd|eyJ|kennwort|contras|senha|wacht|has)")
