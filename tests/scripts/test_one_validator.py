"""What `prepare_dataset.py --check` accepts, evaluate.py can read, and the other way round."""

from __future__ import annotations

import json
from dataclasses import asdict
from random import Random

import prepare_dataset
from tests.fixtures.in_process import outcome
from tests.fixtures.mutations import mutate, mutated_json
from tests.fixtures.repository import CASES, REPOSITORY
from tool_aware.console import UserError
from tool_aware.evaluation.held_out import load_test_set
from tool_aware.rows import write_rows

ATTEMPTS = 120


def is_readable(folder, tools) -> bool:
    try:
        load_test_set(folder, tools)
    except UserError:
        return False
    return True


def test_check_and_evaluation_accept_the_same_test_files(tmp_path, toy_rows, config, capsys):
    whole = json.dumps([asdict(row) for row in toy_rows[:4]])
    contents = [mutate(whole.encode(), Random(seed), mutated_json) for seed in range(ATTEMPTS)]
    contents += [path.read_bytes() for path in sorted((CASES / "hostile").glob("check_*"))]
    write_rows(tmp_path / "train.json", toy_rows[12:36])
    write_rows(tmp_path / "val.json", toy_rows[36:])
    verdicts = set()
    for content in contents:
        (tmp_path / "test.json").write_bytes(content)
        checked = outcome(prepare_dataset.main, ["--config", REPOSITORY / "config.yaml", "--check", tmp_path], capsys)
        assert (checked.code == 0) == is_readable(tmp_path, config.toolbox), (content[:500], checked.text)
        verdicts.add(checked.code)
    assert verdicts == {0, 2}
