"""The operations of a device: element-wise ones, weights written out, and attention over a pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tool_aware.engine.packed_attention import FlashAttention, PackedAttention, SegmentAttention
from tool_aware.engine.packing import Pack
from tool_aware.engine.side_stream import Beside, SideStream

if TYPE_CHECKING:
    import torch

    from tool_aware.engine.projections import StackedLinear


class Operations(Protocol):
    """The element-wise parts of a transformer layer and their gradients; torch_ops.py and triton_ops.py have them.

    T tokens, H hidden size, I intermediate size, D size of a head. Everything is computed in float32 at least and
    rounded once. Outputs may be views of wider buffers: rows may lie apart, columns are contiguous.
    """

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """Write x / rms(x) * weight into `out`; x and out (T, H), weight (H,)."""

    def rms_norm_backward(  # noqa: PLR0917
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        gradient: torch.Tensor,
        residual: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Write the gradient of x, given that of the norm's output, plus `residual`, into `out`; all (T, H)."""

    def rotate(
        self,
        heads: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        out: torch.Tensor,
        *,
        add: torch.Tensor | None = None,
    ) -> None:
        """Apply rotary position embeddings to `heads` + `add` (T, heads, D); cos and sin (T, D / 2). -sin rotates back.

        `out` may be `heads`.
        """

    def norm_and_rotate(  # noqa: PLR0917
        self,
        heads: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        cos: torch.Tensor,
        sin: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Write rotate(heads / rms(heads) * weight) into `out`; heads and out (T, heads, D), weight (heads, D).

        rms is that of each head. cos and sin (T, D / 2).
        """

    def norm_and_rotate_backward(  # noqa: PLR0917
        self,
        heads: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        cos: torch.Tensor,
        sin: torch.Tensor,
        gradient: torch.Tensor,
        out: torch.Tensor,
        *,
        add: torch.Tensor | None = None,
    ) -> None:
        """Write the gradient of `heads` into `out`, given that of norm_and_rotate's output, `gradient` + `add`.

        cos and sin are those of the forward pass; all others (T, heads, D) but weight (heads, D).
        """

    def swiglu(self, gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
        """Write silu(gate) * up into `out`; all (T, I)."""

    def swiglu_backward_(self, gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor) -> None:
        """Replace `gate` and `up` by their gradients, and `gradient`, of silu(gate) * up, by its value; all (T, I)."""

    def fill_matrix(
        self, matrix: torch.Tensor, layer: StackedLinear, *, outputs: int, ranks: int, is_last: bool
    ) -> bool:
        """Write the layer's 4-bit weight and its update into its group's matrix (projections.py), in one pass.

        Return False, with nothing written, if this backend cannot; projections.py then writes them part by part.
        """

    def copier(self, copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Return what copies the second tensor of each pair into the first; all (rows, columns), and stay in place."""


@dataclass(frozen=True)
class Backend:
    """The operations of a device; `beside` if it can run some beside others."""

    operations: Operations
    attention: Callable[[Pack], PackedAttention]
    beside: Beside | None = None

    @classmethod
    def of(cls, device: torch.device) -> Backend:
        """Return Triton and FlashAttention for a GPU, plain torch for the CPU."""
        if device.type != "cuda":
            from tool_aware.engine import torch_ops

            return cls(torch_ops, SegmentAttention)
        from tool_aware.engine import triton_ops

        return cls(triton_ops, lambda pack: FlashAttention.of(pack, device), SideStream(device))
