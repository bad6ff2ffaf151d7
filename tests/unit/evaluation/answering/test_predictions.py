import json

import pytest

from tool_aware.console import UserError
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
    assert [p.text for p in read_answers(tmp_path / "answers", 2)] == ["one", "two"]


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
        read_answers(path, 2)
    assert all(word in str(caught.value) for word in words)
