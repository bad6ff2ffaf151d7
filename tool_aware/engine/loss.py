"""Cross-entropy at the label positions of a frozen output head, without ever holding all logits.

Full logits cost 12 bytes x vocabulary x tokens (0.73 GiB for 2,048 tokens of a 32,000-word vocabulary). Only labelled
tokens need any, and as the head is frozen, its input's gradient can be computed chunk by chunk in the forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tool_aware.engine.sizes import CHUNK_LABELS


def losses_and_gradient(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, wants_gradient: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return -log p(label) for each label, (L,), and the gradient of their sum with respect to `hidden`, (L, H).

    `hidden` (L, H), frozen `weight` (V, H), `labels` (L,).
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    losses = torch.empty(len(labels), dtype=wide, device=hidden.device)
    gradient = torch.empty_like(hidden) if wants_gradient else None
    for start in range(0, len(labels), CHUNK_LABELS):
        part = slice(start, start + CHUNK_LABELS)
        logits = (hidden[part] @ weight.T).to(wide)  # (chunk, V)
        log_normalizer = logits.logsumexp(-1)
        target = labels[part, None]
        losses[part] = log_normalizer - logits.gather(1, target).squeeze(1)
        if gradient is not None:
            probabilities = logits.sub_(log_normalizer[:, None]).exp_()
            probabilities.scatter_add_(1, target, -torch.ones_like(target, dtype=wide))
            gradient[part] = probabilities.to(weight.dtype) @ weight
            del probabilities
        del logits  # before the next chunk's are made
    return losses, gradient


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses, gradient = losses_and_gradient(hidden, weight, labels, wants_gradient=hidden.requires_grad)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None


def label_losses(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log p(label) for each label: `hidden` (L, H), frozen `weight` (V, H), `labels` (L,) -> (L,) float32."""
    return _FrozenHeadCrossEntropy.apply(hidden, weight, labels)


@contextlib.contextmanager
def without_head(model: nn.Module) -> Iterator[torch.Tensor]:
    """Let `model(...).logits` be hidden states (B, T, H) while active; yields the head's weight (V, H)."""
    head = model.get_output_embeddings()
    model.set_output_embeddings(nn.Identity())
    try:
        yield head.weight
    finally:
        model.set_output_embeddings(head)
