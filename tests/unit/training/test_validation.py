"""The best scoring of val.json is remembered with its weights, through checkpoints and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tool_aware.paths import BEST_ADAPTER_NAME
from tool_aware.training.validation import Validation, Validations


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2,), value), "b": torch.full((1,), -value)}


def scored(*figures: tuple[float, float]) -> Validations:
    """Scorings of 100 rows, (tool accuracy, loss), at steps 1, 2, ...; the weights of step n are all n."""
    validations = Validations()
    for step, (accuracy, loss) in enumerate(figures, start=1):
        validations.add(Validation(step, loss, accuracy, 100), lambda step=step: weights(step))
    return validations


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 2),  # two standard errors lower is lower
        ([(0.5, 1.0), (0.5, 0.8), (0.5, 0.9)], 2),  # then the loss decides
        ([(0.93, 1.1), (0.95, 1.0), (0.94, 0.9)], 3),  # one row of a hundred is chance
        ([(0.95, 1.0), (0.93, 0.9), (0.91, 0.8)], 2),  # two are no step towards four
        ([(0.93, 0.8), (0.95, 1.0)], 1),
        ([(0.9, 0.8), (0.95, 1.0)], 2),
        ([(1.0, 1.0), (0.99, 0.9), (0.98, 0.8)], 2),  # all right: a row less may be chance
        ([(0.5, 1.0), (0.5, 1.0)], 1),  # then the earlier step
        ([(0.5, 1.0), (0.5, float("nan"))], 1),  # not a number is no improvement
    ],
)
def test_the_best_has_the_lowest_loss_of_those_as_accurate_as_the_most_accurate(figures, best):
    validations = scored(*figures)
    assert validations.best.step == best
    assert torch.equal(validations.best_weights["a"], weights(best)["a"])
    assert validations.since_best == len(figures) - best


def test_weights_are_copied_when_they_are_the_best():
    live = weights(1)
    validations = Validations()
    validations.add(Validation(1, 1.0, 0.5, 8), lambda: live)
    live["a"].fill_(9)
    assert torch.equal(validations.best_weights["a"], torch.ones(2))


@pytest.mark.parametrize("step", [2, 3], ids=["its own adapter is the best", "an earlier adapter is the best"])
def test_a_checkpoint_brings_back_every_scoring_and_the_best_weights_once(tmp_path: Path, step):
    from safetensors.torch import save_file

    validations = scored((0.5, 1.0), (0.7, 1.0), (0.6, 1.0))
    save_file(weights(step), tmp_path / "adapter_model.safetensors")
    validations.save(tmp_path, step)
    assert (tmp_path / BEST_ADAPTER_NAME).is_file() == (step == 3)
    loaded = Validations.load(tmp_path)
    assert loaded.history == validations.history
    assert loaded.best == validations.best
    assert torch.equal(loaded.best_weights["a"], weights(2)["a"])


def test_a_checkpoint_without_scorings_knows_nothing(tmp_path):
    assert Validations.load(tmp_path).best is None
    Validations().save(tmp_path, 1)
    assert Validations.load(tmp_path).history == []
