"""Keys and values of a batch whose rows all begin with the same tokens.

Every prompt of a dataset starts with the same tool description. Its keys and values are computed once per model and
laid into the first columns of every row; each batch then overwrites only the columns after them:

    column   0 ........ P-1 | P ............ P+T-1 | P+T ............ capacity-1
    holds    shared prefix  | pad ... own tail     | generated tokens
    position 0 ........ P-1 |         P ... P+t-1  | P+t ...

A row's own tail is left-padded to the batch's longest, T, so that generation starts in one column for all rows. Pad
columns are masked, never attended to, and take no position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tool_aware.model.base import cache_arguments
from tool_aware.text import common_prefix_length

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class PrefixCache:
    """A fixed-size key/value store that Mistral's attention layers write to and read from.

    Shapes: `keys[layer]` and `values[layer]` are (rows, key_value_heads, capacity, head_dim). All sizes and addresses
    stay the same from step to step, so a decoding step can be captured as a CUDA graph.

    transformers calls only `update` of a cache as long as the model is called with position ids and a 4-D mask.
    """

    def __init__(self, columns: torch.Tensor) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.columns = columns  # (new tokens,) where the next forward pass writes
        self.visible: int | None = None  # columns that the next forward pass sees; None = all

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (rows, heads, new tokens, head_dim) of one layer and return all that its queries attend to."""
        if layer == len(self.keys):  # the pass over the prefix itself: there is nothing before it
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[layer].index_copy_(2, self.columns, keys)
            self.values[layer].index_copy_(2, self.columns, values)
        return self.keys[layer][:, :, : self.visible], self.values[layer][:, :, : self.visible]

    def expanded(self, rows: int, capacity: int) -> PrefixCache:
        """Copy a one-row prefix into each of `rows` rows of `capacity` columns; the other columns are zero."""
        wide = PrefixCache(self.columns)
        for narrow, target in ((self.keys, wide.keys), (self.values, wide.values)):
            for layer in narrow:  # (1, heads, prefix, head_dim)
                _, heads, prefix, head_dim = layer.shape
                target.append(layer.new_zeros(rows, heads, capacity, head_dim))
                target[-1][:, :, :prefix] = layer
        return wide


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens with which all prompts begin; each prompt keeps at least its last token for itself."""
    return min(common_prefix_length([list(prompt) for prompt in prompts]), min(map(len, prompts)) - 1)


@dataclass(frozen=True)
class Prefix:
    """The tokens that prompts begin with, and their keys and values: a cache of one row, exactly full."""

    ids: tuple[int, ...]
    cache: PrefixCache

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def shared_by(cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Prefix:
        """Run what all prompts begin with through `model` once."""
        return cls.of(model, prompts[0][: shared_prefix_length(prompts)])

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Sequence[int]) -> Prefix:
        """Run tokens through `model` once."""
        import torch

        device = model.device
        columns = torch.arange(len(ids), device=device)
        cache = PrefixCache(columns)
        with torch.inference_mode():
            model(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=(columns[None, :] <= columns[:, None])[None, None],  # (1, 1, ids, ids)
                position_ids=columns[None],
                **cache_arguments(model, cache),
                logits_to_keep=1,
            )
        return cls(tuple(ids), cache)
