"""Rows with earlier turns and rows with two requests: exact, balanced, and apart from the hand-written test sets."""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from typing import Any

import pytest
import yaml

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.dataset.assembly import assemble, make_generator
from tool_aware.dataset.deduplication import NEAR_DUPLICATE
from tool_aware.dataset.similarity import nearest
from tool_aware.dataset.splitting import split_rows
from tool_aware.dataset.synthesis import dialogues, double_requests
from tool_aware.dataset.synthesis.content import Content, load_content
from tool_aware.dataset.synthesis.dialogues import FollowUpContent, load_follow_ups
from tool_aware.dataset.synthesis.double_requests import TOOLS, TwoRequests, load_two_requests
from tool_aware.dataset.synthesis.follow_ups import KINDS, FollowUps
from tool_aware.prompt import Turn
from tool_aware.rows import Row, row_problems
from tool_aware.text import normalised

LANGUAGES = {"en", "de", "fr", "es", "it", "nl", "pl", "pt", "tr"}
HAND_WRITTEN = REPOSITORY / "benchmarks/follow_ups"


@pytest.fixture(scope="module")
def content() -> Content:
    return load_content()


def follow_ups(content: Content, config: Config, count: int, follow: FollowUpContent | None = None) -> list[Row]:
    generator = make_generator(config, config.toolbox, content)
    limits, seed = config.conversation, config.dataset.seed
    return FollowUps(follow or load_follow_ups(), generator, config.toolbox, seed=seed, limits=limits).rows(count)


def requests(content: Content, config: Config, count: int) -> list[Row]:
    generator = make_generator(config, config.toolbox, content)
    return TwoRequests(load_two_requests(), generator, config.toolbox, seed=config.dataset.seed).rows(count)


@pytest.fixture(scope="module")
def made(content: Content, config: Config) -> list[Row]:
    return follow_ups(content, config, config.dataset.follow_ups)


@pytest.fixture(scope="module")
def pairs(content: Content, config: Config) -> list[Row]:
    return requests(content, config, config.dataset.two_requests)


# ---- follow-ups -----------------------------------------------------------------------------------------


def test_every_follow_up_is_distinct_fits_its_tool_and_shows_its_history(made: list[Row], config: Config) -> None:
    assert len(made) == config.dataset.follow_ups == len({row.conversation for row in made})
    for row in made:
        item = {"instruction": row.instruction, "response": row.response, "metadata": dict(row.metadata)}
        assert not list(row_problems(item, config.toolbox))
        assert row.history == tuple(Turn(turn["query"], turn["tool"]) for turn in row.metadata["history"])
        assert 1 <= len(row.history) <= config.conversation.max_turns


def test_all_kinds_are_there_in_all_languages(made: list[Row]) -> None:
    kinds = defaultdict(set)
    for row in made:
        kinds[row.metadata["language"]].add(row.metadata["follow_up"])
    assert kinds.keys() >= LANGUAGES
    assert {language: kinds[language] for language in LANGUAGES} == {key: set(KINDS) for key in LANGUAGES}


def test_the_tool_of_the_turn_before_tells_nothing(made: list[Row]) -> None:
    """Each of the four tools is right for about a quarter, and the one used last for about half."""
    tools = Counter(row.tool for row in made)
    assert all(0.2 < count / len(made) < 0.3 for count in tools.values())
    assert 0.4 < sum(row.history[-1].tool == row.tool for row in made) / len(made) < 0.6


def test_the_same_seed_makes_the_same_follow_ups_and_more_only_add(content: Content, config: Config) -> None:
    assert follow_ups(content, config, 200) == follow_ups(content, config, 300)[:200]
    other = config.with_settings({"dataset.seed": 7})
    assert follow_ups(content, other, 200) != follow_ups(content, config, 200)


