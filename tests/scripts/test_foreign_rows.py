"""prepare_dataset.py --check and the readers behind it, on data files as people really have them."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

import prepare_dataset
from tests.fixtures.in_process import Outcome, outcome
from tests.fixtures.repository import REPOSITORY
from tool_aware.chat_format import encode_example
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError
from tool_aware.evaluation.scoring.judgement import Prediction, judge
from tool_aware.rows import METADATA, load_rows
from tool_aware.training.data import read_data

CASES = REPOSITORY / "tests" / "cases" / "check_files"

WELL_FORMED = {
    "plain": "36 rows, all well-formed",
    "bom": "all well-formed",
    "jsonl": "train.json read as JSON Lines",
    "utf16": "test.json read as UTF-16",
    "cr_response": "all well-formed",
    "group_int": "all well-formed",
    "metadata_null": "all well-formed",
    "one_row": "all well-formed",
    "one_val": "all well-formed",
    "rtl_emoji": "all well-formed",
    "test_group_mixed": "all well-formed",
    "three_rows": "all well-formed",
    "u2028_reasoning": "all well-formed",
}
REFUSED = {
    "acceptable_str": 'train.json: row 1: metadata.acceptable_tools: must be a list of tools\' names, not "web_search"',
    "acceptable_unknown": "train.json: row 1: metadata.acceptable_tools: 'weather' not among the tools, rag_retrieval",
    "accepted_shape": "train.json: row 1: metadata.accepted_parameters: must be an object of lists",
    "alpaca": "looks like Alpaca's format",
    "latin1": "train.json:1: is not UTF-8: byte 0xe9",
    "lfs": "git lfs pull",
    "nan": "row 1: response: parameters are not JSON: NaN",
    "object": "is one object with data, not an array of rows",
    "surrogate": "train.json: row 1: instruction: half a surrogate pair",
    "surrogate_response": "train.json: row 1: response: half a surrogate pair",
    "test_acceptable_str": "test.json: row 1: metadata.acceptable_tools: must be a list",
    "test_accepted_list": 'test.json: row 1: metadata.accepted_parameters: must be an object of lists',
    "test_accepted_num": "must be an object of lists, {parameter: [value, ...]}, not {\"num_results\": 5}",
    "test_accepted_str": "must be an object of lists",
    "test_surrogate": "test.json: row 1: instruction: half a surrogate pair",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of good files of another origin."""
    shutil.copytree(CASES / "plain", tmp_path / "data")
    return tmp_path / "data"


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> Outcome:
    return outcome(prepare_dataset.main, ["--check", folder], capsys)


def test_every_case_has_its_outcome_here():
    assert {path.name for path in CASES.iterdir()} == WELL_FORMED.keys() | REFUSED.keys()


@pytest.mark.parametrize(("case", "words"), WELL_FORMED.items())
def test_what_can_be_read_is_read_and_said(folder, capsys, case, words, config, tokenizer):
    shutil.copytree(CASES / case, folder, dirs_exist_ok=True)
    result = check(folder, capsys)
    assert result.code == 0, result.text
    assert words in result.text
    can_be_used(folder, config, tokenizer)


@pytest.mark.parametrize(("case", "words"), REFUSED.items())
def test_what_cannot_be_read_is_named_with_file_row_and_field(folder, capsys, case, words, config):
    shutil.copytree(CASES / case, folder, dirs_exist_ok=True)
    result = check(folder, capsys)
    assert result.code == 2, result.text
    assert words in result.text
    assert "Traceback" not in result.text
    if case != "lfs":  # its fix is git's
        assert "python prepare_dataset.py\n" not in result.text
    here = config.model_copy(update={"dataset": config.dataset.model_copy(update={"dir": folder})})
    with pytest.raises(UserError):
        read_data(here, Fallbacks())


def can_be_used(folder: Path, config: Config, tokenizer) -> None:
    """Do with each row what training and evaluation do with it."""
    for name in ("train", "val", "test"):
        for number, row in enumerate(load_rows(folder / f"{name}.json", config.toolbox).rows):
            assert len(encode_example(tokenizer, row.instruction, row.response)) > 0
            assert judge(Prediction(number, row.response), row, config.toolbox).is_call_correct
            json.dumps(dict(row.metadata), allow_nan=False).encode()


# ---- further shapes -------------------------------------------------------------------------------------------

