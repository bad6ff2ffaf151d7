"""Replaces personal data and secrets by placeholders, before anything is written.

Within a row the same secret gets the same placeholder (`<EMAIL_1>`), in the query as in the parameters of its call, so
that the row stays readable and its extraction exact. Numbers begin anew in every row: a placeholder ties no two rows to
one person. Counts by kind go into the manifest. What is found and what is not: docs/SECURITY.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tool_aware.dataset import password_rules, personal_rules, phone_rules, token_rules
from tool_aware.dataset.check_digits import passes_iban, passes_luhn
from tool_aware.dataset.redaction_rules import Found

__all__ = ["Redactor", "RowRedactor", "SecretInParameter", "passes_iban", "passes_luhn"]

# From the most specific to the least: where two find overlapping texts, the first one names the kind.
_RULES = (*token_rules.RULES, *password_rules.RULES, *personal_rules.RULES, *phone_rules.RULES)
_MAYBE = re.compile(r"[\d@]|://|(?i:identified by)|[A-Za-z0-9+/_-]{26}")
_MAYBE_LOWER = re.compile(
    r"begin|pass|pw|psw|secret|token|key|cred|auth|sess|cookie|bearer|basic|phrase|mnemonic|kennwort|contrase|senha|wacht"
    r"|has[lł]o|heslo|jelsz|lösen|adgang|salasana|şifre|parola|[\[({]at[\])}]|пароль|密码|密碼|口令|パスワード|비밀번호"
)
_PLACEHOLDER = re.compile(r"<(?P<kind>[A-Z][A-Z_0-9]{1,30})_(?P<number>\d{1,6})>")
_ROUNDS = 4  # a replacement can uncover what stood in the same run of digits; the second round hardly ever finds any
_LONG = 50_000  # characters from which on one round has to do
_MOST_KNOWN = 200  # secrets of a row that are looked for beyond the rules; a query has one or two
_SHORTEST_KNOWN = 4  # characters of a secret that is also replaced where no rule would find it, as in a parameter
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_BEFORE_JSON_NUMBER = re.compile(r"(?P<escapes>\\{0,3})\"\s{0,3}:\s{0,3}$")
_BEHIND_JSON_NUMBER = re.compile(r"\s{0,3}(?:[,}\]\n]|$)")


class SecretInParameter(ValueError):
    """A parameter is a secret and a number, where no placeholder can stand, or is a part of a secret of the query."""


class Redactor:
    """Replaces secrets in texts and rows, and counts what was replaced by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def redact(self, text: str) -> str:
        """Return `text` with every secret replaced. Redacting twice changes nothing more."""
        return self.row().redact(text) if _may_have(text) else text

    def redact_row(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of one row with every secret replaced, the same one by the same placeholder."""
        row = self.row()
        for text in texts:
            row.learn(text)
        return [row.redact(text) for text in texts]

    def row(self, kept: str = "") -> RowRedactor:
        """Return a redactor for the texts of one row, which have their placeholders in common."""
        return RowRedactor(self.counts, kept)

    def redact_call(
        self, query: str, arguments: Mapping[str, Any], others: Sequence[Any] = (), *, kept: str = ""
    ) -> tuple[Any, ...]:
        """Return the query, the arguments of its call, and other values of the row, with the same placeholders.

        What stands in the text `kept` stays. Raises SecretInParameter where the call would not be exact any more.
        """
        row = self.row(kept)
        row.learn(query)
        row.learn(arguments)
        replaced = tuple(row.replaced(value) for value in (query, arguments, *others))
        row.refuse_parts(query, replaced[0], replaced[1])
        return replaced


class RowRedactor:
    """Replaces secrets in the texts of one row."""

    def __init__(self, counts: Counter[str], kept: str = "") -> None:
        self._counts = counts
        self._kept = kept
        self._placeholders: dict[str, str] = {}  # by secret, as it is written
        self._same: dict[tuple[str, str], str] = {}  # by kind and what does not depend on how it is written
        self._own: set[str] = set()  # the placeholders given here
        self._kinds: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()

    def redact(self, text: str) -> str:
        """Return a text with its secrets replaced, and with those of the row's earlier texts."""
        self._reserve(text)
        for _ in range(_ROUNDS if len(text) <= _LONG else 1):
            found = self._find(text)
            if not found:
                break
            text = self._with_placeholders(text, found)
        return text

    def learn(self, value: Any, key: str = "") -> None:
        """Number the secrets of a value, which may hold others: texts, lists, objects."""
        if isinstance(value, str):
            self._reserve(value)
            for found in self._not_kept(value, _found_in(value, key)):
                self._placeholder(found.kind, value[found.start : found.end])
        elif isinstance(value, Mapping):
            for name, item in value.items():
                self.learn(item, str(name))
        elif isinstance(value, list | tuple):
            for item in value:
                self.learn(item, key)

    def replaced(self, value: Any, key: str = "") -> Any:
        """Return a value with the secrets replaced in all texts that it holds. Raises SecretInParameter."""
        if isinstance(value, str):
            return self._replaced_text(value, key)
        if isinstance(value, Mapping):
            return {name: self.replaced(item, str(name)) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.replaced(item, key) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._refuse_secret(str(value), key)
        return value

    def refuse_parts(self, query: str, replaced: str, value: Any) -> None:
        """Raise SecretInParameter for a text in `value` that only the secrets of the query had, such as a domain."""
        if isinstance(value, str) and len(value) >= _SHORTEST_KNOWN and value in query and value not in replaced:
            raise SecretInParameter("a text that is a part of a secret")
        if isinstance(value, Mapping | list):
            for item in value.values() if isinstance(value, Mapping) else value:
                self.refuse_parts(query, replaced, item)

    def _refuse_secret(self, number: str, key: str) -> None:
        is_known = any(re.sub(r"\D", "", secret) == number for secret in self._placeholders if len(number) >= 4)
        if is_known or any(found.end - found.start == len(number) for found in _found_in(number, key)):
            raise SecretInParameter(f"{key}: a number that is a secret")

    def _replaced_text(self, text: str, key: str) -> str:
        if key:
            found = self._not_kept(text, _found_in(text, key))
            text = self._with_placeholders(text, self._with_known(text, found)) if found else text
        return self.redact(text)

    def _reserve(self, text: str) -> None:
        """Leave the numbers of placeholders alone that a text has already."""
        if "<" in text:
            for match in _PLACEHOLDER.finditer(text):
                kind = match["kind"].lower()
                if match[0] not in self._own:
                    self._numbers[kind] = max(self._numbers[kind], int(match["number"]))

    def _find(self, text: str) -> list[Found]:
        found = self._not_kept(text, _secrets_in(text)) if _may_have(text) else []
        return self._with_known(text, found) if self._placeholders else found

    def _not_kept(self, text: str, found: list[Found]) -> list[Found]:
        return [item for item in found if text[item.start : item.end] not in self._kept] if self._kept else found

    def _with_known(self, text: str, found: list[Found]) -> list[Found]:
        """Return what was found and, beside it, the secrets of the row's other texts."""
        earlier = list(self._placeholders)[:_MOST_KNOWN]
        known = [secret for secret in earlier if len(secret) >= _SHORTEST_KNOWN and secret in text]
        if not known:
            return found
        taken = [*found, *_placeholders_in(text)]
        for secret in sorted(known, key=len, reverse=True):
            pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])")
            for match in pattern.finditer(text):
                taken = _joined(taken, [Found(self._kinds[secret], match.start(), match.end())])
        return [item for item in taken if item.kind]

    def _with_placeholders(self, text: str, found: Iterable[Found]) -> str:
        parts, at = [], 0
        for item in sorted(found, key=lambda item: item.start):
            secret = text[item.start : item.end]
            self._counts[item.kind] += 1
            parts += [text[at : item.start], self._as_json(text, item, self._placeholder(item.kind, secret))]
            at = item.end
        return "".join([*parts, text[at:]])

    def _placeholder(self, kind: str, secret: str) -> str:
        placeholder = self._placeholders.get(secret)
        if placeholder is None:
            same = (kind, _identity(kind, secret))
            if same not in self._same:
                self._numbers[kind] += 1
                self._same[same] = f"<{kind.upper()}_{self._numbers[kind]}>"
                self._own.add(self._same[same])
            placeholder = self._placeholders[secret] = self._same[same]
            self._kinds[secret] = kind
        return placeholder

    @staticmethod
    def _as_json(text: str, item: Found, placeholder: str) -> str:
        """Return a placeholder in quotes where it replaces a number of JSON."""
        if not _NUMBER.fullmatch(text, item.start, item.end):
            return placeholder
        before = _BEFORE_JSON_NUMBER.search(text[max(0, item.start - 10) : item.start])
        if before is None or not _BEHIND_JSON_NUMBER.match(text, item.end):
            return placeholder
        return f'{before["escapes"]}"{placeholder}{before["escapes"]}"'


