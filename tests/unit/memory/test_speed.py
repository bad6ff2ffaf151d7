"""The expected time of a step is within the stated band of every measured one."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import median

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.gpu.published_cards import CARDS, published_card
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.measured import is_comparable, mean_and_worst, spec_of
from tool_aware.memory.spec import TrainingSpec
from tool_aware.memory.speed import (
    MEAN_ERROR_PERCENT,
    MEASURED_ON,
    NINE_OF_TEN_PERCENT,
    WORST_ERROR_PERCENT,
    estimate_speed,
)

RESULTS = REPOSITORY / "benchmarks" / "results"
SPEC = TrainingSpec(PRESETS["mistral-7b-v0.2"])
HAND_WRITTEN = "e7a74d8"  # the first commit with the decoder as it is; runs of others are not compared
AHEAD = "39495b7"  # the loop that launches a pass before it knows how the step before went


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA GeForce RTX 4070 Ti", 80.2),
        ("NVIDIA GeForce RTX 4070", 58.3),
        ("NVIDIA GeForce RTX 5070", 61.7),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("4090", 165.2),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Voodoo 2", None),
    ],
)
def test_cards_are_found_by_the_names_the_driver_gives_them_and_no_other_is_taken_for_one(name, tflops):
    card = published_card(name)
    assert (card and card.tflops) == tflops


def test_every_card_is_found_by_its_own_name():
    assert [published_card(card.name) for card in CARDS] == list(CARDS)


def test_no_step_is_expected_to_be_faster_than_the_cards_arithmetic():
    for tokens in (256, 2048, 8192):
        speed = estimate_speed(replace(SPEC, seq_length=tokens), "RTX 4070 Ti")
        assert speed.limit_s <= speed.least_s < speed.expected_s < speed.most_s
    without_attention = 2 * SPEC.resolved.passes * 6.98e9 * 2048 / 80.2e12
    assert without_attention < estimate_speed(SPEC, "RTX 4070 Ti").limit_s < 1.05 * without_attention


def test_of_two_cards_with_the_same_arithmetic_that_with_less_bandwidth_is_slower():
    assert estimate_speed(SPEC, "L4").expected_s > 1.1 * estimate_speed(SPEC, "A10").expected_s


def test_the_stated_errors_are_those_of_the_measured_steps():
    errors, inside = [], 0
    for path in sorted(RESULTS.glob("train_memory*.json")):
        measured = json.loads(path.read_text())
        for row in filter(is_comparable, measured["rows"]):
            spec = spec_of(row)
            speed, seconds = estimate_speed(spec, measured["device"]), row["seconds_per_step"] / spec.accumulation
            errors.append(100 * (speed.expected_s / seconds - 1))
            inside += speed.least_s <= seconds <= speed.most_s
    mean, worst = mean_and_worst(errors)
    assert f"{len(errors)} steps" in MEASURED_ON
    assert MEAN_ERROR_PERCENT - 1 <= mean <= MEAN_ERROR_PERCENT
    assert WORST_ERROR_PERCENT - 1 <= worst <= WORST_ERROR_PERCENT
    assert sorted(map(abs, errors))[int(0.9 * len(errors))] <= NINE_OF_TEN_PERCENT
    assert inside >= 0.9 * len(errors)


def throughput_runs():
    """Yield device, spec and seconds of train_throughput.py's runs since the hand-written decoder."""
    for path in sorted(RESULTS.glob("train_throughput*.json")):
        measured = json.loads(path.read_text())
        if measured["preset"] != "7b":
            continue
        runs = measured.get("runs") or [measured]
        commits = [run.get("commit") for run in runs]
        for run in runs[commits.index(HAND_WRITTEN) if HAND_WRITTEN in commits else 0 :]:
            for row in run["rows"]:
                kind, examples, *rest = [*row["row"].split("-"), ""]
                if kind in {"ours", "transformers"} and examples.isdigit():
                    yield measured["device"], spec_of_row(kind, int(examples), rest), row["seconds_per_step"]


def spec_of_row(kind: str, examples: int, rest: list[str]) -> TrainingSpec:
    return replace(
        SPEC,
        batch_size=examples,
        seq_length=364,
        prefix_tokens=260,
        answer_tokens=80,
        decoder="own" if kind == "ours" else kind,
        offload="offload" in rest,
        kept_layers=int(rest[rest.index("kept") + 1]) if "kept" in rest else 0,
        checkpointing="free" not in rest,
        cached_layers=32 if "cached" in rest else 0,
        cuda_graphs="auto" if "launched" not in rest else False,
    )


@pytest.mark.parametrize("is_kept", [True, False], ids=["activations kept", "computed again"])
def test_a_recorded_layer_takes_what_it_took_of_the_small_model_on_an_h100(is_kept):
    measured = json.loads((RESULTS / "train_throughput_135m_h100.json").read_text())
    runs = {"gradient_checkpointing=false" in run["command"]: run for run in measured["runs"] if run["commit"] == AHEAD}
    seconds = median(row["seconds_per_step"] for row in runs[is_kept]["rows"])
    small = replace(
        SPEC,
        architecture=replace(SPEC.architecture, layers=30, hidden=576, intermediate=1536),
        checkpointing=not is_kept,
    )
    assert estimate_speed(small, "H100").expected_s == pytest.approx(seconds, rel=0.05)
    assert estimate_speed(replace(small, cuda_graphs=False), "H100").expected_s > 3 * seconds


def test_the_throughput_runs_which_nothing_was_fitted_to_are_within_the_band():
    found = list(throughput_runs())
    assert len(found) > 30
    assert {device for device, *_ in found} == {"NVIDIA H100 80GB HBM3", "NVIDIA H200"}
    for device, spec, seconds in found:
        speed = estimate_speed(spec, device)
        assert speed.is_measured
        assert speed.least_s <= seconds <= speed.most_s, (device, spec.batch_size, seconds, speed)
