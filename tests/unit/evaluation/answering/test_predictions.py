import json

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.console import Fallbacks, UserError
from tool_aware.evaluation.answering.predictions import PredictionLog, read_answers
from tool_aware.evaluation.scoring.judgement import Prediction

ORIGIN = {"dataset": "abc", "model": "m"}


def filled(path, rows, origin=ORIGIN):
    log = PredictionLog(path, origin)
    with log.appending() as append:
        for row in rows:
            append([Prediction(row, f"answer {row}\nline", new_tokens=row)])
    return path


def test_answers_are_read_back_by_a_later_run(tmp_path):
    path = filled(tmp_path / "a.jsonl", [3, 1])
    assert PredictionLog(path, ORIGIN).done[3] == Prediction(3, "answer 3\nline", new_tokens=3)
    filled(path, [2])
    assert sorted(PredictionLog(path, ORIGIN).done) == [1, 2, 3]


def test_a_line_cut_short_by_a_kill_is_dropped_and_the_rest_kept(tmp_path):
    path = filled(tmp_path / "a.jsonl", [0, 1])
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        expected = [0, 1] if cut == 1 else [0]  # without its line end, a line may still be whole
        assert sorted(PredictionLog(path, ORIGIN).done) == expected
        filled(path, [2])
        assert sorted(PredictionLog(path, ORIGIN).done) == [*expected, 2]


def test_answers_of_another_origin_are_not_continued(tmp_path):
    path = filled(tmp_path / "a.jsonl", [0, 1])
    assert PredictionLog(path, {**ORIGIN, "model": "other"}).done == {}
    assert sorted(PredictionLog(path, {**ORIGIN, "model": "other"}, ignored=["model"]).done) == [0, 1]


@pytest.mark.parametrize(
    "content",
    [
        '["one", "two"]',
        '[{"text": "two", "row": 1}, {"text": "one", "row": 0}]',
        '"one"\n"two"\n',
        '{"origin": {}}\n{"text": "one", "row": 0}\n{"text": "two", "row": 1}\n',
    ],
)
def test_answers_made_elsewhere_come_as_json_or_jsonl(tmp_path, content):
    (tmp_path / "answers").write_text(content)
    assert [p.text for p in read_answers(tmp_path / "answers", 2, Fallbacks())] == ["one", "two"]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["one"], ["no answer for 1 of 2 rows: 1"]),
        (["one", {"txt": "two"}, 5], ["item 2: needs text", "item 3: needs text"]),
        ([{"text": "a", "row": 0}, {"text": "b", "row": 0}], ["row 0 is answered twice"]),
        ([{"text": "a", "row": 7}], ["row 7 is not in the test file (0 to 1)"]),
    ],
)
def test_all_problems_of_a_predictions_file_are_named_at_once(tmp_path, items, words):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(items))
    with pytest.raises(UserError) as caught:
        read_answers(path, 2, Fallbacks())
    assert all(word in str(caught.value) for word in words)


# ---- answers as other programs write them -----------------------------------------------------------------------

CASES = REPOSITORY / "tests" / "cases" / "predictions"
ROWS = 12


@pytest.mark.parametrize(
    "name", ["good.json", "bom.jsonl", "blank_lines.jsonl", "utf16.jsonl", "openai_batch.jsonl", "row_string.jsonl"]
)
def test_answers_are_read_however_they_are_stored(name):
    good = read_answers(CASES / "good.json", ROWS, Fallbacks())
    assert read_answers(CASES / name, ROWS, Fallbacks()) == good


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("null_text.jsonl", 'item 3: "text" is null'),
        ("plain.txt", "is neither a JSON array nor JSON Lines"),
        ("short.jsonl", "no answer for 2 of 12 rows: 10, 11"),
        ("twice.jsonl", "item 2: row 0 is answered twice"),
    ],
)
def test_answers_that_cannot_be_used_are_named(name, words):
    with pytest.raises(UserError) as caught:
        read_answers(CASES / name, ROWS, Fallbacks())
    assert words in str(caught.value)


def test_half_a_surrogate_pair_in_an_answer_is_replaced_and_is_a_fallback(tmp_path):
    (tmp_path / "a.jsonl").write_text('"one \\ud83d"\n"two\u2028 \u0085"\n')
    fallbacks = Fallbacks()
    answers = read_answers(tmp_path / "a.jsonl", 2, fallbacks)
    assert [answer.text for answer in answers] == ["one ?", "two\u2028 \u0085"]
    assert "in the answers to rows 0" in next(iter(fallbacks))


def completion(content: object, **more: object) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": content}, **more}]}


