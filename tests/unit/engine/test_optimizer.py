"""The flat optimizer where its neighbours expect an ordinary one."""

from __future__ import annotations

import pytest
import torch

from tool_aware.engine.optimizer import FlatAdamW, clip_gradients_


def test_gradients_that_someone_replaced_are_fetched_and_missing_ones_are_zero():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(4)]
    optimizer = FlatAdamW(parameters, lr=0.1)
    own = parameters[0].grad
    own += 1
    parameters[1].grad = torch.full((2,), 2.0)
    parameters[2].grad = None
    parameters[3].grad = optimizer.gradient[6:]  # another view of the right place
    parameters[3].grad += 4
    assert optimizer.collect_gradients().tolist() == [1, 1, 2, 2, 0, 0, 4, 4]
    assert parameters[0].grad is own
    parameters[1].grad = torch.full((2,), 5.0)
    optimizer.zero_grad()
    sum((parameter * 3).sum() for parameter in parameters).backward()
    assert optimizer.gradient.tolist() == [3] * 8


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_unscales_the_flat_gradient_and_skips_infinite_ones(fused):
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer, scaler = FlatAdamW(parameters, lr=0.1, fused=fused), torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor, moves in ((2.0, True), (float("inf"), False)):
        before = parameters[0].detach().clone()
        optimizer.zero_grad()
        scaler.scale(sum((parameter * factor).sum() for parameter in parameters)).backward()
        optimizer.collect_gradients()
        scaler.unscale_(optimizer)
        assert parameters[1].grad.tolist() == [factor, factor]
        clip_gradients_([optimizer.gradient], 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, parameters[0]) != moves
