"""Forward and backward pass of a model with LoRA over a pack, written out by hand: Mistral and what is built like it.

Autograd over a library's modules keeps all that it might need and launches what each module asks for. Here both passes
are in view. Of a layer only the input is kept and the rest is computed again, but for the down projection, whose output
no gradient needs (decoder_layer.py). LoRA updates are part of the layers' own matrix products (projections.py). Weights
are dequantised where they are used. supported.py lists what is not covered; transformers' forward pass runs instead.

T tokens of the pack, L labels, H hidden size, D size of a head, V vocabulary. R spare columns of a buffer, which the
projections fill. `grad_y` is the gradient of the loss with respect to y, and has its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tool_aware.config.settings import Config
from tool_aware.engine.backend import Backend
from tool_aware.engine.decoder_layer import Activations, DecoderLayer, KeysAndValues, PackContext
from tool_aware.engine.layer_inputs import InputsOnDevice, InputsOnHost, LayerInputs
from tool_aware.engine.loss import label_losses, losses_and_gradient
from tool_aware.engine.packing import Pack
from tool_aware.engine.pass_inputs import PassInputs
from tool_aware.engine.projections import Begin, nothing
from tool_aware.engine.recorded_passes import RecordedPasses
from tool_aware.engine.supported import broken_kernels, unsupported
from tool_aware.engine.transformer_modules import head_of, transformer_of
from tool_aware.model.adapter import base_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class PackedDecoder:
    """A model with its adapter as functions of a pack: `hidden` and `add_gradient`; for choices, `losses_behind`.

    The last `kept_layers` layers keep their activations instead of computing them again. The first `cached_layers`
    keep their weights dequantised. With `offload`, the inputs of layers are kept in host memory, and so is the
    embedding; and weights are written out where they are used, not beside the products before.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        *,
        kept_layers: int = 0,
        cached_layers: int = 0,
        offload: bool = False,
        backend: Backend | None = None,
    ) -> None:
        base = base_of(model)
        self._model, self._head = transformer_of(base), head_of(base)
        self._device = self._head.weight.device
        self._backend = backend or Backend.of(self._device)
        self._operations = self._backend.operations
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._layers = [
            DecoderLayer(layer, self._operations, is_cached=number < cached_layers, beside=self._backend.beside)
            for number, layer in enumerate(self._model.layers)
        ]
        self._writes_ahead = self._backend.beside is not None
        self._first_kept = len(self._layers) - kept_layers
        self._cached_layers = cached_layers
        self._inputs: LayerInputs = InputsOnDevice()
        self._prepared: tuple[Pack, PassInputs] | None = None
        self._recorded: RecordedPasses | None = None
        self._copy_updates = self._copier_of_updates()
        if offload:
            self._write_one_at_a_time()
        if offload and self._device.type == "cuda":
            self._move_to_host()

    @classmethod
    def of(
        cls, model: PeftModel, config: Config, backend: Backend | None = None
    ) -> tuple[PackedDecoder | None, str | None]:
        """Return the decoder that config.yaml asks for.

        Return None if transformers' forward pass is to run; with the reason, if config.yaml did not ask for it.
        """
        optimization = config.settled().optimization
        if optimization.decoder == "transformers" or config.training.packing == "none":
            return None, None
        reason = unsupported(model, config.model.max_seq_length)
        if not (reason or backend):
            reason = broken_kernels(base_of(model).device)
        if reason:
            return None, f"the toolkit's own decoder does not cover {reason}; transformers' is used, which takes longer"
        kept, cached, offload = optimization.kept_layers, optimization.cached_layers, optimization.offload
        assert kept != "auto", "settled() resolves it"
        assert cached != "auto", "settled() resolves it"
        assert offload != "auto", "settled() resolves it"
        if not optimization.gradient_checkpointing:
            kept = base_of(model).config.num_hidden_layers
        return cls(model, kept_layers=kept, cached_layers=cached, offload=offload, backend=backend), None

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return self._device

    # ---- functions of a pack ------------------------------------------------------------------------------

    @torch.no_grad()
    def hidden(self, pack: Pack) -> torch.Tensor:
        """Return the states that predict the labels: (L, H)."""
        inputs = self.inputs_of(pack)
        x, context = self._start(inputs)  # x (T, H)
        for number, layer in enumerate(self._layers):
            x, _ = layer.forward(x, context, then=self._begin_after(number))
        return self._normed(x[inputs.label_columns])

    @torch.no_grad()
    def keys_and_values(self, pack: Pack) -> list[KeysAndValues]:
        """Return what later tokens see of each layer: rotated keys and values of the pack's tokens, (T, K, D) each."""
        x, context = self._start(self.inputs_of(pack))
        found = []
        for number, layer in enumerate(self._layers):
            x, activations = layer.forward(x, context, keep=True, then=self._begin_after(number))
            assert activations is not None
            found.append(layer.keys_and_values(activations))
        return found

    @torch.no_grad()
    def losses_behind(self, before: Sequence[KeysAndValues], inputs: PassInputs) -> torch.Tensor:
        """Return -log p of each label, (L,) float32, of a pack all of whose tokens see those kept in `before`."""
        x, context = self._start(inputs)
        for number, (layer, (key, value)) in enumerate(zip(self._layers, before, strict=True)):
            behind = replace(context, attention=inputs.attention.behind(key, value))
            x, _ = layer.forward(x, behind, then=self._begin_after(number))
        return label_losses(self._normed(x[inputs.label_columns]), self._head.weight, inputs.labels)

    @torch.no_grad()
    def add_gradient(self, pack: Pack, weight: torch.Tensor | float) -> torch.Tensor:
        """Add the gradient of `weight` times the weighted sum of the labels' losses; return that loss, a scalar."""
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._recorded:
            return self._recorded(pack, weight)
        return self._pass(self.inputs_of(pack), weight)

    @torch.no_grad()
    def _pass(self, inputs: PassInputs, weight: torch.Tensor | float) -> torch.Tensor:
        x, context = self._start(inputs)  # x (T, H)
        kept: list[Activations] = []
        for number, layer in enumerate(self._layers):
            self._inputs.put(x)
            keep, then = number >= self._first_kept, self._begin_after(number)
            x, activations = layer.forward(x, context, keep=keep, then=then)
            if activations:
                kept.append(activations)
        del activations
        loss, gradient = self._loss_and_gradient(x, inputs, weight)  # gradient (T, H + R)
        for number, layer in reversed(list(enumerate(self._layers))):
            x = self._inputs.pop()
            if number:
                then = self._layers[number - 1].begin_backward
                gradient = layer.backward(gradient, x, kept.pop() if kept else None, context, then=then)
            else:
                layer.backward_to_updates(gradient, x, kept.pop() if kept else None, context)
            del x  # before that of the next layer is there
        return loss

    def _begin_after(self, number: int) -> Begin:
        """Return what begins the forward pass of the layer after `number`."""
        return self._layers[number + 1].begin_forward if number + 1 < len(self._layers) else nothing

    def _drop_interrupted(self) -> None:
        """Drop what an interrupted pass has left."""
        self._inputs.clear()
        for layer in self._layers:
            layer.drop_begun()

    def _loss_and_gradient(
        self, x: torch.Tensor, inputs: PassInputs, weight: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, a scalar, and the gradient of the last layer's output, in a buffer (T, H + R)."""
        states, norm = x[inputs.label_columns], self._model.norm  # (L, H)
        losses, grad_states = losses_and_gradient(
            self._normed(states), self._head.weight, inputs.labels
        )  # (L,), (L, H)
        weights = inputs.label_weights * weight  # (L,)
        grad_states *= weights[:, None]
        self._operations.rms_norm_backward(states, norm.weight, norm.variance_epsilon, grad_states, None, grad_states)
        gradient = self._layers[-1].grad_buffer(len(x)).zero_()
        gradient[:, : x.shape[1]].index_add_(0, inputs.label_columns, grad_states)
        return (losses * weights).sum(), gradient

    def _normed(self, states: torch.Tensor) -> torch.Tensor:
        out, norm = torch.empty_like(states), self._model.norm  # (L, H)
        self._operations.rms_norm(states, norm.weight, norm.variance_epsilon, out)
        return out

    # ---- before the first layer -------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, pack: Pack) -> None:
        """Compute ahead what `add_gradient` of the same pack needs before its first layer, while the GPU is busy."""
        if self._recorded:
            self._recorded.prepare(pack)
        else:
            self._prepared = (pack, self._prepare(pack))

    def inputs_of(self, pack: Pack) -> PassInputs:
        """Return what a pass over the pack reads, on the device."""
        if self._prepared and self._prepared[0] is pack:
            inputs = self._prepared[1]
            self._prepared = None
            return inputs
        return self._prepare(pack)  # what was prepared is for a later pack

    def _prepare(self, pack: Pack) -> PassInputs:
        attention, embedding = self._backend.attention(pack), self._model.embed_tokens
        is_on_host = embedding.weight.device != self._device
        embedded = embedding(pack.input_ids[0].cpu()).pin_memory() if is_on_host else None
        return PassInputs.of(pack.to(self._device), attention, embedded)

    def _start(self, inputs: PassInputs) -> tuple[torch.Tensor, PackContext]:
        """Embed the pack's tokens, (T, H), and prepare what all layers share; an interrupted pass is forgotten."""
        self._drop_interrupted()
        self._copy_updates()
        if inputs.embedded is None:
            x = self._model.embed_tokens(inputs.input_ids)
        else:
            x = inputs.embedded.to(self._device, non_blocking=True)
        cos, sin = self._model.rotary_emb(x, inputs.position_ids)  # (1, T, D), whose halves are alike
        half = cos.shape[-1] // 2
        return x, PackContext(inputs.attention, cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())

    def _copier_of_updates(self) -> Callable[[], None]:
        """Return what copies the adapter into those matrices of weights that are kept."""
        copies = [copy for layer in self._layers for copy in layer.updates_to_copy]
        return self._operations.copier(copies) if copies else nothing

    # ---- recording ---------------------------------------------------------------------------------------

    def can_record(self) -> bool:
        """Return whether `record` can be called: on a GPU, with nothing in host memory and rotations that stay."""
        rotations = getattr(self._model.rotary_emb, "rope_type", "default")
        is_fixed = "dynamic" not in rotations and rotations != "longrope"  # these look at the longest position
        return self._device.type == "cuda" and isinstance(self._inputs, InputsOnDevice) and is_fixed

    def record(self) -> None:
        """Record passes as CUDA graphs from here on; the gradients of the adapter must stay where they are."""
        self._prepared = None
        torch.cuda.empty_cache()  # recorded passes have a pool of their own
        self._recorded = RecordedPasses(self._pass, self._device)

    @property
    def is_recording(self) -> bool:
        """Return whether passes are recorded."""
        return self._recorded is not None

    def stop_recording(self) -> None:
        """Launch each kernel by itself from here on; a pass may have failed while it was recorded."""
        self._recorded = None
        for layer in self._layers:
            layer.drop_begun(is_running=False)

    # ---- memory -----------------------------------------------------------------------------------------

    def reduce_memory(self) -> str | None:
        """Use less memory and more time from here on; return how, in words, or None if nothing more can be done."""
        self._drop_interrupted()
        if self._recorded:
            self._recorded = None
            return "passes are no longer recorded"
        if self._first_kept < len(self._layers):
            self._first_kept = len(self._layers)
            return "all activations are computed again"
        if self._cached_layers:
            for layer in self._layers[: self._cached_layers]:
                layer.drop_cached_weights()
            self._cached_layers = 0
            self._copy_updates = self._copier_of_updates()
            return "no weights are kept dequantised"
        if self._writes_ahead:
            self._write_one_at_a_time()
            return "weights are dequantised where they are used"
        if self._device.type == "cuda" and isinstance(self._inputs, InputsOnDevice):
            self._move_to_host()
            return "the inputs of layers wait in host memory"
        return None

    def _write_one_at_a_time(self) -> None:
        self._writes_ahead = False
        for layer in self._layers:
            layer.write_one_at_a_time()

    def _move_to_host(self) -> None:
        self._inputs = InputsOnHost(len(self._layers), self._device)
        embedding = self._model.embed_tokens.weight
        if embedding is not self._head.weight:  # a tied one is needed on the device
            embedding.data = embedding.data.cpu()
