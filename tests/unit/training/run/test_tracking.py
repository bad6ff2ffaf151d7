"""metrics.jsonl survives what happens to files, and a resumed run continues in it."""

from __future__ import annotations

import json
import shutil

import pytest

from tool_aware.config.environment import read_environment
from tool_aware.console import Fallbacks
from tool_aware.training.run.curves import draw_curves, read_metrics
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


def test_a_tracker_that_fails_in_the_middle_is_given_up_once_and_the_log_goes_on(config, tmp_path, monkeypatch):
    """For real: the folder of TensorBoard is deleted, and the run at wandb is over."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    fallbacks = Fallbacks()
    tracker = Tracker(config, read_environment({"USE_WANDB": "true"}), tmp_path, fallbacks=fallbacks)
    with tracker:
        tracker.log(LINES[0])
        assert not list(fallbacks)
        shutil.rmtree(tmp_path / "runs")
        tracker._optional["wandb"]._run.finish()
        for line in LINES[1:]:
            tracker.log(line)
    messages = list(fallbacks)
    assert [message.split(":")[0] for message in messages] == [
        "TensorBoard has failed",
        "USE_WANDB is set but wandb has failed",
    ]
    assert read_metrics(tmp_path / "metrics.jsonl") == (LINES, [])


def test_a_file_in_place_of_the_folder_of_tensorboard_is_moved_aside(config, tmp_path):
    (tmp_path / "runs").write_text("mine")
    fallbacks = Fallbacks()
    with Tracker(config, read_environment({}), tmp_path, fallbacks=fallbacks) as tracker:
        tracker.log(LINES[0])
    assert (tmp_path / "runs.aside").read_text() == "mine"
    assert list((tmp_path / "runs").iterdir())
    assert len(fallbacks) == 1


def test_a_disk_that_is_full_costs_lines_of_the_log_and_not_the_run(config, small_disk):
    fallbacks = Fallbacks()
    quiet = config.model_copy(update={"logging": config.logging.model_copy(update={"tensorboard": False})})
    with Tracker(quiet, read_environment({}), small_disk, fallbacks=fallbacks) as tracker:
        tracker.log(LINES[0])
        (small_disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(small_disk).free))
        for number in range(2000):
            tracker.log({**LINES[0], "step": number, "note": 1.0})
    assert len(fallbacks) == 1
    assert "lines are missing" in next(iter(fallbacks))


def test_numbers_that_json_has_not_are_null_and_are_read_and_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({**LINES[0], "loss": float("nan"), "grad_norm": float("inf"), "peak": [float("-inf")]})
    log.write(LINES[1])
    log.close()
    first = json.loads(path.read_text().splitlines()[0], parse_constant=pytest.fail)
    assert (first["loss"], first["grad_norm"], first["peak"]) == (None, None, [None])
    path.write_text(json.dumps({**LINES[0], "loss": float("nan")}) + "\n" + json.dumps(LINES[1]) + "\n")
    assert [line["loss"] for line in read_metrics(path)[0]] == [None, LINES[1]["loss"]]
    draw_curves(path, tmp_path / "training.png", title="$x_{$ <b>", exported_step=2)
    assert (tmp_path / "training.png").is_file()
