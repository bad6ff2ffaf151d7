"""The modules of a model that the decoder reads, with types: Mistral, Llama and what is built like them.

torch declares every attribute of a module as `Tensor | Module`. What the engine relies on is declared here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


class NormModule(Protocol):
    """An RMS norm."""

    weight: nn.Parameter  # (H,), or (D,) of one over each head
    variance_epsilon: float


class AttentionModule(Protocol):
    """The projections of a self-attention; linear layers, with or without an update of LoRA.

    Some models norm each head of query and key: `q_norm` and `k_norm`, which `head_norms` reads.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    head_dim: int


class MlpModule(Protocol):
    """The projections of a SwiGLU block."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module


class LayerModule(Protocol):
    """One transformer layer."""

    input_layernorm: NormModule
    self_attn: AttentionModule
    post_attention_layernorm: NormModule
    mlp: MlpModule


class RotaryModule(Protocol):
    """Rotary position embeddings."""

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, (B, T, D) each, in the dtype of `x`, for `position_ids` (B, T)."""


class TransformerModule(Protocol):
    """A model without its output head."""

    embed_tokens: nn.Embedding
    layers: Sequence[LayerModule]
    norm: NormModule
    rotary_emb: RotaryModule


def head_norms(attention: AttentionModule) -> tuple[NormModule, NormModule] | None:
    """Return the norms over each head of query and of key; None if the attention has none."""
    query, key = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return None if query is None or key is None else (query, key)


def transformer_of(base: PreTrainedModel) -> TransformerModule:
    """Return the part of a causal language model below its output head."""
    transformer: Any = base.model
    return transformer


def head_of(base: PreTrainedModel) -> nn.Linear:
    """Return the output head of a causal language model; its weight is (V, H)."""
    return base.get_output_embeddings()
