"""The loop on a GPU, where it launches the next step before it knows how this one went."""

from __future__ import annotations

import pytest
import torch

from tests.fixtures.training import adapter_of
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.training.loop import NotFiniteError, TrainingLoop

pytestmark = pytest.mark.gpu
RECORDED = {"optimization__cuda_graphs": "true", "training__eval_steps": 12, "logging__logging_steps": 1}


def test_a_run_that_launches_ahead_learns_the_same(make_loop, monkeypatch):
    adapters, losses = [], []
    for is_ahead in (True, False):
        loop = make_loop(training__max_steps=12, **RECORDED)
        assert loop.can_run_ahead
        if not is_ahead:
            monkeypatch.setattr(TrainingLoop, "can_run_ahead", False)
        loop.run()
        adapters.append(adapter_of(loop))
        losses.append(loop.validations.history[-1].loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert (adapters[0] - adapters[1]).norm() < 0.02 * adapters[1].norm()


def test_nothing_in_a_step_waits_for_the_gpu(make_loop, monkeypatch):
    loop = make_loop(training__max_steps=12, **RECORDED)
    loop.train[:] = loop.train[:1] * len(loop.train)  # packs of one size, which is recorded after two
    take_step, watched = TrainingLoop._take_step, []

    def watch(self: TrainingLoop) -> None:
        if not 4 <= self.step < 10:
            return take_step(self)
        torch.cuda.set_sync_debug_mode("error")
        try:
            take_step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        watched.append(self.step)

    monkeypatch.setattr(TrainingLoop, "_take_step", watch)
    loop.run()
    assert watched == list(range(5, 11))


def test_an_update_by_a_gradient_that_is_not_finite_is_left_out_on_the_gpu(make_loop, monkeypatch):
    loop = make_loop(training__max_steps=12, **RECORDED)
    add_gradient, before = PackedDecoder.add_gradient, []

    def poison(self: PackedDecoder, packed: object, weight: torch.Tensor) -> torch.Tensor:
        if loop.step == 8:
            assert loop.can_run_ahead
            before.append([adapter_of(loop), loop.optimizer.state_dict()["master"].clone()])
        return add_gradient(self, packed, weight * (float("nan") if loop.step == 8 else 1))

    monkeypatch.setattr(PackedDecoder, "add_gradient", poison)
    with pytest.raises(NotFiniteError, match="not finite at step 9"):
        loop.run()
    assert loop.step == 8
    ((adapter, master),) = before
    assert torch.equal(adapter_of(loop), adapter)
    assert torch.equal(loop.optimizer.state_dict()["master"], master)
    assert [path.name for path in loop.output_dir.glob("checkpoint-*")] == ["checkpoint-8"]
