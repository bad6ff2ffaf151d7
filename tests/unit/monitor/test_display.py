"""Golden text of every state, at 80 and 120 columns. UPDATE_GOLDEN=1 writes the files anew: look at the difference."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.gpu.readings import GpuReading, MigInstance, Process
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.estimate import estimate_training
from tool_aware.memory.fit import fit_card
from tool_aware.memory.knobs import CHOICES
from tool_aware.memory.spec import TrainingSpec
from tool_aware.monitor import display, printout
from tool_aware.monitor.checks import CheckLine
from tool_aware.monitor.sampling import Sample, Statistics, TrainingProgress
from tool_aware.units import GIB, MIB

GOLDEN = REPOSITORY / "tests" / "golden" / "monitor"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

BUSY = GpuReading(
    0, "NVIDIA GeForce RTX 4070 Ti", "GPU-1a2b", (8, 9), 12282 * MIB, 6050 * MIB, 300 * MIB, 98, 64, 212.3, 285.0, 2610,
    3105, processes=(Process(4711, "train_tool_aware.py", 5300 * MIB), Process(812, "Xorg", 310 * MIB)),
)  # fmt: skip
STATES = {
    "busy": BUSY,
    "full_and_throttled": GpuReading(
        0, "NVIDIA GeForce RTX 3060", None, (8, 6), 12288 * MIB, 11900 * MIB, 300 * MIB, 100, 88, 170.0, 170.0, 1320,
        2100, "thermal", tuple(Process(1000 + i, f"job_{i}.py", None) for i in range(5)),
    ),
    "unknown_fields": GpuReading(1, "NVIDIA T4", total_bytes=15360 * MIB, used_bytes=3 * MIB),
    "nothing_known": GpuReading(2),
    "lost": GpuReading(1, "NVIDIA H100 80GB HBM3", problem="GPU is lost (it has fallen off the bus)"),
    "hanging": GpuReading(1, "NVIDIA H100 80GB HBM3", problem="no answer from the driver for 31 s"),
    "mig": GpuReading(
        0, "NVIDIA A100-SXM4-80GB", None, (8, 0), 81920 * MIB, 900 * MIB, 300 * MIB, None, 35, 62.0, 400.0, 210, 1410,
        is_mig=True, instances=(MigInstance("MIG-11", 13 * MIB, 19968 * MIB), MigInstance("MIG-22", None, 9856 * MIB)),
    ),
    "long_name": GpuReading(
        7, "NVIDIA RTX 6000 Ada Generation, a name that goes on far longer than a line has room for", None, (8, 9),
        49140 * MIB, 24570 * MIB, 300 * MIB, 50, 60, None, 300.0, None, None,
        processes=(Process(1, "a_program_with_a_very_long_name_" * 4, 24000 * MIB),),
    ),
}  # fmt: skip


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def render(sample: Sample, width: int, glyphs: display.Glyphs = display.UNICODE, **options: object) -> str:
    return "".join(f"{text}\n" for text, _ in display.screen(sample, width, glyphs, **options))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("state", STATES)
def test_the_live_view_of_each_state(state, width):
    history = {gpu.index: [0, 20, None, 60, 80, 100, 98] for gpu in STATES.values()}
    text = render(Sample(83.0, NOON, [STATES[state]]), width, mark_bytes=6.4 * GIB, histories=history)
    assert max(map(len, text.splitlines())) <= width
    check_golden(f"screen_{state}_{width}", text)


def test_the_live_view_with_a_training_run_and_a_lost_second_gpu():
    training = TrainingProgress(4711, 120, 300, 0.4312, 250.0)
    text = render(Sample(83.0, NOON, [BUSY, STATES["lost"]], training), 80)
    check_golden("screen_training_80", text)


def test_a_terminal_without_unicode_gets_ascii():
    assert display.glyphs_for("utf-8") is display.UNICODE
    assert display.glyphs_for("latin-1") is display.glyphs_for(None) is display.ASCII
    text = render(Sample(83.0, NOON, [BUSY]), 80, display.ASCII, mark_bytes=6.4 * GIB, histories={0: [0, 50, 100]})
    text.encode("ascii")
    check_golden("screen_ascii_80", text)


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_breaks_nothing(width):
    for state in STATES.values():
        text = render(Sample(83.0, NOON, [state]), width, mark_bytes=6.4 * GIB)
        assert max(map(len, text.splitlines())) <= width


def test_lines_for_a_pipe():
    sample = Sample(83.0, NOON, list(STATES.values()), TrainingProgress(4711, 120, 300, 0.4312, 250.0))
    check_golden("plain", "".join(f"{line}\n" for line in display.plain_lines(sample)))


def test_the_summary_at_the_end():
    statistics = Statistics()
    for second in range(0, 600, 5):
        gpus = [BUSY, STATES["unknown_fields"] if second % 100 else GpuReading(1, "NVIDIA T4", problem="GPU is lost")]
        statistics.add(Sample(float(second), NOON, gpus))
    check_golden("summary", display.summary(statistics) + "\n")


def test_the_gpus_of_a_check():
    check_golden("overview", "".join(f"{line}\n" for line in printout.overview(list(STATES.values()))))


@pytest.mark.parametrize("width", [80, 120])
def test_the_lines_of_a_check(width):
    lines = [
        CheckLine("ok", "driver", "570.86.15, serves CUDA up to 12.8"),
        CheckLine(
            "problem", "memory", "training would take about 6.3 GiB, 4.1 GiB are free on GPU 0",
            "close vllm (4711) or set optimization.offload: true, lora.r: 4",
        ),
        CheckLine("warning", "model", "mistralai/Mistral-7B-Instruct-v0.2 is not downloaded and HF_TOKEN is not set",
                  "export HF_TOKEN=... (https://huggingface.co/settings/tokens)"),
    ]  # fmt: skip
    text = "".join(f"{text}\n" for _, text in printout.check_text(lines, width))
    check_golden(f"check_{width}", f"{text}\n{printout.verdict(lines)}\n")


SPEC = TrainingSpec(PRESETS["mistral-7b-v0.2"], batch_size=8, seq_length=400, packing="prefix", prefix_tokens=260)


def test_an_estimate():
    estimate = estimate_training(SPEC)
    texts = [printout.spec_text(SPEC), printout.estimate_table(estimate), printout.basis_text(estimate)]
    check_golden("estimate", "\n".join([*texts, printout.speed_text(SPEC, "RTX 4070 Ti"), ""]))


@pytest.mark.parametrize("vram", [3, 6, 12])
def test_what_fits(vram):
    check_golden(f"fit_{vram}gb", printout.fit_text(fit_card(SPEC, vram * GIB, CHOICES)) + "\n")


def test_the_table_of_cards():
    check_golden("fit_table", printout.fit_table(SPEC, CHOICES) + "\n")


def test_no_colour_where_none_is_wanted(monkeypatch):
    from tool_aware.monitor.watching import Screen

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    stream = Terminal()
    screen = Screen(stream, None)
    screen.take(Sample(0.0, NOON, [STATES["full_and_throttled"]]))
    screen.close()
    assert "memory" in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()
    assert "\x1b[32m" not in stream.getvalue()


def test_names_that_others_chose_do_not_act_on_the_terminal(monkeypatch):
    from tool_aware.monitor.watching import Screen

    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    evil = "x\x1b]0;title\x07\x1b[2J\x1b[Hy"
    process = Process(7, evil, GIB)
    reading = replace(STATES["full_and_throttled"], name=evil, processes=(process,), problem=None)
    screen = Screen(stream, None)
    screen.take(Sample(0.0, NOON, [reading, GpuReading(1, problem=evil)]))
    screen.close()
    assert "\x1b]0;" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
