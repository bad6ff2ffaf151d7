"""Content becomes rows: distinct, deterministic, valid, with programs that run and parameters without filler."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.dataset.synthesis import fillers, frames
from tool_aware.dataset.synthesis.content import CONTENT_DIR, Content, load_content
from tool_aware.dataset.synthesis.generator import Example, Generator
from tool_aware.dataset.synthesis.noise import Noise, with_typos
from tool_aware.dataset.synthesis.pools import pools
from tool_aware.rows import Row
from tool_aware.text import normalised
from tool_aware.tools import Tool, Toolbox

ROWS_PER_TOOL = int(os.environ.get("ROWS_PER_TOOL", "0"))  # at least; 20,000 in docs/benchmarks/dataset.md
PROBES = sorted((REPOSITORY / "benchmarks/probe").glob("*.yaml"))


@pytest.fixture(scope="module")
def content() -> Content:
    return load_content()


def generate(content: Content, tools: Toolbox, per_tool: int, **options) -> dict[str, list[Row]]:
    generator = Generator(content, tools, seed=options.pop("seed", 1), **options)
    return {name: generator.rows_for(name, per_tool) for name in tools.names}


@pytest.fixture(scope="module")
def made(content: Content, config: Config) -> dict[str, list[Row]]:
    return generate(content, config.toolbox, 1500)


# ---- frames and fillers ---------------------------------------------------------------------------------


def test_a_frame_expands_into_sentence_evidence_and_argument() -> None:
    said = frames.expand("(find|find) *our {doc}* (please|please) => {doc}", {"doc": "price list"}, random.Random(0))
    assert said == frames.Expansion("find our price list please", "our price list", "price list")


def test_fillers_may_contain_the_marks_of_a_frame() -> None:
    said = frames.expand("run {code}", {"code": "a * b * (x|y) {z}"}, random.Random(0))
    assert said.text == "run a * b * (x|y) {z}"


@pytest.mark.parametrize("pattern", ["*odd", "{nowhere} x", "a => b => c", " => only the argument"])
def test_a_broken_frame_is_reported(pattern: str) -> None:
    assert frames.problems_of(pattern, {"doc"})


def test_programs_keep_the_braces_that_are_not_slots() -> None:
    assert frames.fill_known("print(f'{x} {y}')", {"x": "3"}) == "print(f'3 {y}')"


def test_a_date_reads_as_people_write_it_and_runs_as_python() -> None:
    value = fillers.draw({"date": ["2024-02-29", "2024-02-29"]}, random.Random(0))
    assert "29" in value.text
    assert value.code == "date(2024, 2, 29)"


def test_an_unknown_filler_is_refused() -> None:
    with pytest.raises(ValueError, match="describes no filler"):
        fillers.draw({"colour": "red"}, random.Random(0))


def test_content_problems_are_listed_all_at_once(tmp_path: Path) -> None:
    for name in ("mix", "fillers", "reasons", "noise", "search_words"):
        (tmp_path / f"{name}.yaml").write_text("{plain: 1}" if name == "mix" else "{}")
    (tmp_path / "frames").mkdir()
    block = {"tool": "web_search", "slice": "strange", "say": ["{nothing} *here", "fine"]}
    alike = {"tool": "web_search", "id_prefix": "news", "say": {"es": ["*moda*"], "pt": ["*moda*"]}}
    (tmp_path / "frames/bad.yaml").write_text(yaml.safe_dump([block, alike]))
    with pytest.raises(UserError) as caught:
        load_content(tmp_path)
    for part in (
        "unknown slot {nothing}",
        "odd number",
        "slice 'strange'",
        "no web_search.plain",
        "in another language",
    ):
        assert part in str(caught.value)


# ---- rows -----------------------------------------------------------------------------------------------


def test_every_row_is_distinct_and_fits_its_tool(made: dict[str, list[Row]], config: Config) -> None:
    rows = [row for part in made.values() for row in part]
    assert len({normalised(row.query) for row in rows}) == len(rows) == 6000
    for tool, part in made.items():
        for row in part:
            assert row.tool == tool == row.answer.tool
            assert config.toolbox.problems(row.answer.call) == []


def test_the_same_seed_makes_the_same_rows_and_another_seed_others(content: Content, config: Config) -> None:
    first, again = (generate(content, config.toolbox, 60, seed=5) for _ in range(2))
    other = generate(content, config.toolbox, 60, seed=6)
    assert first == again
    assert first != other


def test_asking_for_more_rows_only_adds_rows(content: Content, config: Config) -> None:
    few = Generator(content, config.toolbox, seed=3).rows_for("web_search", 50)
    many = Generator(content, config.toolbox, seed=3).rows_for("web_search", 90)
    assert many[:50] == few


def test_as_many_distinct_rows_as_the_default_asks_for_can_be_made_for_every_tool(
    content: Content, config: Config
) -> None:
    wanted = {tool: max(rows, ROWS_PER_TOOL) for tool, rows in config.synthetic_by_tool.items()}
    generator = Generator(content, config.toolbox, seed=1)
    assert {tool: len(generator.rows_for(tool, rows)) for tool, rows in wanted.items()} == wanted


def test_every_program_runs_and_prints(content: Content, config: Config) -> None:
    generator = Generator(content, config.toolbox, seed=2)
    frames_of_programs = [frame for frame in content.frames if frame.tool == "code_execution"]
    assert len(frames_of_programs) > 2000
    for frame in frames_of_programs:
        request = generator.request(frame, "run")
        code = request.call.parameters["code"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, request.query, "exec"), {"__name__": "__main__"})
        assert printed.getvalue().strip(), f"{request.query}\n{code}"


def test_a_search_query_leaves_out_the_filler_of_the_sentence(made: dict[str, list[Row]]) -> None:
    rows = [row for tool in ("rag_retrieval", "web_search") for row in made[tool]]
    shorter = sum(len(row.answer.parameters["query"]) < len(row.query) for row in rows)
    assert shorter / len(rows) > 0.8
    assert not any(row.answer.parameters["query"].startswith(("please", "can you", "hey")) for row in rows)


def test_a_number_of_results_that_is_asked_for_is_sent_even_if_it_is_the_default(made: dict[str, list[Row]]) -> None:
    for tool, name in (("rag_retrieval", "limit"), ("web_search", "num_results")):
        counted = [row for row in made[tool] if name in row.answer.parameters]
        assert {row.metadata["slice"] for row in counted} == {"number", "language"}
        assert all(name in row.answer.parameters for row in made[tool] if row.metadata["slice"] == "number")
        for row in counted:
            words = {word: number for number, word in pools()["counts"].get(row.metadata["language"], {}).items()}
            words |= {"one": 1, "single": 1} if row.metadata["language"] == "en" else {}
            said = {words.get(word) or (int(word) if word.isdigit() else 0) for word in normalised(row.query).split()}
            if not set(normalised(row.query).split()) & {*words, *map(str, range(30))}:
                continue  # the number itself was mistyped
            assert row.answer.parameters[name] in said, row.query


def test_reasons_quote_the_query_and_vary(made: dict[str, list[Row]]) -> None:
    for part in made.values():
        reasons = [row.answer.reasoning for row in part]
        assert all('"' in reason for reason in reasons)
        assert len(set(reasons)) / len(reasons) > 0.6
        assert Counter(reasons).most_common(1)[0][1] < len(reasons) * 0.03


def test_all_hard_slices_and_many_languages_are_present_and_counted(made: dict[str, list[Row]]) -> None:
    rows = [row for part in made.values() for row in part]
    slices = Counter(row.metadata["slice"] for row in rows)
    wanted = ("lexical_trap", "contrast", "fresh_or_stable", "write_or_run", "internal_or_public", "negation", "decoy")
    wanted += ("injection", "typos", "number")
    assert all(slices[name] >= 20 for name in wanted), slices
    assert len({row.metadata["language"] for row in rows}) >= 7
    lengths = [len(row.query.split()) for row in rows]
    assert min(lengths) <= 2
    assert 85 <= max(lengths) <= 120


def test_contrast_pairs_share_their_fillers_and_differ_in_tool(made: dict[str, list[Row]]) -> None:
    groups = defaultdict(set)
    for part in made.values():
        for row in part:
            if row.metadata["slice"] == "contrast":
                groups[row.metadata["group"]].add(row.tool)
    assert sum(len(tools) > 1 for tools in groups.values()) >= 0.9 * len(groups)


def test_ambiguous_rows_name_every_tool_that_is_right(content: Content, config: Config) -> None:
    rows = Generator(content, config.toolbox, seed=1).ambiguous_rows(150)
    assert len(rows) == 150
    for row in rows:
        assert len(row.acceptable_tools) == 2
        assert row.tool in row.acceptable_tools


def test_nothing_of_the_probes_is_in_the_content(made: dict[str, list[Row]]) -> None:
    slices = [part for path in PROBES for part in yaml.safe_load(path.read_text(encoding="utf-8")).values()]
    queries = [query for tools in slices if isinstance(tools, dict) for part in tools.values() for query in part]
    queries += [item["query"] for items in slices if isinstance(items, list) for item in items]  # with their calls
    probe = {normalised(query) for query in queries if len(query) > 15}  # greetings are the same everywhere
    assert len(probe) > 550
    assert not probe & {normalised(row.query) for part in made.values() for row in part}


LANGUAGES_IN_DEPTH = ("de", "es", "fr", "it", "nl", "pl", "pt")


def test_each_tool_has_many_phrasings_in_each_of_the_languages_covered_in_depth(content: Content) -> None:
    patterns = Counter((frame.language, frame.tool) for frame in content.frames)
    tools = {frame.tool for frame in content.frames}
    assert min(patterns[language, tool] for language in LANGUAGES_IN_DEPTH for tool in tools) >= 30


# ---- tools of the user ----------------------------------------------------------------------------------


def test_a_tool_that_is_not_on_offer_does_not_appear(content: Content, config: Config) -> None:
    tools = Toolbox(tool for tool in config.toolbox if tool.name != "web_search")
    generator = Generator(content, tools, seed=1)
    rows = [row for name in tools.names for row in generator.rows_for(name, 400)] + generator.ambiguous_rows(60)
    assert not any("web_search(" in row.instruction for row in rows)
    assert not any("web_search" in row.acceptable_tools for row in rows)


def test_a_fifth_tool_is_learnt_from_its_examples(content: Content, config: Config) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = Toolbox([*config.toolbox, Tool("weather", "Weather", schema)])
    examples = {"weather": [Example(f"is it windy in {city}", {"city": city}) for city in ("Oslo", "Bari", "Kiel")]}
    rows = Generator(content, tools, seed=1, examples=examples).rows_for("weather", 60)
    assert len(rows) == 60
    for row in rows:
        assert row.answer.parameters["city"].lower() in row.query.lower()
    assert len({row.metadata["group"] for row in rows}) == 3


@pytest.mark.parametrize(
    ("properties", "needed", "is_usable"),
    [
        ({"what": {"type": "string"}}, ["what"], True),
        ({"what": {"type": "string"}, "from": {"type": "string"}}, ["what", "from"], False),
        ({"url": {"type": "string", "format": "uri"}}, ["url"], False),
        ({"unit": {"enum": ["km", "mi"]}}, ["unit"], False),
        ({"paths": {"type": "array", "items": {"type": "string"}}}, ["paths"], False),
        ({"page": {"type": "integer"}}, [], True),
    ],
)
def test_an_example_without_parameters_is_only_for_a_call_that_a_query_says(content, properties, needed, is_usable):
    schema = {"type": "object", "properties": properties, "required": needed}
    tools = Toolbox([Tool("one", "d", schema), Tool("two", "d", schema)])
    examples = {name: [Example(f"what {word}?") for word in ("a", "b", "c")] for name in ("one", "two")}
    generator = Generator(content, tools, seed=1, examples=examples)
    if is_usable:
        generator.check_examples(tools.names)
        return
    with pytest.raises(UserError, match=f"does not say what to send as {', '.join(needed)}") as caught:
        generator.check_examples(tools.names)
    assert "2 problems" in str(caught.value)
    assert "one: examples.0, examples.1, examples.2 without parameters" in str(caught.value)


def test_a_tool_with_neither_content_nor_examples_is_an_error_that_says_what_to_do(
    content: Content, config: Config
) -> None:
    tools = Toolbox([*config.toolbox, Tool("weather", "Weather")])
    with pytest.raises(UserError, match="weather") as caught:
        Generator(content, tools, seed=1).rows_for("weather", 10)
    assert "examples" in str(caught.value)


def test_only_the_wanted_slices_are_made(content: Content, config: Config) -> None:
    rows = generate(content, config.toolbox, 200, slices=["plain", "terse"])
    assert {row.metadata["slice"] for part in rows.values() for row in part} == {"plain", "terse"}


def test_an_unknown_slice_is_refused_with_the_known_ones(content: Content, config: Config) -> None:
    with pytest.raises(UserError, match="plian") as caught:
        Generator(content, config.toolbox, seed=1, slices=["plian"])
    assert "lexical_trap" in str(caught.value)


# ---- noise ----------------------------------------------------------------------------------------------


def test_typos_leave_protected_words_alone() -> None:
    for seed in range(200):
        text = with_typos("reverse the string Lagerregal quickly", "Lagerregal", random.Random(seed))
        assert "Lagerregal" in text


def test_noise_never_changes_what_a_program_is_about(content: Content, config: Config) -> None:
    noise = Noise(content.noise)
    others = ["web_search", "rag_retrieval", "direct_chat"]
    for seed in range(500):
        noisy = noise.apply(
            'md5 of "Hello World."',
            tool="code_execution",
            other_tools=others,
            protected="Hello World.",
            random_=random.Random(seed),
        )
        assert "Hello World." in noisy.text


@pytest.mark.parametrize("data", ["honey, milk, figs", "Anna, Ben, Clara"])
def test_data_at_the_start_of_a_request_keeps_its_small_or_capital_letter(content: Content, data: str) -> None:
    for kind in ("injection", "decoy", "negation", "several_sentences", "chatty"):
        noise = Noise({**content.noise, "probabilities": {kind: 1.0}})
        for seed in range(60):
            noisy = noise.apply(
                f"{data}: pick one of them",
                tool="code_execution",
                other_tools=["web_search", "direct_chat"],
                protected=data,
                random_=random.Random(seed),
            )
            assert noisy.slice == kind
            assert data in noisy.text


def test_a_text_at_the_end_of_a_request_gets_no_full_stop(content: Content) -> None:
    for kind in ("injection", "decoy", "negation", "several_sentences"):
        noise = Noise({**content.noise, "probabilities": {kind: 1.0}})
        for seed in range(60):
            noisy = noise.apply(
                "md5 of file-7.txt",
                tool="code_execution",
                other_tools=["web_search", "direct_chat"],
                protected="file-7.txt",
                random_=random.Random(seed),
            )
            assert "file-7.txt." not in noisy.text
            assert noisy.text == noisy.text.strip()


def test_the_right_tool_is_never_the_one_that_is_ruled_out(content: Content) -> None:
    settings = {**content.noise, "probabilities": {"negation": 1.0}}
    forbidden = content.noise["actions"]["web_search"]
    others = ["rag_retrieval", "code_execution", "direct_chat"]
    for seed in range(300):
        noisy = Noise(settings).apply(
            "who won the match", tool="web_search", other_tools=others, protected="", random_=random.Random(seed)
        )
        assert noisy.slice == "negation"
        assert not any(action in noisy.text for action in forbidden)


def test_control_tokens_of_the_user_cannot_open_a_turn(made: dict[str, list[Row]]) -> None:
    hostile = [row for part in made.values() for row in part if row.metadata["slice"] == "injection"]
    assert any("</s>" in row.query for row in hostile)
    assert not any("[INST]" in row.instruction or "[/INST]" in row.instruction for row in hostile)


def test_content_files_are_small_enough_to_edit() -> None:
    assert all(path.stat().st_size < 80_000 for path in CONTENT_DIR.rglob("*.yaml"))
    assert json.dumps(yaml.safe_load((CONTENT_DIR / "mix.yaml").read_text()))
