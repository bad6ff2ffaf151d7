"""Validators of JSON Schema for schemas and values that nobody has read: nothing is fetched, no pattern hangs.

jsonschema by itself fetches what `$ref` names, with whichever address the schema gives, and searches with `re`, which
takes exponential time for some patterns. Here a reference to elsewhere is an error, and the slow searches of a pattern
get PATTERN_TIME_S together: after that no text fits it.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

PATTERN_TIME_S = 0.5
MOST_STATES = 10_000  # of a pattern with its repetitions written out, as the search engine holds it

# ECMAScript's spelling, which the search engine knows and `re`, whose parser counts the states, does not.
_NAMED = re.compile(r"(?<!\\)\(\?<(?![=!])")
_OF_CHARACTERS = re.compile(r"(?<!\\)\\[pP]\{[A-Za-z_=]+\}")
_NOTICEABLE_S = 0.01  # of one search; what people write takes a thousandth of that
_spent_s: defaultdict[str, float] = defaultdict(float)  # by pattern, in searches that took noticeably long


def validator_of(schema: Mapping[str, Any] | bool) -> Any:
    """Return a validator of draft 2020-12. Its `iter_errors` never raises for a value that came from JSON."""
    return _kind()(schema, registry=_nothing_else())


def pattern_problem(pattern: str) -> str | None:
    """Return why a pattern cannot be used, in words; None if it can."""
    try:
        parsed = _parsed(pattern)
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        return f"is not a regular expression that Python reads: {error}"
    if _states(parsed) > MOST_STATES:
        return f"repeats parts so often that it has more than {MOST_STATES:,} states"
    return None


@functools.lru_cache(maxsize=1)
def _nothing_else() -> Any:
    from referencing import Registry

    return Registry()  # has no way to retrieve anything


@functools.lru_cache(maxsize=1)
def _kind() -> Any:
    from jsonschema import Draft202012Validator, ValidationError, validators

    bounded = ("pattern", "patternProperties", "additionalProperties", "unevaluatedProperties", "multipleOf")

    def safely(keyword: str) -> Any:
        original = Draft202012Validator.VALIDATORS[keyword]

        def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            try:
                if keyword == "pattern":
                    if isinstance(instance, str) and not found(value, instance):
                        yield ValidationError(f"{instance!r} does not match {value!r}")
                elif keyword == "patternProperties" and isinstance(instance, Mapping):
                    for pattern, below in value.items():
                        for name in [name for name in instance if found(pattern, name)]:
                            yield from validator.descend(instance[name], below, path=name, schema_path=pattern)
                elif keyword == "additionalProperties" and isinstance(instance, Mapping):
                    yield from _additional(validator, value, instance, schema)
                else:
                    if keyword == "unevaluatedProperties" and "patternProperties" in json.dumps(schema):
                        yield ValidationError(f"{keyword} cannot be checked beside patternProperties")  # with `re`
                        return
                    yield from original(validator, value, instance, schema) or ()
            except OverflowError:
                yield ValidationError(f"{str(instance)[:40]}... is too large a number")
            except _TooSlow as slow:
                yield ValidationError(f"the pattern {slow} takes too long to search with")

        return check

    return validators.extend(Draft202012Validator, {keyword: safely(keyword) for keyword in bounded})


def _additional(validator: Any, value: Any, instance: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the errors of properties that the schema does not name, as jsonschema does."""
    from jsonschema import ValidationError

    patterns, declared = schema.get("patternProperties", ()), schema.get("properties", {})
    extra = [n for n in instance if n not in declared and not any(found(pattern, n) for pattern in patterns)]
    if isinstance(value, Mapping):
        for name in extra:
            yield from validator.descend(instance[name], value, path=name)
    elif value is False and extra:
        if patterns:
            names, verb = ", ".join(map(repr, sorted(extra))), "does" if len(extra) == 1 else "do"
            yield ValidationError(f"{names} {verb} not match any of the regexes: {', '.join(map(repr, patterns))}")
        else:
            names, verb = ", ".join(map(repr, sorted(extra, key=str))), "was" if len(extra) == 1 else "were"
            yield ValidationError(f"Additional properties are not allowed ({names} {verb} unexpected)")


class _TooSlow(Exception):
    """A pattern whose search takes too long."""

    def __init__(self, pattern: str) -> None:
        super().__init__(repr(pattern)[:80])


def found(pattern: str, text: str) -> bool:
    """Return whether a pattern occurs in a text, as `re.search` does. Raises _TooSlow, from then on at once."""
    import regex

    if _spent_s[pattern] >= PATTERN_TIME_S:
        raise _TooSlow(pattern)
    begun_s = time.monotonic()
    try:
        return regex.search(_compiled(pattern), text, timeout=PATTERN_TIME_S) is not None
    except TimeoutError:
        raise _TooSlow(pattern) from None
    finally:
        took_s = time.monotonic() - begun_s
        _spent_s[pattern] += took_s if took_s > _NOTICEABLE_S else 0.0


@functools.lru_cache(maxsize=1000)
def _compiled(pattern: str) -> Any:
    """Return a pattern for the search engine that can be given a time limit; one that cannot be used fits nothing."""
    import regex

    try:
        return regex.compile(r"(?!)" if pattern_problem(pattern) else pattern, regex.VERSION0)
    except (regex.error, RecursionError, MemoryError):  # read by `re` alone
        return regex.compile(r"(?!)")


def _parsed(pattern: str) -> Any:
    import warnings

    pattern = _OF_CHARACTERS.sub(r"\\w", _NAMED.sub("(?P<", pattern))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        re.compile(pattern)
        return re._parser.parse(pattern)  # type: ignore[attr-defined]


def _states(parsed: Any) -> int:
    """Return the number of states of a parsed pattern with its repetitions written out; not all if above the limit."""
    total = 0
    for operation, argument in parsed:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = argument
            times = least + 1 if most is re._constants.MAXREPEAT else most  # type: ignore[attr-defined]
            total += max(1, int(times)) * _states(inner)
        elif name == "BRANCH":
            total += sum(map(_states, argument[1]))
        elif name == "SUBPATTERN":
            total += _states(argument[-1])
        elif name in ("ASSERT", "ASSERT_NOT"):
            total += _states(argument[1])
        elif name == "ATOMIC_GROUP":
            total += _states(argument)
        elif name == "GROUPREF_EXISTS":
            total += sum(_states(part) for part in argument[1:] if part)
        else:
            total += 1
        if total > MOST_STATES:
            return total
    return max(1, total)