def test_a_value_that_changes_stands_in_the_call_and_the_old_one_does_not(content: Content, config: Config) -> None:
    """With one dialogue whose slots have values of their own, every ellipsis is checked word by word."""
    part = load_follow_ups().languages["en"]
    dialogue = next(one for one in part.dialogues if one.about == "train connections")
    phrases = dialogues.Phrases(**{**vars(part), "dialogues": (dialogue,)})
    only = FollowUpContent({"en": phrases}, load_follow_ups().reasons)
    rows = [row for row in follow_ups(content, config, 200, only) if row.metadata["follow_up"] == "ellipsis"]
    assert len(rows) > 10
    for row in rows:
        slot = str(row.metadata["template"]).rpartition("-")[2]
        sent, asked = row.answer.parameters["query"], row.history[-1].query
        new = next(value for value in sorted(dialogue.slots[slot], key=len, reverse=True) if value in row.query)
        assert new.split()[-1] in sent
        assert not [value for value in dialogue.slots[slot] if value in asked and value in sent and value not in new]


def test_what_stands_alone_is_sent_without_the_words_that_change_the_topic(made: list[Row]) -> None:
    openers = ("moving on", "next question", "different topic", "another thing", "before i forget")
    opened = [row for row in made if row.query.lower().startswith(openers)]
    assert opened
    assert not [row for row in opened if str(row.answer.parameters).lower().count(openers[0])]


def test_a_repeated_search_asks_for_more_results_than_before(made: list[Row], config: Config) -> None:
    counts = [
        (row.answer.parameters[name], config.toolbox[row.tool].defaults[name])
        for row in made
        if row.metadata["follow_up"] == "retry"
        for name in ("limit", "num_results")
        if name in row.answer.parameters
    ]
    assert counts
    assert sum(asked > default for asked, default in counts) > 0.5 * len(counts)


def test_reasons_quote_the_follow_up(made: list[Row]) -> None:
    for row in made:
        quotes = [part.rstrip("….").casefold() for part in row.answer.reasoning.split('"')[1::2]]
        assert any(part in row.query.casefold() for part in quotes if len(part) > 1), row.answer.reasoning
    assert len({row.answer.reasoning for row in made}) > 0.9 * len(made)


def test_every_program_of_a_follow_up_runs_and_prints(content: Content, made: list[Row], pairs: list[Row]) -> None:
    codes = {row.answer.parameters["code"] for row in [*made, *pairs] if row.tool == "code_execution"}
    assert len(codes) > 300
    for code in codes:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "follow-up", "exec"), {"__name__": "__main__"})
        assert printed.getvalue().strip(), code


def test_no_turn_of_a_held_out_row_was_trained_on(content: Content, config: Config) -> None:
    small = config.with_settings({"dataset.synthetic_per_tool": 100, "dataset.ambiguous": 10})
    rows = assemble(small, content, []).rows
    split = split_rows(rows, small.dataset.splits, small.dataset.seed).rows
    turns = {name: {turn.query for row in part for turn in row.history} for name, part in split.items()}
    groups = {name: {row.metadata["group"] for row in part} for name, part in split.items()}
    for held_out in ("val", "test"):
        assert turns[held_out]
        assert not turns[held_out] & turns["train"]
        assert not groups[held_out] & groups["train"]
        for slice_ in ("follow-up", "two requests"):
            assert [row for row in split[held_out] if row.metadata["slice"] == slice_]


def test_no_other_row_changes_with_the_follow_ups(content: Content, config: Config) -> None:
    settings = {"dataset.synthetic_per_tool": 60, "dataset.ambiguous": 10}
    with_them = config.with_settings({**settings, "dataset.follow_ups": 50, "dataset.two_requests": 30})
    without = config.with_settings({**settings, "dataset.follow_ups": 0, "dataset.two_requests": 0})
    rows = assemble(without, content, []).rows
    more = assemble(with_them, content, []).rows
    assert more[: len(rows)] == rows
    assert len(more) == len(rows) + 80


def test_a_prompt_without_turns_gets_no_follow_ups(content: Content, config: Config) -> None:
    alone = config.model_copy(update={"conversation": config.conversation.model_copy(update={"max_turns": 0})})
    assert alone.synthetic_kinds["follow-up"] == 0
    assert follow_ups(content, alone, 50) == []
    one = config.model_copy(update={"conversation": config.conversation.model_copy(update={"max_turns": 1})})
    assert {len(row.history) for row in follow_ups(content, one, 50)} == {1}


