"""Rows are compared as conversations: the same words after other turns are another row, the same turns are one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tool_aware.console import UserError
from tool_aware.data_folder import read_data_folder, refuse_test_rows_in_train
from tool_aware.dataset import similarity
from tool_aware.dataset.data_check import leakage
from tool_aware.dataset.deduplication import NEAR_DUPLICATE, deduplicate
from tool_aware.dataset.earlier_splits import read_earlier_splits
from tool_aware.dataset.similarity import Compared, GramIndex, nearest
from tool_aware.dataset.splitting import split_rows
from tool_aware.lineage import rows_seen_in_training
from tool_aware.prompt import Turn, render_instruction, render_response
from tool_aware.rows import LoadedRows, Row, write_rows
from tool_aware.tools import ToolCall

LEAVE = "how many days of parental leave do people in our Swedish office get"
GOLD = "what did an ounce of gold cost at the end of last week in London"


def row(config, query, *earlier, tool="web_search", **details):
    history = [Turn(text, "rag_retrieval") for text in earlier]
    call = ToolCall(tool, {"message" if tool == "direct_chat" else "query": query}, "because")
    instruction = render_instruction(query, config.toolbox, history)
    return Row(instruction, render_response(call), {"source": "test", "tool": tool, **details})


def test_the_same_words_after_other_turns_are_another_row(config):
    rows = [
        row(config, "and in Germany?"),
        row(config, "and in Germany?", LEAVE),
        row(config, "and in Germany?", GOLD),
        row(config, "And in GERMANY", f"{LEAVE}?"),  # the same conversation once more
    ]
    kept = deduplicate(rows)
    assert (kept.rows, kept.exact, kept.near) == (rows[:3], 1, 0)


def test_short_questions_after_the_same_long_one_are_no_near_duplicates(config):
    rows = [row(config, LEAVE), row(config, "thanks", LEAVE, tool="direct_chat"), row(config, "and dads?", LEAVE)]
    assert deduplicate(rows).rows == rows
    assert deduplicate([*rows, row(config, "and dads?", LEAVE.replace("Swedish", "swedisch"))]).near == 1


def of_the_first_two(index: GramIndex) -> float:
    return index.similarities(np.array([0]), np.array([1]))[0]


@pytest.mark.parametrize("most", [similarity.EXACT_PAIRS, 0])
def test_conversations_are_as_similar_as_the_less_similar_of_whole_and_query(monkeypatch, most):
    monkeypatch.setattr(similarity, "EXACT_PAIRS", most)
    texts = [LEAVE, Compared(f"{LEAVE}\nand dads?", "and dads?"), Compared(f"{LEAVE}\nand dads", "and dads"), GOLD]
    index = GramIndex(texts)
    whole = GramIndex([LEAVE, f"{LEAVE}\nand dads?"])
    assert of_the_first_two(whole) > NEAR_DUPLICATE  # which is why the query counts too
    assert of_the_first_two(index) == of_the_first_two(GramIndex([LEAVE, "and dads?"]))
    assert [(pair.first, pair.second) for pair in index.pairs(NEAR_DUPLICATE)] == [(1, 2)]
    values, indices, _ = nearest(texts[1:2], texts[2:])
    assert (values[0], indices[0]) == (pytest.approx(1.0), 0)


def test_no_conversation_that_was_taught_is_held_out_and_follow_ups_to_other_turns_may_be(config, tmp_path):
    random_ = random.Random(1)
    starts = [" ".join(f"{random_.choice('abcdefgh')}{random_.randrange(10**6)}" for _ in range(6)) for _ in range(150)]
    write_rows(tmp_path / "train.json", [row(config, "and in Germany?", start) for start in starts[:60]])
    rows = [row(config, "and in Germany?", start) for start in starts]
    split = split_rows(rows, [0.6, 0.2, 0.2], 1, read_earlier_splits(tmp_path))
    held_out = {item.history[0].query for name in ("val", "test") for item in split.rows[name]}
    assert len(held_out) > 50
    assert not held_out & set(starts[:60])
    assert split.dropped_after_check == 0


def test_rows_of_the_same_conversation_in_train_and_test_are_refused_and_others_are_not(config, tmp_path):
    train = [row(config, "and in Germany?", LEAVE)]
    other, same = row(config, "and in Germany?", GOLD), row(config, "and in Germany", LEAVE.upper())
    refuse_test_rows_in_train([other], train, tmp_path)
    with pytest.raises(UserError, match=r"row 2 is row 1 of train\.json"):
        refuse_test_rows_in_train([other, same], train, tmp_path)
    assert rows_seen_in_training([other, same], frozenset(item.identity for item in train)) == [2]
    (found,) = leakage({"train": LoadedRows(train, ""), "test": LoadedRows([other, same], "")})
    assert (found.exact, found.near) == (1, 0)


def test_files_of_different_runs_are_told_apart_by_conversations(config, tmp_path):
    write_rows(tmp_path / "train.json", [row(config, "and in Germany?", LEAVE)])
    write_rows(tmp_path / "val.json", [row(config, "and in Germany?", GOLD)])
    (tmp_path / "manifest.json").write_text(
        '{"stage": "prepare_dataset", "outputs": {"train.json": "0", "val.json": "0"}, "config": {}}'
    )
    assert set(read_data_folder(tmp_path, config.toolbox).changed) == {"train", "val"}
    write_rows(tmp_path / "val.json", [row(config, "and in Germany?", LEAVE)])
    with pytest.raises(UserError, match=r"val\.json: row 1 is row 1 of train\.json"):
        read_data_folder(tmp_path, config.toolbox)
