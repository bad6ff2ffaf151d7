"""Computations put together from parts: every part says and does what its name means, in every combination."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.dataset.synthesis.expected_compositions import STEPS, exact, outcome
from tests.unit.dataset.synthesis.test_program_values import printed_by, value_of
from tool_aware.dataset.synthesis import fillers
from tool_aware.dataset.synthesis.compositions import COMPOSED, Combination, combinations
from tool_aware.dataset.synthesis.content import CONTENT_DIR, Content, Frame, load_content
from tool_aware.dataset.synthesis.frames import fill_known
from tool_aware.dataset.synthesis.pools import pools

FOLDER = CONTENT_DIR / "compositions"
DRAWS = 2
OTHERS_KEPT = {"none": 1.0, "one": 1.0, "two": 0.3, "two_numbers": 0.06}  # random ones beyond those of the data
TOKENS = re.compile(r"[^\s,;+\[\]']+")


def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


TYPES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "templates")
PARTS = {name: read(FOLDER / f"{name}.yaml") for name in TYPES}
TEMPLATES = read(FOLDER / "templates.yaml")


@pytest.fixture(scope="module")
def content() -> Content:
    return load_content()


def composed(content: Content) -> list[Frame]:
    return [frame for frame in content.frames if frame.kind == COMPOSED]


def drawn(slots: Mapping[str, Any], random_: random.Random) -> dict[str, fillers.Value]:
    return {slot: fillers.draw(spec, random_, "de") for slot, spec in slots.items()}


def wanted_of(combination: Combination, values: Mapping[str, fillers.Value]) -> list[Any] | str:
    found = {slot: exact(value_of(value.code)) for slot, value in values.items()}
    steps = [
        (step["name"], {slot: found[f"{slot}{number}"] for slot in step.get("draws", {})})
        for number, step in enumerate(combination.steps, 1)
    ]
    return outcome(combination.type, combination.source["name"], steps, combination.end["name"], found)


def is_printed(printed: str, wanted: list[Any] | str, digits: int) -> bool:
    """Return whether a text has the tokens that are wanted, numbers to so many decimals."""
    if isinstance(wanted, str):
        return printed == wanted
    tokens = TOKENS.findall(printed)
    return len(tokens) == len(wanted) and all(map(lambda shown, one: _is_same(shown, one, digits), tokens, wanted))


def _is_same(shown: str, wanted: Any, digits: int) -> bool:
    if isinstance(wanted, str):
        return shown == wanted
    return abs(float(shown) - float(wanted)) <= 0.5 * 10**-digits * 1.01 + 1e-9 * abs(float(wanted))


def digits_of(combination: Combination) -> int:
    """Return to how many decimals everything is printed at least; lists have two."""
    return min([int(digits) for digits in re.findall(r"round\([^\n]+?, (\d)\)", combination.program())] or [9])


def check(combination: Combination, name: str) -> None:
    values = drawn(combination.slots, random.Random(f"{name}/{combination.group}"))
    code = fill_known(combination.program(), {slot: value.code for slot, value in values.items()})
    try:
        wanted, printed = wanted_of(combination, values), printed_by(code)
    except (ArithmeticError, ValueError, IndexError) as error:
        pytest.fail(f"{combination.group}: {error}\n{code}")
    assert printed, f"{combination.group} prints nothing\n{code}"
    assert is_printed(printed, wanted, digits_of(combination)), f"{printed!r}, not {wanted!r}\n{code}"


@pytest.mark.parametrize("type_", TYPES)
def test_every_combination_of_parts_prints_what_its_parts_mean(type_: str) -> None:
    made = list(combinations(type_, PARTS[type_], TEMPLATES["kept"]))
    for combination in made:
        for draw in range(DRAWS):
            check(combination, str(draw))
    used = {part["name"] for one in made for part in (one.source, *one.steps, one.end)}
    assert used == {part["name"] for kind in ("sources", "steps", "ends") for part in PARTS[type_][kind]}


@pytest.mark.parametrize("type_", TYPES)
def test_combinations_that_are_not_in_the_data_would_be_right_too(type_: str) -> None:
    for combination in combinations(type_, PARTS[type_], OTHERS_KEPT):
        check(combination, "others")


def test_a_part_that_does_something_else_would_be_found() -> None:
    parts = {**PARTS["numbers"], "steps": [{**one, "code": "values = values"} for one in PARTS["numbers"]["steps"]]}
    made = [one for one in combinations("numbers", parts, TEMPLATES["kept"]) if one.steps and one.end["name"] == "sum"]
    wrong = 0
    for combination in made:
        try:
            check(combination, "0")
        except AssertionError:
            wrong += 1
    assert wrong >= 0.8 * len(made) > 20


def test_no_name_of_a_step_is_used_twice_and_each_has_another_way() -> None:
    names = Counter(step["name"] for parts in PARTS.values() for step in parts["steps"])
    assert max(names.values()) == 1
    assert names.keys() == STEPS.keys()


def test_programs_have_one_statement_a_part_under_the_same_names(content: Content) -> None:
    allowed = {
        "numbers": "values",
        "growth": "values",
        "words": "words",
        "rows": "rows",
        "grouped": "rows",
        "days": "days",
        "letters": "text",
    }
    for type_, parts in PARTS.items():
        for step in parts["steps"]:
            assert step["code"].startswith(f"{allowed[type_]} = "), step["name"]
            assert "\n" not in step["code"]
    assert all(len(str(frame.code)) < 500 for frame in composed(content))


def phrases_of(digits: int, language: str) -> Iterator[str]:
    yield from pools()["rounding"][language][digits]


def test_the_decimals_that_are_asked_for_are_printed(content: Content) -> None:
    asked = 0
    for frame in composed(content):
        said = {n for n in range(4) for phrase in phrases_of(n, frame.language) if f", {phrase}" in frame.pattern}
        if said:
            asked += 1
            shown = re.search(r"print\(round\(result(?:, (\d))?\)\)\Z", str(frame.code))
            assert shown, frame.code
            assert int(shown[1] or 0) in said, (frame.pattern, frame.code)
    assert 0.1 < asked / len(composed(content)) < 0.3


def test_each_frame_has_its_data_and_the_numbers_of_its_steps(content: Content) -> None:
    """A request without its data, or a step without its number, could not be computed."""
    for frame in composed(content):
        assert set(re.findall(r"\{([a-z]+\d?)\}", frame.pattern)) == set(frame.slots or {}), frame.pattern
        assert frame.pattern.count("*") == 2, frame.pattern
        assert not re.search(r" [,:;.]\s|\?\?|\.\.|,,|:\s*:", frame.pattern.replace(" :", ":")), frame.pattern


def test_a_third_to_a_half_of_the_programs_are_put_together(content: Content) -> None:
    languages = Counter(frame.language for frame in composed(content))
    assert languages["en"] > sum(languages.values()) * 0.4
    assert min(languages[language] for language in ("de", "fr", "es")) > 400
    assert len({frame.group for frame in composed(content)}) > 1500


def test_requests_of_one_computation_stay_in_one_split(content: Content) -> None:
    groups = {frame.id: frame.group for frame in composed(content)}
    assert all(identity.startswith(f"{group}-") for identity, group in groups.items())


def test_data_that_is_to_be_divided_leaves_enough_on_both_sides() -> None:
    spec = {"numbers": {"int": [2, 99]}, "count": [7, 11], "spread": True}
    for seed in range(100):
        numbers = value_of(fillers.draw(spec, random.Random(seed)).code)
        assert sum(number > 66 for number in numbers) >= 2 <= sum(number <= 34 for number in numbers)
        assert 2 <= sum(number % 2 for number in numbers) <= len(numbers) - 2


def test_names_with_numbers_are_typed_in_a_line_in_lines_or_as_a_table() -> None:
    spec = {"named": "names", "numbers": {"int": [3, 98]}, "count": [6, 8], "spread": True}
    for more in ({}, {"lines": True}, {"head": {"en": "name,points"}}, {"head": {"en": "a,b,c"}, "groups": ["x", "y"]}):
        for seed in range(30):
            value = fillers.draw({**spec, **more}, random.Random(seed))
            rows = value_of(value.code)
            assert ("\n" in value.text) == bool(more)
            assert all(row[0] in value.text and str(row[-1]) in value.text for row in rows)
            assert len({row[-1] for row in rows}) == len(rows)
