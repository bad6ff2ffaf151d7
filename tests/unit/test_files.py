"""Files and folders appear whole or not at all."""

from __future__ import annotations

import json
import os

import pytest

from tool_aware.files import (
    INDENT,
    JsonText,
    atomic_folder,
    atomic_path,
    indented_json,
    write_json,
    write_json_array,
)


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


VALUES = [
    {"text": 'é "quoted"\n\u2028', "list": [1, -2.5, True, None, [], {}], "nested": {"a": ({"b": "c"},)}, 3: 10**30},
    [[[1]], {"x": [{}]}],
    [],
    "text",
]


@pytest.mark.parametrize("value", VALUES)
def test_json_is_indented_as_the_library_does_it(value, tmp_path):
    assert indented_json(value) == json.dumps(value, ensure_ascii=False, indent=2)
    write_json_array(tmp_path / "array.json", iter([value] * 2))
    write_json(tmp_path / "value.json", [value] * 2)
    assert (tmp_path / "array.json").read_bytes() == (tmp_path / "value.json").read_bytes()


def test_a_value_that_is_written_already_is_put_where_it_stands(tmp_path):
    verdicts = [{"name": "query", "is_usable": None}]
    write_json_array(tmp_path / "as_values.json", [{"uses": verdicts, "row": 0}])
    write_json_array(tmp_path / "written.json", [{"uses": JsonText(indented_json(verdicts, 2 * INDENT)), "row": 0}])
    assert (tmp_path / "written.json").read_bytes() == (tmp_path / "as_values.json").read_bytes()


def test_an_array_of_nothing_is_empty_and_what_is_not_finite_is_null(tmp_path):
    write_json_array(tmp_path / "array.json", iter([]))
    assert json.loads((tmp_path / "array.json").read_text()) == []
    assert indented_json([float("nan"), float("-inf")]) == json.dumps([None, None], indent=2)


MODES = [(0o002, 0o664, 0o775), (0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]


@pytest.mark.parametrize(("umask", "file", "folder"), MODES)
def test_files_and_folders_have_the_mode_that_the_umask_gives(umask, file, folder, tmp_path):
    earlier = os.umask(umask)
    try:
        write_json(tmp_path / "value.json", 1)
        with atomic_path(tmp_path / "private.json") as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT, 0o600))  # as libraries write theirs
        with atomic_folder(tmp_path / "model") as part:
            os.close(os.open(part / "weights", os.O_CREAT, 0o600))
    finally:
        os.umask(earlier)
    for name in ("value.json", "private.json", "model/weights"):
        assert (tmp_path / name).stat().st_mode & 0o777 == file
    assert (tmp_path / "model").stat().st_mode & 0o777 == folder
