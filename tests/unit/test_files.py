"""Files and folders appear whole or not at all."""

from __future__ import annotations

import json

import pytest

from tool_aware.files import atomic_folder, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_appears_whole_or_keeps_its_old_content(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as part:
        (part / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as part:
        (part / str(1 / 0)).write_text("never written")
    assert [file.name for file in target.iterdir()] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