def _may_have(text: str) -> bool:
    """Return whether a text has anything that a rule could find; most texts have not."""
    return _MAYBE.search(text) is not None or _MAYBE_LOWER.search(text.lower()) is not None


def _identity(kind: str, secret: str) -> str:
    """Return what is the same however a number is written, as in a query and in a parameter made of it."""
    if kind == "phone":
        return re.sub(r"\D", "", secret)[-9:]  # with a country code, a trunk prefix, or neither
    if kind == "birth_date":
        return (re.findall(r"(?:19|20)\d\d", secret) or [secret])[0]
    if kind in ("card", "iban", "ssn", "national_id", "mac", "email"):
        return re.sub(r"[\s.-]|(?<=[0-9a-fA-F]):", "", secret).lower()
    return secret


def kinds_in(value: Any, key: str = "") -> Counter[str]:
    """Return how many secrets of each kind the texts of a value hold."""
    if isinstance(value, str):
        return Counter(found.kind for found in _found_in(value, key))
    if isinstance(value, Mapping):
        return sum((kinds_in(item, str(name)) for name, item in value.items()), Counter())
    if isinstance(value, list | tuple):
        return sum((kinds_in(item, key) for item in value), Counter())
    return Counter()


def _found_in(text: str, key: str) -> list[Found]:
    """Return the secrets in a text behind a key: `"password": "..."` is one, though the text alone is not."""
    if not key:
        return _secrets_in(text) if _may_have(text) else []
    before = f'"{key}": "'
    behind = [
        Found(kind, max(start - len(before), 0), min(end - len(before), len(text)))
        for kind, start, end in _secrets_in(f'{before}{text}"')
        if end > len(before) and start < len(before) + len(text)
    ]
    return behind or (_secrets_in(text) if _may_have(text) else [])


def _secrets_in(text: str) -> list[Found]:
    """Return what the rules find, without overlaps and outside of placeholders."""
    lower = text.lower()
    taken = _placeholders_in(text)
    for rule in _RULES:
        if rule.is_possible(text, lower):
            taken = _joined(taken, rule.find(text))
    return [item for item in taken if item.kind]


def _placeholders_in(text: str) -> list[Found]:
    return [Found("", match.start(), match.end()) for match in _PLACEHOLDER.finditer(text)] if "<" in text else []


def _joined(taken: list[Found], more: Iterable[Found]) -> list[Found]:
    """Return both, ordered, without those of `more` that overlap what is taken."""
    fresh = sorted(more, key=lambda item: item.start)
    if not fresh:
        return taken
    merged: list[Found] = []
    at = 0
    for item in fresh:
        while at < len(taken) and taken[at].end <= item.start:
            merged.append(taken[at])
            at += 1
        is_free = at == len(taken) or taken[at].start >= item.end
        if is_free and (not merged or merged[-1].end <= item.start):
            merged.append(item)
    return merged + taken[at:]
