"""The mask of a pack for transformers' attention: dense, every pair of tokens computed. decoder.py needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tool_aware.training.packing import Pack

if TYPE_CHECKING:
    import torch


def attention_mask(pack: Pack, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """Build the mask of `pack` for `implementation`: a bool (B, 1, T, T), or eager's additive one."""
    import torch

    visible = pack.visible()
    if implementation != "eager":
        return visible
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, lowest)
