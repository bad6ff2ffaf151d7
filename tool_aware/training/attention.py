"""Which attention computes a pack, and the mask it takes.

SDPA reads a dense (T, T) mask and computes every pair; it is exact everywhere and the fallback. FlexAttention skips
the blocks of 128 x 128 pairs in which no token sees another, which in a pack of many examples are most of them; it
has to be compiled, so it is for CUDA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tool_aware.training.packing import PREFIX, Pack

if TYPE_CHECKING:
    import torch

BLOCK = 128  # FlexAttention's block size; packs are padded to a multiple of it, so that few lengths are compiled


def choose_attention(setting: str, device_type: str) -> str:
    """Resolve `model.attn_implementation: auto` for training: FlexAttention on CUDA, SDPA elsewhere."""
    if setting != "auto":
        return setting
    return "flex_attention" if device_type == "cuda" else "sdpa"


def attention_mask(pack: Pack, implementation: str, dtype: torch.dtype) -> Any:
    """Build the mask of `pack` for `implementation`: a BlockMask, a bool (B, 1, T, T), or eager's additive one."""
    import torch

    if implementation == "flex_attention":
        return _block_mask(pack)
    visible = pack.visible()
    if implementation != "eager":
        return visible
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, lowest)


def _block_mask(pack: Pack) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    group, example = pack.group_ids, pack.example_ids

    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        same_example = example[row, query] == example[row, key]
        shared = example[row, key] == PREFIX
        return (query >= key) & (group[row, query] == group[row, key]) & (same_example | shared)

    rows, length = group.shape
    return create_block_mask(visible, rows, None, length, length, device=group.device, BLOCK_SIZE=BLOCK)
