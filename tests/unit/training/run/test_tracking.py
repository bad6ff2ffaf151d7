"""metrics.jsonl survives what happens to files, and a resumed run continues in it."""

from __future__ import annotations

import json

import pytest

from tool_aware.config.environment import read_environment
from tool_aware.console import Fallbacks
from tool_aware.training.run.curves import read_metrics
from tool_aware.training.run.tracking import MetricsLog, Tracker

FIGURES = {"lr": 0.1, "examples": 4, "seconds": 0.5, "examples_per_s": 8.0}
LINES = [{"step": step, "loss": 1 / step, **FIGURES} for step in range(1, 6)]


@pytest.mark.parametrize("damaged", [b"\x00" * 20, b'{"step": 3, "lo', b"[3]", b'{"loss": 1.0}', b"\xff\xfe", b""])
def test_a_damaged_line_is_left_out_with_one_warning(tmp_path, capsys, damaged):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps(line).encode() for line in LINES]
    path.write_bytes(b"\n".join([*whole[:2], damaged, damaged, *whole[2:], b'{"step": 6, "l']))
    assert read_metrics(path) == (LINES, [])
    assert capsys.readouterr().err.count("left out what cannot be read: line 3, 4") == 1

    log = MetricsLog(path, resume_step=4)
    assert capsys.readouterr().err.count("warning") == 1
    log.write({**LINES[4], "loss": 0.5})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*LINES[:4], {**LINES[4], "loss": 0.5}]


def test_the_log_is_rewritten_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(path, resume_step=2)
    assert path.read_bytes() == before


def test_a_full_disk_names_the_log(small_disk):
    log = MetricsLog(small_disk / "metrics.jsonl")
    with pytest.raises(OSError, match="No space left") as caught:
        log.write({"step": 1, "text": "x" * 2**21})
    assert caught.value.filename == str(small_disk / "metrics.jsonl")  # then it is a message and no bug


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WANDB_API_KEY": "short0123456789", "WANDB_MODE": "online"}, "WANDB_API_KEY"),
        ({"WANDB_MODE": "sideways"}, "mode"),
        ({"WANDB_PROJECT": "a/b:c", "WANDB_MODE": "offline"}, "project name"),
    ],
)
def test_a_tracker_that_does_not_start_is_a_fallback(config, tmp_path, monkeypatch, variables, named):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment = read_environment({"USE_WANDB": "true", **variables})
    fallbacks = Fallbacks()
    Tracker(config, environment, tmp_path, fallbacks=fallbacks)
    (message,) = fallbacks
    assert "wandb does not start" in message
    assert named in message
    assert "0123456789" not in message
