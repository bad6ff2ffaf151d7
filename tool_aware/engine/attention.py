"""The mask of a pack for transformers' attention: dense, every pair of tokens computed. decoder.py needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tool_aware.engine.packing import Pack

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def attention_mask(pack: Pack, config: PreTrainedConfig, dtype: torch.dtype) -> torch.Tensor:
    """Build the mask of `pack` for a model of this config: a bool (B, 1, T, T), or eager attention's additive one.

    transformers uses it unchanged, so it must contain a sliding window.
    """
    import torch

    visible = pack.visible(getattr(config, "sliding_window", None))
    if config._attn_implementation != "eager":
        return visible
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, lowest)
