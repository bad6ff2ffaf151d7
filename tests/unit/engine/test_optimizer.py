"""The flat optimizer: its steps are those of torch, also where its neighbours expect an ordinary one."""

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_that_is_skipped_on_the_device_leaves_everything_as_if_it_had_not_been(dtype):
    def run(gradients: list[float | None]) -> FlatAdamW:
        optimizer = FlatAdamW([torch.nn.Parameter(torch.ones(3, dtype=dtype))], lr=0.1, weight_decay=0.1, fused=True)
        for value in gradients:
            optimizer.gradient.fill_(value)
            optimizer.step(is_skipped=~torch.isfinite(optimizer.gradient.sum()))
        return optimizer

    infinite, never = run([1.0, float("nan"), -0.5, float("inf")]), run([1.0, -0.5])
    assert infinite._parameters[0].tolist() == never._parameters[0].tolist() != [1.0] * 3
    states = [optimizer.state_dict()["state"][0] for optimizer in (infinite, never)]
    assert states[0]["step"].item() == 2
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])

    plain = FlatAdamW([torch.nn.Parameter(torch.ones(3, dtype=dtype))], lr=0.1, weight_decay=0.1, fused=True)
    for value in (1.0, -0.5):
        plain.gradient.fill_(value)
        plain.step()
    assert torch.equal(plain._parameters[0], never._parameters[0])


def test_sixteen_bit_adapters_keep_a_float32_master():
    torch.manual_seed(0)
    start = torch.randn(8, 8)
    exact, rounded = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.bfloat16())
    reference = torch.optim.AdamW([exact], lr=1e-4, weight_decay=0.0)
    ours = FlatAdamW([rounded], lr=1e-4, weight_decay=0.0)
    begin = ours.param_groups[0]["params"][0].clone()
    for _ in range(20):
        exact.grad = torch.ones(8, 8)
        rounded.grad = torch.ones(8, 8, dtype=torch.bfloat16)
        reference.step()
        ours.step()
    moved = (ours.param_groups[0]["params"][0] - begin).view(8, 8)
    torch.testing.assert_close(moved, exact.detach() - start, rtol=1e-3, atol=1e-7)
    assert rounded.dtype == torch.bfloat16


def test_the_flat_optimizer_steps_like_torchs_own():
    torch.manual_seed(0)
    shapes = [(3, 4), (5,), (2, 2)]
    ours, theirs = (
        [torch.nn.Parameter(torch.arange(1.0, 1 + torch.Size(s).numel()).view(s)) for s in shapes] for _ in "ab"
    )
    flat, reference = FlatAdamW(ours, lr=0.1, weight_decay=0.01), torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.01)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            gradient = torch.randn_like(b)
            a.grad.copy_(gradient)
            b.grad = gradient.clone()
        norms = clip_gradients_([flat.collect_gradients()], 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        torch.testing.assert_close(*norms)
        flat.step()
        reference.step()
        flat.zero_grad(set_to_none=True)
        assert all((a.grad == 0).all() for a in ours)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_master_survives_saving_and_loading(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(8).bfloat16())
    optimizer = FlatAdamW([parameter], lr=1e-3)
    parameter.grad.fill_(1)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    restored = torch.nn.Parameter(torch.zeros(8).bfloat16())
    other = FlatAdamW([restored], lr=1e-3)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    torch.testing.assert_close(other.param_groups[0]["params"][0], optimizer.param_groups[0]["params"][0])
    torch.testing.assert_close(restored, parameter)
