"""The element-wise parts of a decoder layer and their gradients, in plain torch. `kernels.py` has them for CUDA.

T tokens, H hidden size, I intermediate size, D size of a head. Everything is computed in float32 at least and rounded
once. Outputs may be views of wider buffers.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """Write x / rms(x) * weight into `out`; x and out (T, H), weight (H,)."""
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
    """Write the gradient of x, given that of the norm's output, plus `residual`, into `out`; all (T, H)."""
    wide, scaled = _wide(x), _wide(gradient) * _wide(weight)
    factor = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normed = wide * factor
    of_x = factor * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    out.copy_(of_x if residual is None else of_x + residual)


def rotate(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, *, add: torch.Tensor | None = None
) -> None:
    """Apply rotary position embeddings to `heads` + `add` (T, heads, D); cos and sin (T, D / 2). -sin rotates back.

    `out` may be `heads`.
    """
    summed = _wide(heads) if add is None else _wide(heads) + _wide(add)
    first, second = summed.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    out.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


def swiglu(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """Write silu(gate) * up into `out`; all (T, I)."""
    out.copy_(functional.silu(_wide(gate)) * up)


def swiglu_backward_(gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor) -> None:
    """Replace `gate` and `up` by their gradients, given that of silu(gate) * up; all (T, I)."""
    wide_gate, wide = _wide(gate), _wide(gradient)
    sigmoid = torch.sigmoid(wide_gate)
    of_gate = wide * up * sigmoid * (1 + wide_gate * (1 - sigmoid))
    up.copy_(wide * wide_gate * sigmoid)
    gate.copy_(of_gate)


def fill_matrix(*_: object, **__: object) -> bool:
    """Leave it to projections.py to write weights and updates into their matrix, part by part."""
    return False


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
