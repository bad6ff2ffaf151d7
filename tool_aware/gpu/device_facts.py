"""Judge what a device can do, from its compute capability: the one place where that is decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

OLDEST_CAPABILITY = (6, 0)  # bitsandbytes needs Pascal or newer
BF16_CAPABILITY = (8, 0)  # Ampere: bfloat16, and torch's FlashAttention

DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class DeviceFacts:
    """A CPU, or a GPU of a compute capability; None where the driver does not tell, which counts as a newer one."""

    kind: Literal["cpu", "cuda"]
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: torch.device) -> DeviceFacts:
        """Ask torch about a device."""
        import torch

        if device.type != "cuda":
            return cls("cpu")
        return cls("cuda", torch.cuda.get_device_capability(device))

    @property
    def has_bf16(self) -> bool:
        """Return whether a GPU computes in bfloat16."""
        return self.kind == "cuda" and (self.capability is None or self.capability >= BF16_CAPABILITY)

    @property
    def dtype(self) -> DtypeName:
        """Return the precision to compute in; gradients in float16 have to be scaled, or small ones would be 0."""
        if self.kind == "cpu":
            return "float32"
        return "bfloat16" if self.has_bf16 else "float16"

    @property
    def why_not_own_decoder(self) -> str | None:
        """Return why the toolkit's own decoder cannot run, as far as the capability tells; None if it can."""
        if self.kind == "cuda" and not self.has_bf16:
            return "GPUs without bfloat16"
        return None
