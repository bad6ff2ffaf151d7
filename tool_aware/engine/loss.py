"""Cross-entropy at the label positions of a frozen output head, without holding all logits at once.

Full logits cost 12 bytes x vocabulary x tokens: 0.73 GiB for 2,048 tokens and a vocabulary of 32,000. Only labelled
tokens need any, and as the head is frozen, its input's gradient can be computed chunk by chunk in the forward pass.

L labels, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tool_aware.engine.sizes import CHUNK_LABELS
from tool_aware.engine.transformer_modules import head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def losses_and_gradient(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return -log p(label) for each label, (L,), and the gradient of their sum with respect to `hidden`, (L, H).

    `hidden` (L, H), frozen `weight` (V, H), `labels` (L,).
    """
    gradient = torch.empty_like(hidden)
    return _losses_by_chunk(hidden, weight, labels, gradient), gradient


def _losses_by_chunk(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, gradient: torch.Tensor | None
) -> torch.Tensor:
    """Return the losses, (L,); write the gradient of their sum into `gradient` (L, H) if there is one."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    losses = torch.empty(len(labels), dtype=wide, device=hidden.device)
    for start in range(0, len(labels), CHUNK_LABELS):
        part = slice(start, start + CHUNK_LABELS)
        logits = (hidden[part] @ weight.T).to(wide)  # (chunk, V)
        log_normalizer = logits.logsumexp(-1)  # (chunk,)
        target = labels[part, None]  # (chunk, 1)
        losses[part] = log_normalizer - logits.gather(1, target).squeeze(1)
        if gradient is not None:
            probabilities = logits.sub_(log_normalizer[:, None]).exp_()  # (chunk, V)
            probabilities.scatter_add_(1, target, -torch.ones_like(target, dtype=wide))
            gradient[part] = probabilities.to(weight.dtype) @ weight
            del probabilities
        del logits  # before the next chunk's are made
    return losses


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        losses = _losses_by_chunk(hidden, weight, labels, gradient)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None


def label_losses(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log p(label) for each label: `hidden` (L, H), frozen `weight` (V, H), `labels` (L,) -> (L,) float32."""
    losses: torch.Tensor = _FrozenHeadCrossEntropy.apply(hidden, weight, labels)
    return losses


@contextlib.contextmanager
def without_head(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Take the output head off `model` while active, so that its logits are hidden states (B, T, H).

    Yield the head's weight, (V, H).
    """
    head = head_of(model)
    model.set_output_embeddings(nn.Identity())
    try:
        yield head.weight
    finally:
        model.set_output_embeddings(head)
