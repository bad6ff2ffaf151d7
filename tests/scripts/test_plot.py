"""monitor_gpu.py plot as a user runs it: a log of any kind is a picture, or one message."""

from __future__ import annotations

import json

import pytest

HEAD = {"index": 0, "name": "GPU", "memory_total_mib": 12288}
GPU = {"index": 0, "memory_used_mib": 6050, "utilization_percent": 98}
CSV_HEAD = (
    "time,seconds,index,memory_used_mib,utilization_percent,temperature_c,power_w,sm_clock_mhz,throttled_by,problem\n"
)


def document(samples: object, head: object = HEAD) -> str:
    return json.dumps({"gpus": [head], "samples": samples})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("log.csv", f"{CSV_HEAD}noon,0.0,0,,,,,,,GPU is lost\n", "holds no values: no GPU reported a value"),
        ("log.csv", f"{CSV_HEAD}noon,notanumber,0,6050,98,,,,,\n", "could not convert string to float: 'notanumber'"),
        ("log.csv", f"{CSV_HEAD}noon,inf,0,6050,98,,,,,\n", "inf is no number"),
        ("log.csv", f"{CSV_HEAD}noon,0.0,first,6050,98,,,,,\n", "is not a log"),
        ("log.json", '{"gpus": [], "samples": [1]}', "is not a log"),
        ("log.json", '{"gpus": [], "samples": 1}', "is not a log"),
        ("log.json", document([{"seconds": "soon", "gpus": [GPU]}]), "is not a log"),
        ("log.json", document([{"seconds": 0, "gpus": [{**GPU, "memory_used_mib": "much"}]}]), "is not a log"),
        ("log.json", document([{"seconds": 0, "gpus": [{"memory_used_mib": 1}]}]), "it lacks 'index'"),
        ("log.json", document([{"seconds": 0, "gpus": [GPU]}], head=7), "is not a log"),
        ("log.jsonl", '{"interval_s": 1, "gpus": [1]}\n{"seconds": 0, "gpus": [2]}\n', "is not a log"),
    ],
)
def test_what_cannot_be_drawn_is_one_message(script, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    result = script.run("plot", str(tmp_path / name))
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert [one.name for one in tmp_path.glob("log.*")] == [name]


@pytest.mark.parametrize("picture", ["pic.xyz", "pic"])
def test_a_picture_of_unknown_kind_is_refused(script, tmp_path, picture):
    (tmp_path / "log.json").write_text(document([{"seconds": 0, "gpus": [GPU]}]))
    result = script.run("plot", str(tmp_path / "log.json"), "--output", str(tmp_path / picture))
    assert result.returncode == 2
    assert "cannot draw" in result.stderr
    assert not list(tmp_path.glob("pic*"))


def test_names_are_text_and_no_formulas(script, tmp_path):
    log = tmp_path / "a$b{$.json"
    log.write_text(document([{"seconds": 0, "gpus": [GPU]}], head={**HEAD, "name": "$\\nonsense{$"}))
    result = script.run("plot", str(log))
    assert result.returncode == 0, result.stderr
    assert log.with_suffix(".png").exists()


def test_a_head_without_names_is_drawn(script, tmp_path):
    (tmp_path / "log.json").write_text(document([{"seconds": 0, "gpus": [GPU]}], head={"index": 0}))
    assert script.run("plot", str(tmp_path / "log.json")).returncode == 0
    assert (tmp_path / "log.png").exists()
