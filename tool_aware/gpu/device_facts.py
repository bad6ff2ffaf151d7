"""Judge what a device can do, from its compute capability or instructions: the one place where that is decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

OLDEST_CAPABILITY = (6, 0)  # bitsandbytes needs Pascal or newer
BF16_CAPABILITY = (8, 0)  # Ampere: bfloat16, and torch's FlashAttention

# Instructions that multiply bfloat16, by torch's names. Without them oneDNN takes twice as long as for float32.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class DeviceFacts:
    """A CPU, or a GPU of a compute capability; None where the driver does not tell, which counts as a newer one."""

    kind: Literal["cpu", "cuda"]
    capability: tuple[int, int] | None = None
    multiplies_bf16: bool = False  # of a CPU

    @classmethod
    def of(cls, device: torch.device) -> DeviceFacts:
        """Ask torch about a device."""
        import torch

        if device.type != "cuda":
            return cls("cpu", multiplies_bf16=_cpu_multiplies_bf16())
        return cls("cuda", torch.cuda.get_device_capability(device))

    @property
    def has_bf16(self) -> bool:
        """Return whether a GPU computes in bfloat16."""
        return self.kind == "cuda" and (self.capability is None or self.capability >= BF16_CAPABILITY)

    @property
    def dtype(self) -> DtypeName:
        """Return the precision to answer in; a CPU's fast path for answers (engine/merged_layers.py) needs float32."""
        if self.kind == "cpu":
            return "float32"
        return "bfloat16" if self.has_bf16 else "float16"

    @property
    def training_dtype(self) -> DtypeName:
        """Return the precision to train in; gradients in float16 have to be scaled, or small ones would be 0."""
        return "bfloat16" if self.multiplies_bf16 else self.dtype

    @property
    def why_not_own_decoder(self) -> str | None:
        """Return why the toolkit's own decoder cannot run, as far as the capability tells; None if it can."""
        if self.kind == "cuda" and not self.has_bf16:
            return "GPUs without bfloat16"
        return None


def _cpu_multiplies_bf16() -> bool:
    """Return whether torch knows that this processor has such instructions; torch 2.11 cannot tell."""
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and any(capabilities.get(name) for name in BF16_INSTRUCTIONS)
