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
    from transformers import PreTrainedModel

PACKED_FLEX = "packed_flex"  # our name for FlexAttention inside compiled layers
BLOCK = 128  # FlexAttention's block size; packs are padded to a multiple of it, so that few lengths are compiled


def attention_mask(pack: Pack, implementation: str, dtype: torch.dtype) -> Any:
    """Build the mask of `pack` for `implementation`: a BlockMask, a bool (B, 1, T, T), or eager's additive one."""
    import torch

    if implementation in ("flex_attention", PACKED_FLEX):
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


def use_packed_flex(base: PreTrainedModel) -> None:
    """Switch a model whose layers are compiled from transformers' FlexAttention to ours."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_FLEX, _packed_flex)
    base.config._attn_implementation = PACKED_FLEX


def _packed_flex(  # noqa: PLR0917  (transformers' signature)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """FlexAttention over as many key-value heads as query heads: (B, H, T, D) -> (B, T, H, D).

    The kernel's backward pass runs one program per key block and key-value head. In a pack nearly all work falls on
    the few blocks of the prefix, so that with grouped heads most of the GPU would stand idle.
    """
    from torch.nn.attention.flex_attention import flex_attention

    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    output = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None