GOOD = {"instruction": "q", "response": 'Tool: web_search\nParameters: {"query": "x"}\nReasoning: r'}
LINE = json.dumps(GOOD)


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def with_metadata(details: str) -> bytes:
    return f'[{LINE[:-1]}, "metadata": {details}}}]'.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must be a non-empty JSON array"),
        (b"[]", "must be a non-empty JSON array"),
        (b"   \n\n", "must be a non-empty JSON array"),
        (b"null", "line 1: is NoneType, not an object"),
        (b'"text"', "line 1: is str, not an object"),
        (f"[{LINE},\n{LINE},\n".encode(), ":3: is not JSON"),
        (f"[{LINE},\n{LINE[:40]}".encode(), ":2: is not JSON"),
        (f"[{LINE}] trailing".encode(), ":1: is not JSON: Extra data"),
        (f"{LINE}\n{LINE[:-1]}\n".encode(), "line 2: is not JSON"),
        (json.dumps(GOOD, indent=2).encode(), "is one row, not an array of rows"),
        (json.dumps({"rows": [GOOD]}, indent=2).encode(), "is one object with rows"),
        (b'[{"messages": []}]', "prepare_dataset.py --import"),
        (b'[{"conversations": []}]', "prepare_dataset.py --import"),
        (b'{"question": [], "function": []}', "BFCL"),
        (b'[{"prompt": "a", "completion": "b"}]', "rename the keys"),
        (b'{"query_text": "q", "tool_used": "t"}', "--logs"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"PAR1aaaa", "Parquet"),
        (b"query,tool\nq,t\n", "line 1: is not JSON"),
        (("[" * 100_000).encode(), "nested too deeply"),
        (f'[{LINE[:-1]}, "instruction": "other"}}]'.encode(), "row 1: instruction: given twice"),
        (with_metadata('{"score": NaN}'), "metadata.score: nan is no JSON value; write null"),
        (with_metadata('{"score": 1e999}'), "metadata.score: inf is no JSON value"),
        (with_metadata(json.dumps({"x": nested(150)})), "nested deeper than 100 levels"),
        (with_metadata('{"note\\udc00": 1}'), "a key of metadata: half a surrogate pair"),
        (f"[{LINE}, 3, null, []]".encode(), "row 4: is list, not an object"),
        (b'[{"instruction": "q"}]', "response: must be non-empty text, and is missing"),
    ],
)  # fmt: skip
def test_files_of_every_odd_shape_are_one_message(tmp_path, capsys, content, words):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    result = outcome(prepare_dataset.main, ["--check", path], capsys)
    assert result.code == 2
    assert words in result.stderr


def test_compressed_rows_are_read_and_said(tmp_path, capsys):
    path = tmp_path / "train.json"
    path.write_bytes(gzip.compress(f"{LINE}\n{LINE}\n".encode("utf-16")))
    result = outcome(prepare_dataset.main, ["--check", path], capsys)
    assert "read as JSON Lines, UTF-16, gzip" in result.stderr
    assert result.code == 0


VALUES = ("web_search", "x", 5, 0, -1.5, True, [], {}, [1], ["web_search"], ["web_search", "web_search"], [None],
          {"query": "x"}, {"query": ["x"]}, {"query": None}, {"query": {}}, {"q": ["x"]}, {"code": []},
          "direct_chat", [["web_search"]],
          {"query": [[1], {"a": None}]}, {"num_results": ["5", 5, None, True]})  # fmt: skip


@pytest.mark.parametrize("key", [*METADATA, "id", "anything"])
def test_metadata_that_passes_the_check_can_be_trained_on_and_judged(tmp_path, key, config, tokenizer):
    faults = {}
    for number, value in enumerate((*VALUES, None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("train", "val", "test"):
            (folder / f"{name}.json").write_text(json.dumps([{**GOOD, "metadata": {key: value}}]))
        try:
            load_rows(folder / "test.json", config.toolbox)
        except UserError as error:
            faults[number] = str(error)
        else:
            can_be_used(folder, config, tokenizer)
    assert all(f"row 1: metadata.{key}: " in fault for fault in faults.values())
    assert len(VALUES) not in faults  # null is as if it were not there
    assert bool(faults) == (key in METADATA)
    assert len(faults) < len(VALUES)


def test_labels_are_text_and_null_is_absent(tmp_path, config):
    path = tmp_path / "rows.json"
    details = {"group": 7, "source": None, "slice": 0, "tool": None, "acceptable_tools": None, "other": None}
    path.write_text(json.dumps([{**GOOD, "metadata": details}]))
    (row,) = load_rows(path, config.toolbox).rows
    assert row.metadata == {"source": "custom", "tool": "web_search", "group": "7", "slice": "0", "other": None}
    assert row.acceptable_tools == ("web_search",)
