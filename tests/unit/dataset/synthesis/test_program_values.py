"""Programs print what was worked out in another way, are written in one manner, and copy the values of the query."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from fractions import Fraction

import pytest

from tests.unit.dataset.synthesis.expected_steps import done
from tests.unit.dataset.synthesis.expected_values import AS_IN_THE_QUERY, EXPECTED
from tests.unit.dataset.synthesis.other_ways import Expected
from tool_aware.dataset.synthesis import fillers
from tool_aware.dataset.synthesis.content import Content, Frame, load_content
from tool_aware.dataset.synthesis.frames import Expansion, fill_known
from tool_aware.dataset.synthesis.generator import rounded
from tool_aware.dataset.synthesis.pools import steps

DRAWS = 6
TWO_ROUNDED = "mean = 1.23456\nspread = 2.34567\nprint(round(mean, 4), round(spread, 4))"
FOUND_NOTHING = {"0", "[]", "False", ""}
MOSTLY_FALSE = {"is_leap", "is_prime", "is_perfect"}  # as most numbers are no primes
MARKS = re.compile(r"[\s*?.!,:;¿¡\"']+")
BADLY_SAID = {
    "ordinal": re.compile(r"(?<![\d.,])\d*(?:(?<!1)[123]th|1[123](?:st|nd|rd))\b"),  # 21th
    "one of many": re.compile(
        r"(?<![\d.,:/-])(?<![,;/] )1 (?:"
        r"years|months|weeks|days|hours|minutes|people|times|names|inches|euros|Jahren?|Monaten?|Wochen|"
        r"Tagen?|Stunden|Minuten|ans|jours|semaines|heures|años|meses|días|semanas|horas|anni|mesi|giorni|settimane|"
        r"ore|anos|dias|maanden|weken|dagen|uren|lata|lat|dni|godzin|månader|veckor|dagar|timmar"
        r")\b"
    ),
    "two signs": re.compile(r"[+\-−] ?[\-−+]\d"),  # + -5
    "one x": re.compile(r"(?<![\d.,x])[01]x(?:\^|[²³]| [+\-−])"),  # 1x²
}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def content() -> Content:
    return load_content()


def kinds_of_programs(content: Content) -> Iterator[tuple[str, Frame]]:
    """Yield a frame of each kind of program and each range of its values, in English if it can be, with its name."""
    programs = [frame for frame in content.frames if frame.code and frame.program]
    programs.sort(key=lambda one: one.language == "en")
    kinds = {(frame.program, str(frame.code), str(frame.slots)): frame for frame in programs}
    yield from ((name, frame) for (name, *_), frame in sorted(kinds.items()))


def printed_by(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "program", "exec"), {"__name__": "__main__"})
    return printed.getvalue().strip()


def value_of(code: str) -> object:
    try:
        return eval(code, {"date": date, "__builtins__": {}})
    except (SyntaxError, NameError):
        return code


def expected(name: str, values: Mapping[str, object]) -> Expected:
    """Return what the named kind prints, from the slots by name, or in order where arguments have other names."""
    work_out = EXPECTED[name]
    names = inspect.signature(work_out).parameters
    return work_out(**values) if values.keys() <= names.keys() or "_" in names else work_out(*values.values())


def is_printed(printed: str, wanted: Expected) -> bool:
    """Return whether a text says what was expected; numbers to as many decimals as were printed."""
    if callable(wanted):
        return wanted(printed)
    if isinstance(wanted, str):
        return printed == wanted
    numbers = [float(wanted)] if isinstance(wanted, int | float | Fraction) else [float(number) for number in wanted]
    found = NUMBER.findall(printed)
    return len(found) == len(numbers) and all(map(_is_same, found, numbers))


def _is_same(shown: str, wanted: float) -> bool:
    decimals = len(shown.partition(".")[2]) if "." in shown and "e" not in shown else 0
    rounded = 0.5 * 10**-decimals * 1.01 if decimals else 0.0
    return abs(float(shown) - wanted) <= max(rounded, 1e-6 * abs(wanted))


def test_every_kind_of_program_prints_the_value_worked_out_in_another_way(content: Content) -> None:
    kinds = [(name, frame) for name, frame in kinds_of_programs(content) if "steps" not in (frame.slots or {})]
    assert {name for name, _ in kinds} - AS_IN_THE_QUERY == EXPECTED.keys()
    assert len(EXPECTED) >= 410
    for name, frame in kinds:
        if name in AS_IN_THE_QUERY:
            continue
        random_ = random.Random(f"values/{name}")
        for _ in range(1 if "seed(" in str(frame.code) else DRAWS):
            drawn = {slot: fillers.draw(spec, random_, "de") for slot, spec in (frame.slots or {}).items()}
            code = fill_known(str(frame.code), {slot: value.code for slot, value in drawn.items()})
            used = {slot: value_of(value.code) for slot, value in drawn.items() if f"{{{slot}}}" in str(frame.code)}
            wanted = expected(name, used)
            assert is_printed(printed_by(code), wanted), f"{name}: {printed_by(code)!r}, not {wanted!r}\n{code}"


def test_steps_one_after_the_other_come_to_what_their_words_say(content: Content) -> None:
    """The program is run; the words of the query are done by hand, whatever the program says."""
    frames = [frame for name, frame in kinds_of_programs(content) if "steps" in (frame.slots or {})]
    assert len(frames) == 16
    shapes = set()
    for frame in frames:
        slots = dict(frame.slots or {})
        for draw in range(40):
            random_ = random.Random(f"steps/{frame.id}/{draw}")
            drawn = {slot: fillers.draw(spec, random_, "en") for slot, spec in slots.items()}
            code = fill_known(str(frame.code), {slot: value.code for slot, value in drawn.items()})
            kind, said = slots["steps"]["steps"], drawn["steps"].text
            first = value_of(next(value.code for slot, value in drawn.items() if slot != "steps"))
            start = Fraction(str(first)) if kind in ("of_a_number", "of_an_amount") else first
            wanted = done(kind, start, said, times=int(drawn["n"].code) if "n" in drawn else 1)
            assert is_printed(printed_by(code), wanted), f"{said}: {printed_by(code)!r}, not {wanted!r}\n{code}"
            shapes.add(re.sub(r"\d+", "", code.partition("\n")[2]))
    assert len(shapes) > 300  # of 640: hardly one is there twice


def test_steps_are_named_in_all_languages_of_their_first_and_each_can_be_drawn() -> None:
    for kind, parts in list(steps().items())[1:]:
        languages = {frozenset(step["say"]) for step in [*parts["steps"], *parts["last"]]}
        assert len(languages) == 1, kind
        assert next(iter(languages)) <= steps()["then"].keys()


def test_a_program_has_one_name(content: Content) -> None:
    names: dict[str, set[str]] = {}
    for name, frame in kinds_of_programs(content):
        if "steps" not in (frame.slots or {}):
            slots = dict.fromkeys(re.findall(r"\{([a-z]\w*)\}", str(frame.code)))
            places = {slot: f"<{number}>" for number, slot in enumerate(one for one in slots if one in frame.slots)}
            names.setdefault(fill_known(str(frame.code), places), set()).add(name)
    assert not [several for several in names.values() if len(several) > 1]


def test_a_sentence_asks_for_one_program(content: Content) -> None:
    asked: dict[tuple[str, str], set[str]] = {}
    for frame in content.frames:
        if frame.code and frame.program and "steps" not in (frame.slots or {}):
            kinds = {slot: f"<{next(iter(spec))}>" for slot, spec in frame.slots.items() if isinstance(spec, Mapping)}
            said = MARKS.sub(" ", fill_known(frame.pattern, kinds)).casefold().strip()
            asked.setdefault((frame.language, said), set()).add(frame.program)
    assert not {said: programs for said, programs in asked.items() if len(programs) > 1}


def test_queries_with_numbers_read_as_people_write(content: Content) -> None:
    for frame in content.frames:
        for draw in range(5 if frame.code and frame.slots else 0):
            random_ = random.Random(f"said/{frame.id}/{draw}")
            drawn = {slot: fillers.draw(spec, random_, frame.language).text for slot, spec in frame.slots.items()}
            said = fill_known(frame.pattern, drawn)
            for fault, pattern in BADLY_SAID.items():
                assert not pattern.search(said), f"{fault}: {said}"


def test_most_programs_find_something_in_the_values_of_their_query(content: Content) -> None:
    """A word to count is one of the text, and the like."""
    for name, frame in kinds_of_programs(content):
        if name in MOSTLY_FALSE or "seed(" in str(frame.code) or not frame.slots:
            continue
        printed = []
        for draw in range(20):
            random_ = random.Random(f"found/{name}/{draw}")
            drawn = {slot: fillers.draw(spec, random_, frame.language).code for slot, spec in frame.slots.items()}
            printed.append(printed_by(fill_known(str(frame.code), drawn)))
        assert sum(one in FOUND_NOTHING for one in printed) <= 14, f"{name}: {frame.code}"


def test_a_wrong_program_would_be_found() -> None:
    assert not is_printed("105.1", 105)
    assert not is_printed("105 1", 105)
    assert is_printed("105.13", 105.1279)


def test_json_has_nothing_to_escape_in_a_program_but_the_ends_of_its_lines(content: Content) -> None:
    """A small model breaks its JSON where quotes and backslashes stand in code."""
    for name, frame in kinds_of_programs(content):
        if name in {*AS_IN_THE_QUERY, "json_keys", "regex"}:
            continue
        escaped = json.dumps(frame.code, ensure_ascii=False)[1:-1].replace("\\n", "")
        assert "\\" not in escaped, name


def test_a_program_names_its_inputs_and_prints_its_result(content: Content) -> None:
    kinds = [(name, str(frame.code)) for name, frame in kinds_of_programs(content) if name not in AS_IN_THE_QUERY]
    with_result = [name for name, code in kinds if re.search(r"print\((?:round\()?result\b", code)]
    assert len(with_result) > 0.8 * len(kinds)
    assert all(len(code) < 700 and "print(" in code for _, code in kinds)


def test_a_number_of_decimals_that_is_asked_for_is_printed(content: Content) -> None:
    frame = next(one for one in content.frames if one.program == "vat" and one.language == "fr")
    made = [rounded(frame, Expansion("combien TTC ?", None, None), random.Random(seed)) for seed in range(400)]
    changed = [(str(one.code), said.text) for one, said in made if said.text != "combien TTC ?"]
    assert 0.22 < len(changed) / 400 < 0.38
    assert all(one == frame for one, said in made if said.text == "combien TTC ?")
    shown = {
        "une": "result, 1",
        "deux": "result, 2",
        "trois": "result, 3",
        "l'entier": "result",
        "centime": "result, 2",
    }
    for code, text in changed:
        assert any(word in text and code.endswith(f"print(round({end}))") for word, end in shown.items()), (code, text)
        assert text.startswith("combien TTC, ")
        assert text.endswith("?")
    assert any("centime" in text for _, text in changed)


def test_decimals_are_asked_for_behind_the_mark_that_stands_for_the_result() -> None:
    frame = Frame("a", "program-a", "code_execution", "plain", "en", "plain", "x = ?", code=TWO_ROUNDED)
    texts = {rounded(frame, Expansion("x = ?", None, None), random.Random(seed))[1].text for seed in range(100)}
    assert all(text == "x = ?" or text.startswith("x = ?, ") for text in texts)
    assert len(texts) > 3


def test_a_percentage_of_amounts_is_not_asked_for_to_the_cent(content: Content) -> None:
    frame = next(one for one in content.frames if one.program == "percent_change" and one.language == "de")
    said = [rounded(frame, Expansion("wie viel mehr?", None, None), random.Random(seed))[1].text for seed in range(200)]
    assert any("Nachkomma" in text for text in said)
    assert not any("Cent" in text for text in said)


def test_decimals_are_asked_for_before_a_table_and_hold_for_all_that_is_printed() -> None:
    frame = Frame("a", "program-a", "code_execution", "plain", "en", "plain", "sums:\n1\n2", code=TWO_ROUNDED)
    made = [rounded(frame, Expansion("sums:\n1\n2", None, None), random.Random(seed)) for seed in range(100)]
    for one, said in made:
        if said.text != "sums:\n1\n2":
            assert re.fullmatch(r"sums, [^\n]+:\n1\n2", said.text)
            assert re.search(r"print\(round\(mean(|, [123])\), round\(spread\1\)\)$", str(one.code)), one.code
    assert any(said.text != "sums:\n1\n2" for _, said in made)


@pytest.mark.parametrize(
    ("language", "shown"),
    [
        ("en", {"1,250.50", "1250.50"}),
        ("de", {"1.250,50", "1250,50", "1250.50"}),
        ("fr", {"1 250,50", "1250,50", "1250.50"}),
    ],
)
def test_an_amount_is_typed_as_the_language_does_and_computed_with_as_a_number(language: str, shown: set[str]) -> None:
    values = [fillers.draw({"amount": [1250.5, 1250.5, 0.01]}, random.Random(n), language) for n in range(60)]
    assert {value.text for value in values} == shown
    assert {value.code for value in values} == {"1250.50"}


def test_a_list_of_numbers_with_decimal_commas_is_not_separated_by_commas() -> None:
    for seed in range(60):
        value = fillers.draw({"numbers": {"decimal": [1, 9, 2]}, "count": [4, 4]}, random.Random(seed), "it")
        if re.search(r"\d,\d\d", value.text):
            assert ", " not in value.text
        assert value.code.count(",") == 3


@pytest.mark.parametrize(
    ("language", "shown"), [("en", "13,450"), ("de", "13.450"), ("fr", "13 450"), ("ru", "13 450")]
)
def test_a_large_count_may_have_a_mark_between_its_thousands_and_a_year_has_none(language: str, shown: str) -> None:
    texts = {fillers.draw({"int": [13450, 13450]}, random.Random(n), language).text for n in range(60)}
    assert texts == {"13450", shown}
    assert fillers.draw({"int": [13450, 13450], "bare": True}, random.Random(0), language).text == "13450"
    assert {fillers.draw({"int": [2024, 2024]}, random.Random(n), language).text for n in range(60)} == {"2024"}


def test_the_numbers_of_a_list_are_typed_in_one_manner_and_can_be_told_apart() -> None:
    spec = {"numbers": {"amount": [1000, 9000, 0.01]}, "count": [4, 4]}
    for language in ("en", "de", "fr"):
        for seed in range(80):
            text = fillers.draw(spec, random.Random(seed), language).text
            assert len({mark for mark in ",." if re.search(rf"\{mark}\d\d(?!\d)", text)}) == 1, text
            assert not re.search(r"\d \d{3}(?!\d).* \d+[,.]\d\d \d", text), text


def test_a_list_may_have_one_most_frequent_value() -> None:
    for spec in ({"numbers": {"int": [1, 3]}, "count": [4, 7]}, {"words": ["a", "b", "c", "a", "b"], "count": [3, 5]}):
        for seed in range(100):
            values = value_of(fillers.draw({**spec, "one_most": True}, random.Random(seed)).code)
            (_, most), (_, second), *_ = [*Counter(values).most_common(2), (None, 0)]
            assert most > second, values


def test_a_pasted_list_without_a_head_has_only_its_rows() -> None:
    spec = {"table": [{"pool": "food"}, {"int": [2, 9]}], "head": "", "rows": [3, 3], "mark": " "}
    firsts = {fillers.draw(spec, random.Random(seed)).text.split("\n")[0] for seed in range(20)}
    assert len(firsts) > 10
    assert all(re.fullmatch(r"\w+ \d", first) for first in firsts)


def test_dates_are_typed_in_the_language_of_the_query() -> None:
    texts = {fillers.draw({"date": ["2024-03-12", "2024-03-12"]}, random.Random(n), "de").text for n in range(40)}
    assert {"12. März 2024", "12.03.2024"} <= texts
    assert not any("March" in text for text in texts)


def test_a_pasted_table_stands_in_the_program_as_it_was_pasted() -> None:
    spec = {"table": [{"pool": "names"}, {"int": [1, 9]}], "head": "name,points", "rows": [2, 2], "mark": ";"}
    value = fillers.draw(spec, random.Random(0))
    assert value.text.startswith("name;points\n")
    assert eval(value.code) == value.text


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_table_is_pasted_in_many_forms_and_its_rows_stand_in_the_program_as_numbers(language: str) -> None:
    columns = [{"pool": "names"}, {"decimal": [-90, 90, 2]}, ["A", "B"]]
    spec = {"table": columns, "head": {"en": "name,points,group"}, "rows": [3, 3], "as_rows": True, "covers": 2}
    forms = set()
    for seed in range(80):
        value = fillers.draw(spec, random.Random(seed), language)
        rows = value_of(value.code)
        head, *lines = value.text.split("\n")
        mark = next(mark for mark in ("| ", "\t", ";", "|", ",") if mark in head)
        forms.add(mark if "|" not in head else head.replace("name", "").replace("points", "").replace("group", ""))
        cells = [[cell.strip() for cell in line.strip("| ").split("|" if "|" in mark else mark)] for line in lines]
        shown = [row for row in cells if set(row[0]) != {"-"}]
        assert [(name, float(number.replace(",", ".")), word) for name, number, word in shown] == rows, value
        assert {word for _, _, word in rows} == {"A", "B"}
    assert forms == {",", ";", "\t", "||", " |  | ", "|  |  |  |"}
    no_head = {fillers.draw({**spec, "head": ""}, random.Random(seed)).text.count("\n") for seed in range(9)}
    assert no_head == {2}
