"""A data folder is read as one set: of one run, as it was at one moment, with the hashes of what was read."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from tool_aware import data_folder
from tool_aware.console import Fallbacks, UserError
from tool_aware.data_folder import DataReading, read_data_folder
from tool_aware.dataset import data_check
from tool_aware.dataset.earlier_splits import read_earlier_splits
from tool_aware.evaluation.held_out import load_test_set
from tool_aware.files import hashes_in, sha256_of, write_json
from tool_aware.lineage import TrainingRun
from tool_aware.manifest import write_manifest
from tool_aware.rows import SPLITS, load_rows, write_rows
from tool_aware.training.data import read_data
from tool_aware.transaction import FileSet, locked


def write_set(folder, rows, *, splits=SPLITS):
    """Write a set of six rows, two a split, and its manifest."""
    with locked(folder):
        files = FileSet(folder)
        for at, split in enumerate(splits):
            write_rows(files.path(f"{split}.json"), rows[2 * at : 2 * at + 2])
        write_manifest(files.new, stage="prepare_dataset", config={}, seed=1, started_s=0.0, outputs=files.hashes())
        files.commit()
    return folder


def test_the_hash_is_of_the_bytes_that_were_read_however_they_are_stored(tmp_path, toy_rows, config):
    write_rows(tmp_path / "array.json", toy_rows[:3])
    text = (tmp_path / "array.json").read_text()
    lines = "".join(json.dumps(item) + "\n" for item in json.loads(text))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "utf16.json").write_bytes(text.encode("utf-16"))
    (tmp_path / "packed.json").write_bytes(gzip.compress(lines.encode()) + gzip.compress(b"\n") + bytes(512))
    for path in sorted(tmp_path.iterdir()):
        loaded = load_rows(path, config.toolbox)
        assert (len(loaded.rows), loaded.sha256) == (3, sha256_of(path)), path.name


@pytest.mark.parametrize("cores", [1, 2])
def test_a_large_folder_is_read_by_another_process_and_is_the_same(tmp_path, toy_rows, config, monkeypatch, cores):
    write_set(tmp_path, toy_rows)
    assert not DataReading(tmp_path, config.toolbox).is_beside
    monkeypatch.setattr(data_folder, "_LARGE_BYTES", 1)
    monkeypatch.setattr(data_folder, "usable_cores", lambda: cores)
    reading = DataReading(tmp_path, config.toolbox, ["train"])
    assert reading.is_beside == (cores > 1)
    assert reading.result() == read_data_folder(tmp_path, config.toolbox, ["train"])


def test_what_another_process_could_not_read_is_told_here(tmp_path, toy_rows, config, monkeypatch, capfd):
    write_set(tmp_path, toy_rows)
    (tmp_path / "val.json").write_text("[1, 2]")
    monkeypatch.setattr(data_folder, "_LARGE_BYTES", 1)
    monkeypatch.setattr(data_folder, "usable_cores", lambda: 2)
    with pytest.raises(UserError, match=r"val\.json: row 1: is int, not an object"):
        DataReading(tmp_path, config.toolbox).result()
    assert "Traceback" not in capfd.readouterr().err


def test_a_file_replaced_behind_the_reader_keeps_the_hash_of_what_was_read(tmp_path, toy_rows, config, monkeypatch):
    path = tmp_path / "train.json"
    write_rows(path, toy_rows[:3])
    before, checked = sha256_of(path), data_folder.load_rows

    def then_replaced(*arguments):
        loaded = checked(*arguments)
        write_rows(path, toy_rows[3:6])
        return loaded

    monkeypatch.setattr(data_folder, "load_rows", then_replaced)
    data = read_data_folder(tmp_path, config.toolbox)
    assert data.rows["train"].sha256 == before != sha256_of(path)
    assert [row.query for row in data.rows["train"].rows] == [row.query for row in toy_rows[:3]]


def test_another_run_between_two_files_is_refused(tmp_path, toy_rows, config, monkeypatch):
    write_set(tmp_path, toy_rows)
    read = data_folder.load_rows

    def with_another_run(path, tools):
        if path.name == "val.json":
            write_set(tmp_path, toy_rows[6:])
        return read(path, tools)

    monkeypatch.setattr(data_folder, "load_rows", with_another_run)
    with pytest.raises(UserError, match="another run replaced files there while they were read"):
        read_data_folder(tmp_path, config.toolbox)


def test_a_set_whose_writer_was_killed_is_put_in_place_before_it_is_read(tmp_path, toy_rows, config, monkeypatch):
    write_set(tmp_path, toy_rows)
    old = hashes_in(tmp_path, [tmp_path / "train.json"])
    moved, replace = [], os.replace

    def killed(source, target):
        if ".complete" in str(source):
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_set(tmp_path, toy_rows[6:])
    data = read_data_folder(tmp_path, config.toolbox)
    assert data.changed == []
    assert data.rows["train"].sha256 != old["train.json"]
    assert [row.query for row in data.rows["test"].rows] == [row.query for row in toy_rows[10:12]]


def test_an_edited_file_is_read_and_named(tmp_path, toy_rows, config):
    write_set(tmp_path, toy_rows)
    write_rows(tmp_path / "train.json", toy_rows[6:8])
    assert read_data_folder(tmp_path, config.toolbox).changed == ["train"]


@pytest.mark.parametrize(("replaced", "others"), [("train", "val"), ("val", "train"), ("test", "train")])
def test_files_of_two_runs_are_refused_by_every_reader(replaced, others, tmp_path, toy_rows, config):
    write_set(tmp_path / "one", toy_rows)
    write_set(tmp_path / "two", toy_rows[2:4] + toy_rows[:2] + toy_rows[:2])
    os.replace(tmp_path / "two" / f"{replaced}.json", tmp_path / "one" / f"{replaced}.json")
    for read in (lambda folder: read_data_folder(folder, config.toolbox), read_earlier_splits):
        with pytest.raises(UserError, match=f"{replaced}.json changed since .* belongs to another data set"):
            read(tmp_path / "one")


def test_data_without_a_manifest_is_the_users_own(tmp_path, toy_rows, config):
    for split in ("train", "val"):
        write_rows(tmp_path / f"{split}.json", toy_rows[:2])
    data = read_data_folder(tmp_path, config.toolbox, required=("train", "val"))
    assert (data.manifest, data.changed, list(data.rows)) == (None, [], ["train", "val"])
    with pytest.raises(UserError, match=r"test.json: not found"):
        read_data_folder(tmp_path, config.toolbox, required=SPLITS)


def test_bad_rows_of_all_files_come_in_one_report(tmp_path, toy_rows, config):
    for split in ("train", "val"):
        write_json(tmp_path / f"{split}.json", [{"instruction": split}])
    with pytest.raises(UserError, match=r"(?s)train.json: row 1: response.*val.json: row 1: response"):
        read_data_folder(tmp_path, config.toolbox)


def test_a_manifest_that_is_none_is_refused(tmp_path, toy_rows, config):
    write_set(tmp_path, toy_rows)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="is not what a stage writes"):
        read_data_folder(tmp_path, config.toolbox)


def test_queries_of_a_train_file_that_changed_while_it_was_read_are_not_taken(tmp_path, toy_rows, monkeypatch):
    path = tmp_path / "train.json"
    write_rows(path, toy_rows[:2])
    run = TrainingRun("a", None, str(path), sha256_of(path))
    assert len(run.train_queries()) == 2

    def then_replaced(path):
        write_rows(path, toy_rows[4:9])
        return run.train_sha256

    monkeypatch.setattr("tool_aware.lineage.sha256_of", then_replaced)
    assert run.train_queries() is None


def test_check_refuses_what_training_and_evaluation_refuse(tmp_path, toy_rows, config):
    """One validator: each folder below is refused by one of the two stages, and by --check in the same words."""
    settings = config.model_copy(update={"dataset": config.dataset.model_copy(update={"dir": tmp_path})})

    def messages() -> list[str]:
        found = []
        stages = (lambda: read_data(settings, Fallbacks()), lambda: load_test_set(tmp_path, config.toolbox))
        for stage in (lambda: data_check.check(tmp_path, settings, None), *stages):
            try:
                stage()
            except UserError as error:
                found.append(str(error))
        return found

    write_set(tmp_path, toy_rows)  # made for no tools at all
    assert "made for other tools" in messages()[0] == messages()[1]
    (tmp_path / "manifest.json").write_text('{"stage": 3}')
    assert len(messages()) == 3
    assert "is not what a stage writes" in messages()[0] == messages()[1]
    (tmp_path / "manifest.json").unlink()
    assert messages() == []
    write_rows(tmp_path / "test.json", [*toy_rows[10:12], toy_rows[0]])
    assert "row 3 is row 1 of train.json" in messages()[0] == messages()[1]
    (tmp_path / "train.json").write_text('[{"instruction": "x", "response": "y"}]')
    assert len(set(messages())) == 1
    assert len(messages()) == 3
