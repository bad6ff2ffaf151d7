"""The base model's tensors with an adapter added, one at a time, so that the model need not fit into memory.

There are two bases to merge into. A fine-tuned model is usually built from the original 16-bit weights. But a QLoRA
adapter was trained against 4-bit values and corrects some of their error. Merged into those values (dequantised), the
model answers as it did in training, up to rounding. Quantising a merged model again would erase the adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tool_aware.config.sections import QuantizationSection
from tool_aware.console import UserError
from tool_aware.model.adapter import adapter_settings, lora_variant, refuse_adapter_not_finite
from tool_aware.model.adapter_record import check_adapter_record
from tool_aware.model.base import quantized_values
from tool_aware.model.matching import shapes_in
from tool_aware.model.tensor_files import named
from tool_aware.paths import ADAPTER_WEIGHTS_NAME
from tool_aware.training.export.weights import WeightFiles

if TYPE_CHECKING:
    import torch

MergeBase = Literal["original", "dequantized"]


class LoraUpdates:
    """The low-rank updates of an adapter by the name of the weight they belong to."""

    def __init__(self, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scale: float) -> None:
        self._factors, self._scale = dict(factors), scale

    @classmethod
    def load(cls, adapter: Path) -> LoraUpdates:
        """Read `adapter_model.safetensors`; its keys are `base_model.model.<module>.lora_A.weight` and `..._B...`."""
        from safetensors.torch import load_file

        settings = adapter_settings(adapter)
        variant = lora_variant(settings)
        if variant:
            raise UserError(f"only plain LoRA can be merged shard by shard, not {variant}", where=str(adapter))
        shapes_in(adapter)
        check_adapter_record(adapter)
        refuse_adapter_not_finite(adapter)
        tensors = load_file(adapter / ADAPTER_WEIGHTS_NAME)
        modules = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
        lost = sorted(tensors.keys() ^ {f"{module}.lora_{part}.weight" for module in modules for part in "AB"})
        if lost or not modules:
            what = f"{len(lost)} tensors are no pair of LoRA matrices: {named(lost)}" if lost else "has no tensors"
            raise UserError(what, where=str(adapter), fix="take the adapter's folder as its training wrote it")
        factors = {
            module.removeprefix("base_model.model.") + ".weight": (
                tensors[f"{module}.lora_A.weight"],
                tensors[f"{module}.lora_B.weight"],
            )
            for module in modules
        }
        return cls(factors, settings.get("lora_alpha", 8) / settings.get("r", 8))

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` (out, in) + scale * B (out, r) @ A (r, in): summed in float32, rounded once, as peft does."""
        if name not in self._factors:
            return weight
        a, b = (factor.to(weight.device).float() for factor in self._factors[name])
        with _exact_products():
            delta = (b @ a) * self._scale
        return (weight + delta).to(weight.dtype)

    def check_fit(self, base: WeightFiles) -> None:
        """Raise UserError if an update finds no weight: the adapter belongs to another architecture."""
        unmatched = sorted(name for name in self._factors if name not in base)
        if unmatched:
            raise UserError(f"{len(unmatched)} updates fit no weight of the base model: {named(unmatched)}")


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Multiply float32 exactly while active; training allows GPUs the 10-bit mantissa of TF32."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class MergedWeights:
    """The merged model's tensors by name, computed when they are read, on the CPU unless `device` is given.

    Equal to peft's merge into the base loaded with `dtype` (None: as stored), or into the dequantised base.
    """

    base: WeightFiles
    updates: LoraUpdates
    quantization: QuantizationSection
    quantized: frozenset[str]  # names of the weights that training quantised
    into: MergeBase = "original"
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.base

    def __getitem__(self, name: str) -> torch.Tensor:
        stored, name = self.base[name], self.base.plain_name(name)
        weight = stored
        if self.into == "dequantized" and name in self.quantized:
            weight = quantized_values(stored, self.quantization)
        # Moved first: on the way to a GPU torch converts on the CPU.
        return self.updates.apply(name, weight.to(self.device or "cpu").to(self.dtype or stored.dtype))
