"""The operations of backend.Operations in plain torch, for the CPU. triton_ops.py has them for CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from tool_aware.engine.projections import StackedLinear


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """See Operations.rms_norm."""
    wide = _wide(x)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    out.copy_(weight * normed.to(x.dtype))


def rms_norm_backward(  # noqa: PLR0917
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    gradient: torch.Tensor,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """See Operations.rms_norm_backward."""
    wide, scaled = _wide(x), _wide(gradient) * _wide(weight)
    factor = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normed = wide * factor
    grad_x = factor * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    out.copy_(grad_x if residual is None else grad_x + residual)


def rotate(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, *, add: torch.Tensor | None = None
) -> None:
    """See Operations.rotate."""
    summed = _wide(heads) if add is None else _wide(heads) + _wide(add)
    first, second = summed.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    out.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


def norm_and_rotate(  # noqa: PLR0917
    heads: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor
) -> None:
    """See Operations.norm_and_rotate."""
    wide = _wide(heads)
    rotate(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight, cos, sin, out)


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
    back = torch.empty_like(_wide(gradient))
    rotate(gradient, cos, -sin, back, add=add)
    rms_norm_backward(heads, weight, eps, back, None, out)


def swiglu(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """See Operations.swiglu."""
    out.copy_(functional.silu(_wide(gate)) * up)


def swiglu_backward_(gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor) -> None:
    """See Operations.swiglu_backward_."""
    wide_gate, wide = _wide(gate), _wide(gradient)
    grad_gate, activated = torch.ops.aten.silu_backward(wide * up, wide_gate), functional.silu(wide_gate)
    value = activated * up
    up.copy_(activated.mul_(wide))
    gate.copy_(grad_gate)
    gradient.copy_(value)


def fill_matrix(matrix: torch.Tensor, layer: StackedLinear, *, outputs: int, ranks: int, is_last: bool) -> bool:
    """See Operations.fill_matrix; projections.py writes the matrix part by part instead."""
    return False


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
