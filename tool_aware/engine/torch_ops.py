"""The operations of backend.Operations in plain torch, for the CPU. triton_ops.py has them for CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from tool_aware.engine.projections import StackedLinear


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """See Operations.rms_norm."""
    wide = wide_of(x)
    torch.mul(weight, (wide * _inverse_rms(wide, eps)).to(x.dtype), out=out)


def rms_norm_backward(  # noqa: PLR0917
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    gradient: torch.Tensor,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """See Operations.rms_norm_backward."""
    wide, scaled = wide_of(x), wide_of(gradient) * wide_of(weight)
    factor = _inverse_rms(wide, eps)
    along = (scaled * wide).mean(-1, keepdim=True).mul_(factor.pow(3))
    grad_x = scaled.mul_(factor).addcmul_(wide, along, value=-1)
    out.copy_(grad_x if residual is None else grad_x.add_(residual))


def rotate(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, *, add: torch.Tensor | None = None
) -> None:
    """See Operations.rotate."""
    summed = wide_of(heads) if add is None else wide_of(heads) + wide_of(add)
    first, second = summed.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = (first * cos).addcmul_(second, sin, value=-1), (second * cos).addcmul_(first, sin)  # `out` may be `heads`
    for half, part in zip(out.chunk(2, dim=-1), turned, strict=True):
        half.copy_(part)


def norm_and_rotate(  # noqa: PLR0917
    heads: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor
) -> None:
    """See Operations.norm_and_rotate."""
    wide = wide_of(heads)
    rotate((wide * _inverse_rms(wide, eps)).mul_(weight), cos, sin, out)


def norm_and_rotate_backward(  # noqa: PLR0917
    heads: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    gradient: torch.Tensor,
    out: torch.Tensor,
    *,
    add: torch.Tensor | None = None,
) -> None:
    """See Operations.norm_and_rotate_backward."""
    back = torch.empty_like(wide_of(gradient))
    rotate(gradient, cos, -sin, back, add=add)
    rms_norm_backward(heads, weight, eps, back, None, out)


def swiglu(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """See Operations.swiglu."""
    torch.mul(functional.silu(wide_of(gate)), up, out=out)


def swiglu_backward_(gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor) -> None:
    """See Operations.swiglu_backward_."""
    wide_gate, wide = wide_of(gate), wide_of(gradient)
    activated = functional.silu(wide_gate)
    through_up = wide * up
    gate.copy_(torch.ops.aten.silu_backward(through_up, wide_gate))
    value = torch.mul(activated, up, out=through_up)
    torch.mul(activated, wide, out=up)
    gradient.copy_(value)


def fill_matrix(matrix: torch.Tensor, layer: StackedLinear, *, outputs: int, ranks: int, is_last: bool) -> bool:
    """See Operations.fill_matrix; projections.py writes the matrix part by part instead."""
    return False


def _inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return 1 / sqrt(mean(x^2) + eps) over the last dimension, which stays with size 1."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def copier(copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """See Operations.copier."""
    return partial(copy_all, copies)


def copy_all(copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy the second tensor of each pair into the first."""
    for to, of in copies:
        to.copy_(of)


def wide_of(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor of 32 bits at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
