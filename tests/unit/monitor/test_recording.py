"""Logs are whole whenever they are read, bounded where they are one document, and read back by the plot."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tool_aware.console import UserError
from tool_aware.gpu.readings import GpuReading
from tool_aware.monitor import plot, recording
from tool_aware.monitor.plot import draw, read_log
from tool_aware.monitor.recording import open_recorder
from tool_aware.monitor.sampling import Sample, Statistics
from tool_aware.units import GIB

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KILLS = int(os.environ.get("KILLS", "25"))
GPU = GpuReading(0, "RTX 4070 Ti", "GPU-1", total_bytes=12 * GIB, used_bytes=6 * GIB, utilization_percent=98)


def sample(number: int, gpu: GpuReading = GPU) -> Sample:
    return Sample(float(number), NOON, [gpu, GpuReading(1, problem="GPU is lost")])


def record(path: Path, count: int) -> None:
    statistics = Statistics()
    recorder = open_recorder(path, 1.0, [GPU], statistics)
    for number in range(count):
        statistics.add(sample(number))
        recorder.take(sample(number))
    recorder.close()


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_what_is_recorded_is_read_back(tmp_path, suffix):
    path = tmp_path / f"gpu_logs{suffix}"
    record(path, 5)
    log = read_log(path)
    assert [seconds for seconds, _ in log.series[0]] == [0, 1, 2, 3, 4]
    assert plot.values(log, 0, "memory_used_mib")[0] == (0, 6144)
    assert plot.values(log, 0, "power_w") == []
    assert log.series[1][0][1]["problem"] == "GPU is lost"


def test_the_document_ends_with_its_summary(tmp_path):
    record(tmp_path / "log.json", 3)
    document = json.loads((tmp_path / "log.json").read_text())
    assert document["gpus"] == [{"index": 0, "name": "RTX 4070 Ti", "uuid": "GPU-1", "memory_total_mib": 12288}]
    assert document["summary"]["gpus"]["0"]["memory_peak_mib"] == 6144
    assert document["summary"]["samples"] == 3


def test_a_kill_at_any_moment_leaves_a_whole_document(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "WRITE_BYTES_PER_S", float("inf"))  # replace it at every sample: the hardest case
    path = tmp_path / "log.json"
    moments = random.Random(1)
    counts = []
    while len(counts) < KILLS or (max(counts) <= 10 and len(counts) < 10 * KILLS):  # more on a busy machine
        child = os.fork()
        if child == 0:
            record(path, 10**9)
        while not path.exists():
            time.sleep(0.0002)
        time.sleep(moments.uniform(0.001, 0.02 * (1 + len(counts) // KILLS)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        document = json.loads(path.read_text())
        assert [one["seconds"] for one in document["samples"]] == list(range(len(document["samples"])))
        counts.append(len(document["samples"]))
        path.unlink()
    assert max(counts) > 10, "the children were killed before they wrote anything; the test has shown nothing"
    left = [
        file for file in tmp_path.iterdir() if file.suffix != ".lock"
    ]  # the next writer takes the lock of a dead one
    assert len(left) <= 1, "a killed writer leaves at most one unfinished file, and reuses it"


def test_a_reader_never_meets_half_a_document(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "WRITE_BYTES_PER_S", float("inf"))
    path = tmp_path / "log.json"
    child = os.fork()
    if child == 0:
        record(path, 10**9)
    try:
        while not path.exists():
            time.sleep(0.001)
        sizes: set[int] = set()
        deadline = time.monotonic() + 120
        while len(sizes) < 100 and time.monotonic() < deadline:
            sizes.add(len(json.loads(path.read_text())["samples"]))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(sizes) == 100


def test_a_long_document_stays_small_and_covers_the_whole_time(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_SAMPLES", 100)
    path = tmp_path / "log.json"
    record(path, 5000)
    document = json.loads(path.read_text())
    seconds = [one["seconds"] for one in document["samples"]]
    assert 50 <= len(seconds) <= 100
    assert seconds[0] < 2 * document["kept_every"]
    assert seconds[-1] > 5000 - 2 * document["kept_every"]
    steps = {b - a for a, b in itertools.pairwise(seconds)}
    assert steps == {document["kept_every"]}


def test_a_large_document_is_not_rewritten_at_every_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "WRITE_BYTES_PER_S", 1)
    statistics = Statistics()
    recorder = open_recorder(tmp_path / "log.json", 1.0, [GPU], statistics)
    before = (tmp_path / "log.json").stat().st_ino
    recorder.take(sample(0))
    assert (tmp_path / "log.json").stat().st_ino == before
    recorder.close()
    assert len(json.loads((tmp_path / "log.json").read_text())["samples"]) == 1


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_an_earlier_log_is_kept_under_another_name(tmp_path, suffix):
    path = tmp_path / f"gpu_logs{suffix}"
    path.write_text("precious")
    record(path, 1)
    kept = [other for other in tmp_path.iterdir() if other != path]
    assert [other.read_text() for other in kept] == ["precious"]
    assert kept[0].suffix == suffix


def test_no_earlier_log_is_lost_to_runs_within_one_second(tmp_path):
    path = tmp_path / "gpu_logs.json"
    for number in range(4):
        path.write_text(str(number))
        os.utime(path, (1e9, 1e9))
        recording.keep_previous(path)
    kept = sorted(tmp_path.iterdir(), key=lambda one: one.read_text())
    assert [one.read_text() for one in kept] == ["0", "1", "2", "3"]
    assert [one.stem[-2:] for one in kept[1:]] == ["-1", "-2", "-3"]


def test_a_folder_is_no_log(tmp_path):
    (tmp_path / "logs.json").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        open_recorder(tmp_path / "logs.json", 1.0, [GPU], Statistics())
    assert [one.name for one in tmp_path.iterdir()] == ["logs.json"]


def test_a_torn_last_line_is_skipped(tmp_path):
    path = tmp_path / "log.jsonl"
    record(path, 3)
    text = path.read_text()
    path.write_text(text[: text.index('{"summary"') - 40])
    assert [seconds for seconds, _ in read_log(path).series[0]] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.txt", "", "is not a log"),
        ("missing.json", None, "not found"),
        ("log.json", "{", "log.json:1: is not JSON"),
        ("log.json", '{"gpus": [], "samples": []}', "no samples"),
        ("log.json", '{"other": 1}', "is not a log"),
        ("log.csv", "a,b\n1,2\n", "no samples"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_log(tmp_path / name)


def test_an_unknown_extension_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        open_recorder(tmp_path / "log.xml", 1.0, [GPU], Statistics())
    assert list(tmp_path.iterdir()) == []


def test_the_picture_has_a_panel_for_each_known_value(tmp_path):
    import matplotlib.image

    record(tmp_path / "log.json", 50)
    draw(read_log(tmp_path / "log.json"), tmp_path / "log.png", title="log.json")
    height, width, _ = matplotlib.image.imread(tmp_path / "log.png").shape
    assert width > height > 400  # memory and use; power and temperature are not known and take no room


def test_thinning_keeps_every_peak_that_is_wider_than_a_pixel(monkeypatch):
    monkeypatch.setattr(plot, "MAX_POINTS", 100)
    points = [(float(i), 1.0) for i in range(10_000)]
    points[5555] = (5555.0, 9.0)
    thinned = plot.thinned(points)
    assert len(thinned) <= 100
    assert (5555.0, 9.0) in thinned


@pytest.mark.parametrize(
    ("number", "fix"), [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "a place")]
)
def test_the_remedy_fits_the_failure(tmp_path, number, fix):
    with pytest.raises(UserError) as caught, recording._writing(tmp_path / "log.json"):
        raise OSError(number, os.strerror(number))
    assert fix in caught.value.fix


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_second_monitor_of_the_same_file_is_told_who_writes_it(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    first = open_recorder(path, 1.0, [GPU], Statistics())
    first.take(sample(0))
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"another run is writing here: .* \(process {os.getpid()} on "):
        open_recorder(path, 1.0, [GPU], Statistics())
    assert path.read_bytes() == before
    assert len(list(tmp_path.glob("log.*"))) == 1  # the first one's log was not put aside
    first.close()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    second = open_recorder(path, 1.0, [GPU], Statistics())
    second.close()


def test_the_lock_of_a_killed_monitor_does_not_stay(tmp_path):
    path = tmp_path / "log.jsonl"
    child = os.fork()
    if child == 0:
        open_recorder(path, 1.0, [GPU], Statistics())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    open_recorder(path, 1.0, [GPU], Statistics()).close()
    assert not list(tmp_path.glob(".*"))


def test_a_lock_follows_no_link(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / ".log.jsonl.tool-aware.lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="cannot be written"):
        open_recorder(tmp_path / "log.jsonl", 1.0, [GPU], Statistics())
    assert (tmp_path / "mine.txt").read_text() == "mine"