def batch(identity: object, body: object) -> dict:
    return {"custom_id": identity, "response": {"status_code": 200, "body": body}, "error": None}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (batch("row-1", completion("a")), Prediction(1, "a")),
        (batch("1", completion([{"type": "text", "text": "a"}])), Prediction(1, "a")),
        (batch(1, completion("a", finish_reason="length")), Prediction(1, "a", is_truncated=True)),
        ({**completion("a"), "row": 1.0}, Prediction(1, "a")),
        ({"text": "", "row": " 1 "}, Prediction(1, "")),
        (batch("first", completion("a")), "'first' as \"custom_id\" has no row number at its end"),
        (batch("row-2", completion("a")), "row 2 is not in the test file (0 to 1)"),
        (batch("row-1", completion(None)), "the response has no choices[0].message.content"),
        (batch("row-1", {"choices": []}), "the response has no choices[0].message.content"),
        ({"custom_id": "row-1", "response": None, "error": {"message": "expired"}}, "the request failed: {'message'"),
        (batch("row-1", {"error": {"message": "too long"}}), "the request failed"),
        ({"text": "a", "row": True}, "True is not a row number"),
        ({"text": "a", "row": None}, "None is not a row number"),
        ({"text": "a", "row": 1e999}, "inf is not a row number"),
        ({"text": "a", "row": -1}, "row -1 is not in the test file"),
        ({"text": ["a"], "row": 1}, '"text" is list'),
        ([], "needs text"),
        (None, "needs text"),
    ],
)
def test_each_shape_of_an_answer_is_taken_or_named(tmp_path, item, expected):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in ({"text": "zero", "row": 0}, item)))
    if isinstance(expected, Prediction):
        assert read_answers(path, 2, Fallbacks())[1] == expected
        return
    with pytest.raises(UserError) as caught:
        read_answers(path, 2, Fallbacks())
    assert f"item 2: {expected}" in str(caught.value)


# ---- a damaged log ------------------------------------------------------------------------------------------------

DAMAGED = (
    b"[]", b"5", b"null", b'{"row": 1}', b'{"text": "a"}', b'{"row": "x", "text": "a"}', b"\xff\xfe", b"[" * 9999,
    b'{"row": 1, "text": 5}', b'{"row": 1, "text": "\\ud83d"}', b'{"row": 1, "text": null, "scores": {"a": "b"}}',
    b'{"row": 1, "text": "a", "seconds": NaN}',
)  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_costs_its_row_only(tmp_path, capsys, line):
    path, origin = tmp_path / "a.jsonl", {**ORIGIN, "kind": "free"}
    filled(path, [0, 1, 2], origin)
    header, first, _, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([header, first, line, last, b""]))
    assert sorted(PredictionLog(path, origin).done) == [0, 2]
    assert capsys.readouterr().err.count("answered again: line 3") == 1
    filled(path, [1], origin)
    assert sorted(PredictionLog(path, origin).done) == [0, 1, 2]


@pytest.mark.parametrize("header", [*DAMAGED, b'{"origin": []}', b'{"origin": null}', b""])
def test_a_log_without_a_readable_origin_is_not_continued(tmp_path, header):
    path = filled(tmp_path / "a.jsonl", [0])
    path.write_bytes(b"\n".join([header, *path.read_bytes().splitlines()[1:]]))
    assert PredictionLog(path, ORIGIN).done == {}


def test_scores_of_other_tools_are_not_taken(tmp_path):
    path, origin = tmp_path / "a.jsonl", {"kind": "choice"}
    with PredictionLog(path, origin).appending() as append:
        append([Prediction(0, tool="a", scores={"a": 0.0, "b": -1.0}), Prediction(1, tool="a", scores={"a": 0.0})])
        append([Prediction(2, tool="a"), Prediction(3, text="Tool: a")])
    assert sorted(PredictionLog(path, origin, tools=("a", "b")).done) == [0]


@pytest.mark.parametrize("name", ["row", "index", "id", "idx", "row_id"])
@pytest.mark.parametrize("spell", [int, str])
def test_items_in_another_order_are_judged_by_the_row_they_name(tmp_path, name, spell):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({name: spell(row), "text": f"answer {row}"}) + "\n" for row in (2, 0, 1)))
    assert [answer.text for answer in read_answers(path, 3, Fallbacks())] == ["answer 0", "answer 1", "answer 2"]


def test_an_id_that_is_no_number_leaves_the_order_of_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "cmpl-9f2", "text": "one"}\n{"id": "cmpl-1a3", "text": "two"}\n')
    assert [answer.text for answer in read_answers(path, 2, Fallbacks())] == ["one", "two"]


@pytest.mark.parametrize("custom_id", ["550e8400-e29b-41d4-a716-446655440000", "a1b2c3", "row-7a", ""])
def test_the_end_of_a_random_id_is_no_row(tmp_path, custom_id):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"custom_id": custom_id, "text": "one"}))
    with pytest.raises(UserError, match="no row number at its end"):
        read_answers(path, 1, Fallbacks())


def test_a_flag_that_is_text_is_refused_and_unknown_keys_are_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"text": "one", "is_truncated": "false"}\n{"generated_text": "two", "model": "m"}\n')
    with pytest.raises(UserError) as caught:
        read_answers(path, 2, Fallbacks())
    assert "\"is_truncated\" is 'false', neither true nor false" in str(caught.value)
    assert "it has generated_text, model" in str(caught.value)


def test_thoughts_before_and_marks_behind_answers_are_said(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(["<think>\nhm</think>Tool: a", "Tool: a</s>", "Tool: b<|im_end|>\n", "Tool: c"]))
    fallbacks = Fallbacks()
    read_answers(path, 4, fallbacks)
    assert [message[:12] for message in fallbacks] == ["1 of 4 answe", "2 of 4 answe"]
