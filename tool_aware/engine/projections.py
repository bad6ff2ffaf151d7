"""Linear layers with LoRA updates as plain matrix products.

A LoRA layer computes x W^T + s (x A^T) B^T. As separate products, the update reads and writes the layer's whole output
twice more, and its gradient the whole input. Here the update is computed as a few more columns of the same product:

    M = [ W  B ]   (N + R, K + R)        layers that read the same input are stacked: W (N, K), A (R, K),
        [ A  0 ]                         B (N, R) block-diagonal

    output                  [x | s x A^T] @ M[:N]^T
    gradient of the input   [g | s g B]   @ M[:, :K]

A frozen bias is added to the output by the same product. M is written from 4-bit weights in one pass, where it is used
or, with a second stream, beside the product before (`begin`). It is dropped after use, or after the use of the backward
pass that follows at once (`is_held`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tool_aware.engine.sizes import RANKS_MULTIPLE, rounded_up, row_width

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

    from tool_aware.engine.backend import Operations
    from tool_aware.engine.side_stream import Beside

Begin = Callable[[], None]  # starts writing the matrix that is used next


def nothing() -> None:
    """Begin nothing: the matrix that comes next is written where it is used."""


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of one linear layer, scale * B @ A, with r its rank."""

    a: nn.Parameter  # (r, K)
    b: nn.Parameter  # (N, r)
    scale: float

    @property
    def grads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `.grad` of A and that of B; PackedDecoder makes them before the pass."""
        grad_a, grad_b = self.a.grad, self.b.grad
        assert grad_a is not None
        assert grad_b is not None
        return grad_a, grad_b


@dataclass(frozen=True)
class StackedLinear:
    """One linear layer of a group: its frozen weight (N, K), its update, and where both stand in the group's matrix.

    What is derived is computed once: with few examples a step, a fast GPU waits for Python.
    """

    weight: nn.Parameter  # 4-bit: packed
    bias: torch.Tensor | None  # (N,)
    update: LowRankUpdate | None
    inputs: int  # K
    first_row: int
    rows: int  # N
    first_rank: int

    @classmethod
    def of(cls, module: nn.Module, *, first_row: int, first_rank: int) -> StackedLinear:
        """Read a linear layer of torch or bitsandbytes, or peft's around one."""
        lora: Any = module
        base = getattr(lora, "base_layer", lora)
        update = None
        if hasattr(lora, "lora_A"):
            update = LowRankUpdate(
                lora.lora_A["default"].weight, lora.lora_B["default"].weight, lora.scaling["default"]
            )
        return cls(base.weight, base.bias, update, base.in_features, first_row, base.out_features, first_rank)

    @cached_property
    def ranks(self) -> int:
        """Return the rank of the update, 0 if there is none."""
        return len(self.update.a) if self.update else 0

    @cached_property
    def in_rows(self) -> slice:
        """Return the layer's rows in the group's outputs."""
        return slice(self.first_row, self.first_row + self.rows)

    @cached_property
    def in_ranks(self) -> slice:
        """Return the update's place in the group's ranks."""
        return slice(self.first_rank, self.first_rank + self.ranks)

    @cached_property
    def quant_state(self) -> QuantState | None:
        """Return what bitsandbytes needs to dequantise the weight; None if it is not quantised to 4 bits."""
        return getattr(self.weight, "quant_state", None)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Return the precision that the layer computes in."""
        return self.weight.dtype if self.quant_state is None else self.quant_state.dtype

    def dequantised(self) -> torch.Tensor:
        """Return the weight, (N, K)."""
        import bitsandbytes

        return bitsandbytes.functional.dequantize_4bit(self.weight.data, self.quant_state)


class Projections:
    """Linear layers that read the same input, with their LoRA updates.

    T tokens, K = `inputs`, N = `outputs` of all layers together, R = `ranks` of all updates, padded. Buffers hold R
    spare columns behind an input or an output's gradient; the products fill them.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        operations: Operations,
        *,
        is_cached: bool = False,
        beside: Beside | None = None,
    ) -> None:
        self._operations, self._beside = operations, beside
        self._layers: list[StackedLinear] = []
        self.scale = 1.0
        rows = ranks = 0
        for module in modules:
            layer = StackedLinear.of(module, first_row=rows, first_rank=ranks)
            if layer.update:
                self.scale = layer.update.scale
            self._layers.append(layer)
            rows, ranks = rows + layer.rows, ranks + layer.ranks
        first = self._layers[0]
        self.inputs, self.outputs = first.inputs, rows
        self.ranks = rounded_up(ranks, RANKS_MULTIPLE)
        self.dtype, self._device = first.dtype, first.weight.device
        self._bias = self._stacked_bias()
        self._matrix: torch.Tensor | None = None
        # Of one use to come: the matrix, and what waits until it is written.
        self._ahead: tuple[torch.Tensor, Callable[[], None]] | None = None
        if first.quant_state is None:
            self._matrix = self._matrix_that_holds_the_weights()
        elif is_cached:
            with torch.no_grad():
                self._matrix = self._new_matrix()

    def drop_cached(self) -> None:
        """Write the matrix anew at each use from here on; unquantised weights stay, as they have no other place."""
        if self._layers[0].quant_state is not None:
            self._matrix = None

    @property
    def columns(self) -> list[slice]:
        """Return the columns of each layer in an output (T, N)."""
        return [layer.in_rows for layer in self._layers]

    # ---- buffers ----------------------------------------------------------------------------------------

    def input_buffer(self, tokens: int) -> torch.Tensor:
        """Return an empty buffer for an input: (T, K + R), of which the caller fills [:, :K]."""
        return self._empty(tokens, self.inputs)

    def output_buffer(self, tokens: int) -> torch.Tensor:
        """Return an empty buffer for an output or its gradient: (T, N + R), of which the caller fills [:, :N]."""
        return self._empty(tokens, self.outputs)

    def _empty(self, rows: int, elements: int) -> torch.Tensor:
        """Return an empty buffer of `elements` and R columns, whose rows may lie further apart."""
        width = row_width(elements, self.ranks)
        return torch.empty(rows, width, dtype=self.dtype, device=self._device)[:, : elements + self.ranks]

    # ---- products ---------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        then: Begin = nothing,
        is_held: bool = False,
    ) -> torch.Tensor:
        """Project `inputs` (T, K + R), whose last R columns are overwritten; return (T, N), plus `residual` if given.

        `out` may be `residual`. `then` is called before the product. With `is_held` the next use has the same matrix,
        which must be in this pass.
        """
        matrix = self._filled()
        if is_held and self._matrix is None:
            self._ahead = (matrix, nothing)
        then()
        inputs = inputs[:, : self.inputs + self.ranks]
        if self.ranks:
            self._append_update(inputs, matrix)
        weight = matrix[: self.outputs].T  # (K + R, N)
        if self._bias is not None and residual is not None:
            # Not into the residual twice, each time rounded to its size.
            return torch.add(residual, torch.addmm(self._bias, inputs, weight), out=out)
        if residual is not None:
            return torch.addmm(residual, inputs, weight, out=out)
        if self._bias is not None:
            return torch.addmm(self._bias, inputs, weight, out=out)
        return torch.mm(inputs, weight, out=out)

    def backward(
        self,
        gradient: torch.Tensor,
        make_inputs: Callable[[], torch.Tensor],
        *,
        add: torch.Tensor | None = None,
        then: Begin = nothing,
        has_update: bool = False,
    ) -> torch.Tensor:
        """Add the updates' gradients to their `.grad`; return that of the input, (T, K), plus `add`, which may change.

        `gradient` (T, N + R) is that of the output; its last R columns are overwritten. `make_inputs` returns the input
        (T, K + R), whose last R columns are overwritten too, unless it `has_update` there from the forward pass. It is
        called only if there are updates, and its result is freed before the gradient of the input is made.
        """
        matrix = self._filled()
        then()
        self._add_gradients(gradient, make_inputs, matrix, has_update=has_update)
        weight = matrix[:, : self.inputs]  # (N + R, K)
        return torch.mm(gradient, weight) if add is None else add.addmm_(gradient, weight)

    def backward_to_updates(self, gradient: torch.Tensor, make_inputs: Callable[[], torch.Tensor]) -> None:
        """Add the updates' gradients as `backward` does, without computing that of the input."""
        self._add_gradients(gradient, make_inputs, self._filled())

    def backward_to_input(self, gradient: torch.Tensor, out: torch.Tensor, *, then: Begin = nothing) -> None:
        """Write the gradient of the input into `out` (T, K); `backward_of_update` has to follow.

        `gradient` (T, N + R) is that of the output; its last R columns are overwritten.
        """
        matrix = self._filled()
        then()
        if self.ranks:
            self._append_gradient(gradient, matrix)
        torch.mm(gradient, matrix[:, : self.inputs], out=out)

    def backward_of_update(self, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the gradients of the one layer's update to its `.grad`, without its matrix.

        `gradient` (T, N + R) as `backward_to_input` left it; the last R columns of `inputs` (T, K + R) are overwritten.
        """
        (layer,) = self._layers
        update, ranks = layer.update, layer.ranks
        if not update:
            return
        x, through_a = inputs[:, : self.inputs], inputs[:, self.inputs : self.inputs + ranks]  # (T, K), (T, r)
        through_a.addmm_(x, update.a.T, beta=0, alpha=self.scale)
        self._add_to_grads(update, gradient, x, through_a)

    def _add_to_grads(
        self, update: LowRankUpdate, gradient: torch.Tensor, x: torch.Tensor, through_a: torch.Tensor
    ) -> None:
        """Add the gradients of the update of a group's only layer."""
        through_b = gradient[:, self.outputs : self.outputs + len(update.a)]  # (T, r)
        grad_a, grad_b = update.grads
        grad_b.addmm_(gradient[:, : self.outputs].T, through_a)
        grad_a.addmm_(through_b.T, x)

    def _add_gradients(
        self,
        gradient: torch.Tensor,
        make_inputs: Callable[[], torch.Tensor],
        matrix: torch.Tensor,
        *,
        has_update: bool = False,
    ) -> None:
        if not self.ranks:
            return
        self._append_gradient(gradient, matrix)
        inputs = make_inputs()[:, : self.inputs + self.ranks]
        if not has_update:
            self._append_update(inputs, matrix)
        x, through_a = inputs[:, : self.inputs], inputs[:, self.inputs :]  # (T, K), (T, R)
        first = self._layers[0]
        if len(self._layers) == 1 and first.update and first.ranks == self.ranks:
            self._add_to_grads(first.update, gradient, x, through_a)
            return
        grad_output, through_b = gradient[:, : self.outputs], gradient[:, self.outputs :]  # (T, N), (T, R)
        all_b, all_a = grad_output.T @ through_a, through_b.T @ x  # (N, R) with the blocks on its diagonal, (R, K)
        for layer in self._layers:
            if layer.update:
                grad_a, grad_b = layer.update.grads
                grad_b += all_b[layer.in_rows, layer.in_ranks]
                grad_a += all_a[layer.in_ranks]

    def _append_gradient(self, gradient: torch.Tensor, matrix: torch.Tensor) -> None:
        """Write s g B into the last R columns of `gradient` (T, N + R)."""
        b = matrix[: self.outputs, self.inputs :]  # (N, R)
        gradient[:, self.outputs :].addmm_(gradient[:, : self.outputs], b, beta=0, alpha=self.scale)

    def _append_update(self, inputs: torch.Tensor, matrix: torch.Tensor) -> None:
        """Write s x A^T into the last R columns of `inputs` (T, K + R)."""
        a = matrix[self.outputs :, : self.inputs]  # (R, K)
        inputs[:, self.inputs :].addmm_(inputs[:, : self.inputs], a.T, beta=0, alpha=self.scale)

    @torch.no_grad()
    def _stacked_bias(self) -> torch.Tensor | None:
        """Return the biases of all layers, (N,), zero for those that have none; None if no layer has one."""
        if all(layer.bias is None for layer in self._layers):
            return None
        stacked = torch.zeros(self.outputs, dtype=self.dtype, device=self._device)
        for layer in self._layers:
            if layer.bias is not None:
                stacked[layer.in_rows] = layer.bias
        return stacked

    # ---- the matrix -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start writing the matrix for the next use beside what is launched before it; without effect if it is there.

        The next use must be in this pass: updates change between steps.
        """
        if self._matrix is None and self._ahead is None and self._beside:
            matrix = self._empty(self.outputs + self.ranks, self.inputs)
            self._ahead = (matrix, self._beside.run(lambda: self._write(matrix)))

    def write_where_used(self) -> None:
        """Write no matrix ahead from here on."""
        self.drop_ahead()
        self._beside = None

    def drop_ahead(self, *, is_running: bool = True) -> None:
        """Drop the matrix that an interrupted pass has left; its memory is used again once it is written.

        Of a pass that was only recorded, nothing is running.
        """
        if self._ahead and is_running:
            self._ahead[1]()
        self._ahead = None

    @property
    def updates_to_copy(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the places in a matrix that is kept, and what is to be copied there before each pass."""
        return [] if self._matrix is None else self._places_of_updates(self._matrix)

    def _filled(self) -> torch.Tensor:
        """Return the matrix, (N + R, K + R), with this pass's updates."""
        if self._matrix is not None:
            return self._matrix
        if self._ahead is None:
            return self._new_matrix()
        matrix, wait = self._ahead
        self._ahead = None
        wait()
        return matrix

    def _new_matrix(self) -> torch.Tensor:
        matrix = self._empty(self.outputs + self.ranks, self.inputs)
        self._write(matrix)
        return matrix

    def _write(self, matrix: torch.Tensor) -> None:
        """Write the weights, dequantised, and the updates."""
        if self._fill_in_one_pass(matrix):
            return
        for layer in self._layers:
            matrix[layer.in_rows, : self.inputs] = layer.dequantised()
        matrix[: self.outputs, self.inputs :] = 0
        matrix[self.outputs :, : self.inputs] = 0
        self._write_updates(matrix)

    def _fill_in_one_pass(self, matrix: torch.Tensor) -> bool:
        last = self._layers[-1]
        return all(
            self._operations.fill_matrix(matrix, layer, outputs=self.outputs, ranks=self.ranks, is_last=layer is last)
            for layer in self._layers
        )

    def _write_updates(self, matrix: torch.Tensor) -> None:
        """Copy the updates to their places; what is around them is zero already."""
        for place, parameter in self._places_of_updates(matrix):
            place.copy_(parameter)

    def _places_of_updates(self, matrix: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return views of a matrix with what belongs there."""
        b_part, a_part = matrix[: self.outputs, self.inputs :], matrix[self.outputs :, : self.inputs]  # (N, R), (R, K)
        places: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in self._layers:
            if layer.update:
                places += [(b_part[layer.in_rows, layer.in_ranks], layer.update.b)]
                places += [(a_part[layer.in_ranks], layer.update.a)]
        return places

    def _matrix_that_holds_the_weights(self) -> torch.Tensor:
        """Move unquantised weights into a matrix and make them views of it, so that no byte is held twice."""
        matrix = self._empty(self.outputs + self.ranks, self.inputs).zero_()
        for layer in self._layers:
            view = matrix[layer.in_rows, : self.inputs]
            view.copy_(layer.weight)
            layer.weight.data = view
        return matrix
