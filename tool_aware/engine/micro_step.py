"""One micro-batch: packed, run forward and backward by whichever decoder covers the model, split if memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn

from tool_aware.chat_format import EncodedExample
from tool_aware.console import Fallbacks, say
from tool_aware.engine.attention import attention_mask
from tool_aware.engine.loss import label_losses, without_head
from tool_aware.engine.packing import Pack, Packing, pack
from tool_aware.engine.recorded_passes import RecordingError, Waiting
from tool_aware.engine.sizes import LENGTHS_MULTIPLE
from tool_aware.model.adapter import base_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from tool_aware.engine.decoder import PackedDecoder


CudaGraphs = bool | Literal["auto"]


class Done(NamedTuple):
    """The result of one micro-batch."""

    loss: torch.Tensor  # its share of the step's loss, a scalar
    examples: int
    tokens: int  # that were computed


_NOTHING = EncodedExample([0], [0])  # computed by a process of a launch that has no row in a step


def _are_same(one: Sequence[EncodedExample], other: Sequence[EncodedExample]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


class MicroStep:
    """Losses and gradients of micro-batches.

    At most `limit` examples are computed at once. When memory runs out, the decoder gives up what only saves time, and
    then the limit is halved. Without a `decoder`, transformers' forward pass and autograd are used, under float16
    autocast if the `scaler` is enabled. `flat_gradient` is given if all of the adapter's gradients are views of it.
    With `cuda_graphs` the decoder's passes are recorded; if "auto", once the GPU was seen to wait for Python.
    """

    def __init__(
        self,
        model: PeftModel,
        *,
        packing: Packing,
        limit: int,
        device: torch.device,
        decoder: PackedDecoder | None = None,
        scaler: torch.amp.GradScaler | None = None,
        is_sharded: bool = False,
        flat_gradient: torch.Tensor | None = None,
        cuda_graphs: CudaGraphs = False,
        fallbacks: Fallbacks | None = None,
    ) -> None:
        self._model, self._packing = model, packing
        self._device, self.decoder, self._is_sharded = device, decoder, is_sharded
        self.limit = limit
        self.fallbacks = Fallbacks() if fallbacks is None else fallbacks
        self._scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
        self._flat_gradient = flat_gradient
        self._packed_ahead: tuple[Sequence[EncodedExample], Pack] | None = None
        self._waiting: Waiting | None = None
        if cuda_graphs and decoder and flat_gradient is not None and decoder.can_record():
            self._waiting = Waiting() if cuda_graphs == "auto" else None
            if not self._waiting:
                decoder.record()

    def add_gradient(self, examples: Sequence[EncodedExample], labels_in_step: torch.Tensor) -> Done:
        """Add the gradient of the examples' share of the step's mean loss; nothing twice if memory runs out."""
        before = self._copy_of_gradients()
        while True:
            try:
                return self._in_parts(examples, labels_in_step)
            except torch.OutOfMemoryError as error:
                out_of_memory = error.with_traceback(None)  # its frames hold the failed attempt's tensors
            self._restore_gradients(before)
            self._packed_ahead = None
            torch.cuda.empty_cache()
            if not self._reduce_memory(len(examples)):
                raise out_of_memory

    def _reduce_memory(self, rows: int) -> bool:
        """Find a way to take less memory; the effective batch and the gradient stay the same."""
        concession = self.decoder.reduce_memory() if self.decoder else None
        if concession is None and (self.limit == 1 or self._is_sharded):
            return False
        if concession is None:
            self.limit = -(-min(self.limit, rows) // 2)
            concession = f"micro-batches are split into {self.limit} examples"
        # The effective batch and the gradient stay the same.
        self.fallbacks.add(f"out of GPU memory: {concession} from here on", from_any_process=True)
        return True

    def pack_ahead(self, examples: Sequence[EncodedExample]) -> None:
        """Lay out the micro-batch that comes next while the GPU computes the one before."""
        examples = examples[: self.limit]
        if self._packed_ahead and _are_same(self._packed_ahead[0], examples):
            return  # with gradient accumulation it comes after several others
        self._packed_ahead = None
        if examples:
            self._packed_ahead = (examples, self._pack(examples))
            if self.decoder:
                self.decoder.prepare(self._packed_ahead[1])

    def require_own_parameters(self) -> None:
        """Raise RuntimeError if gradients would be added to parameters that are no longer the model's."""
        own = {id(parameter) for parameter in self._trained()}
        if self.decoder and {id(parameter) for parameter in self.decoder.trained} != own:
            raise RuntimeError("the model's adapter was replaced after the decoder had taken it up")

    @torch.no_grad()
    def with_infinite_loss(self, examples: Sequence[EncodedExample]) -> list[int]:
        """Return the places of those examples whose loss is not finite."""
        return [
            place
            for place, example in enumerate(examples)
            if not torch.isfinite(self.losses(self._lay_out([example]))).all()
        ]

    def answer_states(self, examples: Sequence[EncodedExample]) -> tuple[Pack, torch.Tensor, torch.Tensor]:
        """Return the pack of `examples`, the states that predict its labels (L, H), and the output head (V, H)."""
        packed = self._lay_out(examples)
        return packed.to(self._device), *self._states(packed)

    def losses(self, packed: Pack) -> torch.Tensor:
        """Return the loss of each label of a pack: (L,) float32."""
        hidden, head_weight = self._states(packed)
        return label_losses(hidden, head_weight, packed.labels.to(hidden.device))

    def _in_parts(self, examples: Sequence[EncodedExample], labels_in_step: torch.Tensor) -> Done:
        loss, count, tokens = torch.zeros((), device=self._device), 0, 0
        for first in range(0, len(examples), self.limit):
            packed = self._pack(examples[first : first + self.limit])
            loss += self._one_pack(packed, labels_in_step)
            count, tokens = count + packed.examples, tokens + packed.input_ids.numel()
        if self._is_sharded and not examples:  # all processes run the same passes, for they share the base's weights
            (self.losses(self._lay_out([_NOTHING])).sum() * 0).backward()
        return Done(loss, count, tokens)

    def _one_pack(self, packed: Pack, labels_in_step: torch.Tensor) -> torch.Tensor:
        if self.decoder:
            return self._by_decoder(self.decoder, packed, 1 / labels_in_step)
        losses = self.losses(packed)
        loss = (losses * packed.label_weights.to(losses)).sum() / labels_in_step
        self._scaler.scale(loss).backward()
        return loss.detach()

    def _by_decoder(self, decoder: PackedDecoder, packed: Pack, weight: torch.Tensor) -> torch.Tensor:
        if self._waiting and self._waiting.is_known:
            if self._waiting.is_found():
                decoder.record()
                say("passes are recorded as CUDA graphs from here on: the GPU waited for Python")
            self._waiting = None
        with self._waiting.timed() if self._waiting else contextlib.nullcontext():
            try:
                return decoder.add_gradient(packed, weight)
            except RecordingError as error:
                decoder.stop_recording()
                self.fallbacks.add(f"a pass cannot be recorded as a CUDA graph; none is ({error})")
        return decoder.add_gradient(packed, weight)

    def _pack(self, examples: Sequence[EncodedExample]) -> Pack:
        if self._packed_ahead and _are_same(self._packed_ahead[0], examples):
            return self._packed_ahead[1]
        return self._lay_out(examples)

    def _lay_out(self, examples: Sequence[EncodedExample]) -> Pack:
        return pack(examples, self._packing, multiple_of=LENGTHS_MULTIPLE if self._device.type == "cuda" else 1)

    def _states(self, packed: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states that predict the labels, (L, H), and the output head, (V, H)."""
        base = base_of(self._model)
        if self.decoder and not torch.is_grad_enabled():
            return self.decoder.hidden(packed), base.get_output_embeddings().weight
        half = torch.autocast(self._device.type, torch.float16, enabled=self._scaler.is_enabled())
        with without_head(base) as head_weight, half:
            hidden = self._hidden_at_labels(base, packed.to(self._device))
        return hidden.to(head_weight.dtype), head_weight

    def _hidden_at_labels(self, base: PreTrainedModel, packed: Pack) -> torch.Tensor:
        inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
        mask = attention_mask(packed, base.config, base.dtype)
        if packed.input_ids.shape[0] == 1:
            return self._model(**inputs, attention_mask=mask, logits_to_keep=packed.label_columns).logits[0]
        return self._model(**inputs, attention_mask=mask).logits[packed.label_rows, packed.label_columns]

    def _copy_of_gradients(self) -> list[torch.Tensor | None]:
        flat = self._flat_gradient
        gradients = [parameter.grad for parameter in self._trained()] if flat is None else [flat]
        return [None if gradient is None else gradient.clone() for gradient in gradients]

    def _restore_gradients(self, before: list[torch.Tensor | None]) -> None:
        if self._flat_gradient is not None and before[0] is not None:
            self._flat_gradient.copy_(before[0])
            return
        for parameter, gradient in zip(self._trained(), before, strict=True):
            parameter.grad = gradient

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]
