"""Near-duplicates are found, groups stay together, and nothing that was planted leaks into a held-out split."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.dataset import similarity
from tool_aware.dataset.deduplication import NEAR_DUPLICATE, deduplicate
from tool_aware.dataset.earlier_splits import EarlierSplits, read_earlier_splits
from tool_aware.dataset.similarity import GramIndex, nearest
from tool_aware.dataset.splitting import split_rows
from tool_aware.dataset.synthesis.content import load_content
from tool_aware.dataset.synthesis.generator import Generator
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import SPLITS, Row, write_rows
from tool_aware.text import normalised
from tool_aware.tools import ToolCall

FRACTIONS = [0.8, 0.1, 0.1]
WORDS = (
    "apple",
    "river",
    "stone",
    "cloud",
    "engine",
    "paper",
    "window",
    "garden",
    "market",
    "silver",
    "travel",
    "circle",
)


def row(config: Config, query: str, tool: str = "web_search", **details) -> Row:
    name = "query" if tool in ("web_search", "rag_retrieval") else "message"
    call = ToolCall(tool, {name: query}, "because")
    return Row(
        render_instruction(query, config.toolbox), render_response(call), {"source": "test", "tool": tool, **details}
    )


def sentence(random_: random.Random, words: int = 9) -> str:
    return " ".join(random_.choice(WORDS) + str(random_.randrange(1000)) for _ in range(words))


def expected_cosine(a: str, b: str) -> float:
    sets = [{t[i : i + 3] for i in range(len(t) - 2)} for t in (f" {normalised(a)} ", f" {normalised(b)} ")]
    return len(sets[0] & sets[1]) / (len(sets[0]) * len(sets[1])) ** 0.5


def test_similarity_is_the_cosine_of_trigram_sets() -> None:
    texts = ["The price of tea", "the prices of teas!", "日本の天気は？", "a", ""]
    index = GramIndex(texts)
    for a in range(4):
        for b in range(4):
            assert index.similarities(np.array([a]), np.array([b]))[0] == pytest.approx(
                expected_cosine(texts[a], texts[b])
            )


def test_queries_that_differ_in_case_width_or_punctuation_only_are_the_same(config: Config) -> None:
    rows = [row(config, query) for query in ("What is vLLM?", "what is vllm", "WHAT is ｖLLM!!", "what's vLLM")]
    kept = deduplicate(rows)
    assert kept.exact == 2
    assert kept.rows[0].query == "What is vLLM?"


def test_operators_make_a_difference(config: Config) -> None:
    assert deduplicate([row(config, "compute 3 + 4"), row(config, "compute 3 * 4")]).exact == 0


@pytest.mark.parametrize("path", ["exact", "banded"])
def test_planted_near_duplicates_are_found_on_both_paths(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "banded":
        monkeypatch.setattr(similarity, "EXACT_PAIRS", 0)
    random_ = random.Random(4)
    texts = [sentence(random_) for _ in range(600)]
    planted = [(number, 600 + number) for number in range(200)]
    texts += [texts[number][:-2] + "xy" for number, _ in planted]
    found = {(pair.first, pair.second) for pair in GramIndex(texts).pairs(NEAR_DUPLICATE)}
    assert len(set(planted) & found) >= 198
    for a, b in found:
        assert expected_cosine(texts[a], texts[b]) >= NEAR_DUPLICATE - 1e-6


def test_the_nearest_text_is_the_nearest_by_brute_force() -> None:
    random_ = random.Random(5)
    texts, others = [sentence(random_, 4) for _ in range(40)], [sentence(random_, 4) for _ in range(90)]
    values, indices, is_exhaustive = nearest(texts, others)
    assert is_exhaustive
    brute = np.array([[expected_cosine(a, b) for b in others] for a in texts])
    assert values == pytest.approx(brute.max(axis=1), abs=1e-5)
    assert all(brute[at, index] == pytest.approx(brute[at].max(), abs=1e-5) for at, index in enumerate(indices))


def test_above_so_many_comparisons_the_nearest_text_is_the_best_of_the_banded_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(similarity, "EXACT_PAIRS", 0)
    monkeypatch.setattr(similarity, "CHUNK_ROWS", 7)  # so that pairs come in several parts
    random_ = random.Random(6)
    others = [sentence(random_) for _ in range(90)]
    texts = [text[:-2] + "xy" for text in others[:40]]
    values, indices, is_exhaustive = nearest(texts, others)
    assert not is_exhaustive
    sides = ["text"] * len(texts) + ["other"] * len(others)
    best: dict[int, tuple[float, int]] = {}
    for pair in GramIndex([*texts, *others]).pairs(0.3, sides):
        best[pair.first] = max(best.get(pair.first, (0.0, 0)), (pair.similarity, -pair.second + len(texts)))
    assert len(best) >= 38
    assert [round(value, 9) for value in values] == [round(best.get(at, (0.0, 0))[0], 9) for at in range(len(texts))]
    assert indices.tolist() == [-best[at][1] if at in best else -1 for at in range(len(texts))]


def test_near_duplicates_within_a_group_stay_and_across_groups_go(config: Config) -> None:
    rows = [
        row(config, "what is our travel policy for trains", group="a"),
        row(config, "what is our travel polcy for trains", group="a"),
        row(config, "what is our travel policy for train", group="b"),
    ]
    kept = deduplicate(rows)
    assert [item.metadata["group"] for item in kept.rows] == ["a", "a"]
    assert kept.near == 1


def test_nothing_planted_leaks(config: Config) -> None:
    """Duplicates, paraphrases of one template, one long session, and look-alikes of other groups."""
    random_ = random.Random(6)
    rows = [row(config, sentence(random_), group=f"t{number}") for number in range(300)]
    rows += [row(config, rows[number].query.upper() + "!", group=f"dup{number}") for number in range(40)]
    rows += [row(config, rows[number].query + " pls", group=f"near{number}") for number in range(40)]
    rows += [row(config, f"find the {word} report of team {sentence(random_, 1)}", group="template") for word in WORDS]
    rows += [row(config, sentence(random_), group="session-1") for _ in range(20)]
    split = split_rows(deduplicate(rows).rows, FRACTIONS, seed=1)
    assert split.leaks == []
    assert len(split.nearest) == len(split.rows["val"]) + len(split.rows["test"]) > 50
    for name in ("val", "test"):
        for held_out in split.rows[name]:
            assert max(expected_cosine(held_out.query, other.query) for other in split.rows["train"]) < NEAR_DUPLICATE
    where = {}
    for name in SPLITS:
        for item in split.rows[name]:
            assert where.setdefault(item.metadata["group"], name) == name


def test_a_leak_that_deduplication_did_not_see_is_dropped_and_counted(config: Config) -> None:
    random_ = random.Random(7)
    rows = [row(config, sentence(random_), group=f"g{number}") for number in range(200)]
    rows += [row(config, item.query + "s", group=f"late{number}") for number, item in enumerate(rows)]
    split = split_rows(rows, FRACTIONS, seed=1)
    assert split.dropped_after_check > 0
    assert split.leaks == []


def test_splits_are_stratified_by_tool_and_slice(config: Config) -> None:
    generator = Generator(load_content(), config.toolbox, seed=1)
    rows = deduplicate([item for name in config.toolbox.names for item in generator.rows_for(name, 300)]).rows
    split = split_rows(rows, FRACTIONS, seed=1)
    for name, fraction in zip(SPLITS, FRACTIONS, strict=True):
        part = split.rows[name]
        assert len(part) / len(rows) == pytest.approx(fraction, abs=0.02)
        tools = Counter(item.tool for item in part)
        assert all(tools[tool] / len(part) == pytest.approx(0.25, abs=0.06) for tool in config.toolbox.names)
    common = [name for name, count in Counter(item.metadata["slice"] for item in rows).items() if count >= 60]
    assert len(common) >= 6
    for name in ("val", "test"):
        assert set(common) <= {item.metadata["slice"] for item in split.rows[name]}


@pytest.mark.parametrize("groups", [3, 4, 7])
def test_a_tool_of_a_few_large_groups_reaches_every_split(config: Config, groups: int) -> None:
    random_ = random.Random(12)
    rows = [row(config, sentence(random_), group=f"w{number // 3}") for number in range(300)]
    rows += [row(config, sentence(random_), "direct_chat", group=f"d{n % groups}") for n in range(40 * groups)]
    split = split_rows(rows, FRACTIONS, seed=1)
    held = {
        name: {item.metadata["group"] for item in split.rows[name] if item.tool == "direct_chat"} for name in SPLITS
    }
    assert all(held.values())
    assert sum(map(len, held.values())) == groups


def test_the_same_seed_gives_the_same_split_and_another_seed_another(config: Config) -> None:
    rows = [row(config, sentence(random.Random(number)), group=str(number)) for number in range(100)]
    first, again, other = (split_rows(rows, FRACTIONS, seed) for seed in (1, 1, 2))
    assert first.rows == again.rows
    assert first.rows["test"] != other.rows["test"]


# ---- the splits of an earlier data set ------------------------------------------------------------------


def written(folder: Path, split: dict[str, list[Row]]) -> EarlierSplits:
    for name, rows in split.items():
        write_rows(folder / f"{name}.json", rows)
    return read_earlier_splits(folder)


def queries(rows: list[Row]) -> set[str]:
    return {" ".join(item.query.casefold().split()) for item in rows}


def shared(earlier: dict[str, list[Row]], later: dict[str, list[Row]]) -> tuple[int, int]:
    """Queries of the earlier train that are held out later, and the other way round."""

    def held_out(parts: dict[str, list[Row]]) -> set[str]:
        return queries([*parts["val"], *parts["test"]])

    return len(queries(earlier["train"]) & held_out(later)), len(held_out(earlier) & queries(later["train"]))


def test_added_rows_leave_earlier_ones_in_their_split_if_it_is_named(config: Config, tmp_path: Path) -> None:
    random_ = random.Random(8)
    rows = [row(config, sentence(random_), group=f"g{number // 3}") for number in range(600)]
    first = split_rows(rows, FRACTIONS, seed=1).rows
    again = [row(config, f" {item.query.upper()}", group=item.metadata["group"]) for item in rows]
    more = [*(row(config, sentence(random_), session=f"s{number // 5}") for number in range(80)), *again]
    assert min(shared(first, split_rows(more, FRACTIONS, seed=1).rows)) > 50
    split = split_rows(more, FRACTIONS, 1, written(tmp_path, first))
    assert shared(first, split.rows) == (0, 0)
    assert sum(split.kept_in_place.values()) == 600
    assert split.dropped_as_trained_on == 0
    for name, fraction in zip(SPLITS, FRACTIONS, strict=True):
        assert len(split.rows[name]) / 680 == pytest.approx(fraction, abs=0.02)


def test_a_group_that_was_on_both_sides_is_held_out_without_what_was_taught(config: Config, tmp_path: Path) -> None:
    random_ = random.Random(9)
    rows = [row(config, sentence(random_)) for _ in range(90)]
    earlier = {"train": rows[:40], "val": rows[40:50], "test": [*rows[50:60], rows[0]]}
    sessions = [row(config, item.query, session=f"s{number % 10}") for number, item in enumerate(rows[:60])]
    split = split_rows([*sessions, *rows[60:]], FRACTIONS, 1, written(tmp_path, earlier))
    assert shared(earlier, split.rows) == (0, 0)
    assert split.dropped_as_trained_on == 40
    assert queries(rows[50:60]) <= queries(split.rows["test"])


def test_a_held_out_row_that_nearly_says_what_was_taught_earlier_is_dropped(config: Config, tmp_path: Path) -> None:
    random_ = random.Random(10)
    taught, rows = [[row(config, sentence(random_)) for _ in range(200)] for _ in range(2)]
    nearly = [row(config, item.query + "s") for item in taught]
    split = split_rows([*rows, *nearly], FRACTIONS, 1, written(tmp_path, {"train": taught}))
    assert split.dropped_after_check > 20
    assert not queries(nearly) & queries([*split.rows["val"], *split.rows["test"]])


def test_a_template_stays_on_its_side_when_it_says_other_things(config: Config, tmp_path: Path) -> None:
    random_ = random.Random(11)
    before, after = ([row(config, sentence(random_), group=f"g{n // 4}") for n in range(200)] for _ in range(2))
    first = split_rows(before, FRACTIONS, seed=1).rows
    later = split_rows(after, FRACTIONS, 5, written(tmp_path, first)).rows
    for name in SPLITS:
        groups = ({item.metadata["group"] for item in parts[name]} for parts in (first, later))
        assert next(groups) == next(groups)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no train.json"), ('{"a": 1}', "line 1: is no row"), ("[3]", "row 1: is no row")]
)
def test_a_folder_without_earlier_rows_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    if text:
        (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_earlier_splits(tmp_path)