def test_a_tool_of_ones_own_is_followed_up_from_its_examples(content: Content, config: Config) -> None:
    path_tools = [tool for tool in config.tools if tool.name != "rag_retrieval"]
    example = {"query": "book a desk for tomorrow", "parameters": {"day": "tomorrow"}}
    own = path_tools[0].model_validate(
        {
            "name": "desks",
            "description": "Books desks.",
            "parameters": {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]},
            "examples": [{**example, "query": f"book a desk for {day}"} for day in ("Monday", "today", "noon")],
        }
    )
    rows = follow_ups(content, config.model_copy(update={"tools": [*path_tools, own]}), 300)
    assert {row.metadata["follow_up"] for row in rows if row.tool == "desks"} == {"retry", "topic_change"}
    named = {turn.tool for row in rows for turn in row.history} | {row.tool for row in rows}
    assert named == {"desks", *(tool.name for tool in path_tools)}


def test_problems_of_the_content_are_listed_with_their_dialogue(tmp_path: Any) -> None:
    part = yaml.safe_load((dialogues.FOLLOW_UPS_DIR / "en.yaml").read_text(encoding="utf-8"))
    part["dialogues"] = [
        {"tool": "web_search", "about": "x", "ask": "x in {where}", "send": "x", "then": {"pronoun": ["is it?"]}}
    ]
    (tmp_path / "en.yaml").write_text(yaml.safe_dump(part), encoding="utf-8")
    (tmp_path / "reasons.yaml").write_text((dialogues.FOLLOW_UPS_DIR / "reasons.yaml").read_text("utf-8"), "utf-8")
    with pytest.raises(UserError) as caught:
        load_follow_ups(tmp_path)
    assert "unknown slot {where}" in str(caught.value)
    assert "does not say what it sends" in str(caught.value)


# ---- two requests ---------------------------------------------------------------------------------------


def test_every_ordered_pair_of_tools_is_asked_for(pairs: list[Row], config: Config) -> None:
    assert len(pairs) == config.dataset.two_requests
    counts = Counter((row.tool, row.metadata["then_tool"]) for row in pairs)
    assert len(counts) == len(TOOLS) * (len(TOOLS) - 1)
    assert max(counts.values()) < 2 * min(counts.values())
    assert {row.metadata["language"] for row in pairs} >= LANGUAGES


def test_the_first_request_is_called_and_the_other_one_named(pairs: list[Row], config: Config) -> None:
    for row in pairs:
        assert not config.toolbox.problems(row.answer.call)
        assert "what remains is" in row.answer.reasoning
        assert "acceptable_tools" not in row.metadata
    contracts = [row for row in pairs if row.metadata["then_tool"] == "rag_retrieval" and "contract with" in row.query]
    assert contracts
    assert all("our contract with" in row.answer.reasoning for row in contracts)


def test_a_second_request_without_a_name_for_the_rest_is_reported(tmp_path: Any) -> None:
    part = yaml.safe_load(double_requests.TWO_REQUESTS_FILE.read_text(encoding="utf-8"))
    part["languages"]["en"]["second"]["web_search"] = ["look it up"]
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(part), encoding="utf-8")
    with pytest.raises(UserError, match="'look it up': does not say what remains"):
        load_two_requests(path)


# ---- the hand-written test sets -------------------------------------------------------------------------


def test_nothing_of_the_hand_written_sets_is_made(made: list[Row], pairs: list[Row]) -> None:
    conversations = yaml.safe_load((HAND_WRITTEN / "conversations.yaml").read_text(encoding="utf-8"))
    doubles = yaml.safe_load((HAND_WRITTEN / "two_requests.yaml").read_text(encoding="utf-8"))
    whole = ["\n".join([*(turn["query"] for turn in one["history"]), one["query"]]) for one in conversations]
    whole += [one["query"] for one in doubles]
    similar, _, _ = nearest(whole, [row.conversation for row in [*made, *pairs]])
    assert similar.max() < NEAR_DUPLICATE, whole[int(similar.argmax())]
    asked = {normalised(one["query"]) for one in [*conversations, *doubles]}
    typed = {normalised(text) for row in [*made, *pairs] for text in row.conversation.split("\n")}
    assert sorted(asked & typed) == []
