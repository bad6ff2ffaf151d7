"""Linear layers with LoRA updates as plain matrix products.

A LoRA layer computes x W^T + s (x A^T) B^T. Written as separate products, the update reads and writes the layer's whole
output twice more, and its gradient the whole input. Here the update rides along as a few more columns: with

    M = [ W  B ]   (N + R, K + R)        layers that read the same input are stacked: W (N, K), A (R, K),
        [ A  0 ]                         B (N, R) block-diagonal

the output is [x | s x A^T] @ M[:N]^T and the gradient of the input [g | s g B] @ M[:, :K], one product each. M is made
where it is needed, from 4-bit weights in one pass, and dropped after use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from tool_aware.engine.sizes import RANKS_MULTIPLE, rounded_up


@dataclass(frozen=True)
class _Layer:
    """One linear layer of a group: its frozen weight (N, K), and where it stands in the group's matrix."""

    weight: nn.Parameter  # 4-bit: packed, with `quant_state`
    a: nn.Parameter | None  # (r, K); None where no update was asked for
    b: nn.Parameter | None  # (N, r)
    first_row: int
    rows: int
    first_rank: int
    ranks: int

    @property
    def in_rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.rows)

    @property
    def in_ranks(self) -> slice:
        return slice(self.first_rank, self.first_rank + self.ranks)


class Projections:
    """Linear layers that read the same input, with their LoRA updates.

    T tokens, K = `inputs`, N = `outputs` of all layers together, R = `ranks` of all updates, padded. Buffers hold R
    spare columns behind an input or an output's gradient; the products fill them.
    """

    def __init__(self, modules: Sequence[nn.Module], operations: ModuleType, *, cached: bool = False) -> None:
        self._operations = operations
        self._layers: list[_Layer] = []
        self.scale = 1.0
        rows = ranks = 0
        for module in modules:
            base = getattr(module, "base_layer", module)
            a, b = _update(module)
            if a is not None:
                self.scale = module.scaling["default"]
            rank = 0 if a is None else len(a)
            self._layers.append(_Layer(base.weight, a, b, rows, base.out_features, ranks, rank))
            rows, ranks = rows + base.out_features, ranks + rank
            self.inputs = base.in_features
        self.outputs, self.ranks = rows, rounded_up(ranks, RANKS_MULTIPLE)
        self.dtype = _compute_dtype(self._layers[0].weight)
        self._device = self._layers[0].weight.device
        self._matrix: torch.Tensor | None = None
        if not _is_quantised(self._layers[0].weight):
            self._adopt_weights()
        elif cached:
            self._matrix = self._new_matrix()

    def drop_cached(self) -> None:
        """Make the matrix anew where it is needed; unquantised weights stay, for they have no other place."""
        if _is_quantised(self._layers[0].weight):
            self._matrix = None

    # -- buffers --

    def input_buffer(self, tokens: int) -> torch.Tensor:
        """Make room for an input: (T, K + R), of which the caller fills [:, :K]."""
        return torch.empty(tokens, self.inputs + self.ranks, dtype=self.dtype, device=self._device)

    def output_buffer(self, tokens: int) -> torch.Tensor:
        """Make room for an output or its gradient: (T, N + R), of which the caller fills [:, :N]."""
        return torch.empty(tokens, self.outputs + self.ranks, dtype=self.dtype, device=self._device)

    # -- products --

    def forward(
        self,
        inputs: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Project `inputs` (T, K + R), whose last R columns are overwritten: (T, N), plus `residual` (T, N) if given.

        `out` may be `residual`.
        """
        matrix = self._filled()
        inputs = inputs[:, : self.inputs + self.ranks]
        if self.ranks:
            self._append_update(inputs, matrix)
        weight = matrix[: self.outputs].T
        if residual is not None:
            return torch.addmm(residual, inputs, weight, out=out)
        return torch.mm(inputs, weight, out=out)

    def backward(
        self,
        gradient: torch.Tensor,
        make_inputs: Callable[[], torch.Tensor],
        *,
        add: torch.Tensor | None = None,
        wants_input: bool = True,
    ) -> torch.Tensor | None:
        """Add the updates' gradients to their `.grad`; return that of the input, (T, K), plus `add`, which may change.

        `gradient` (T, N + R) is that of the output; its last R columns are overwritten. `make_inputs` returns the input
        (T, K + R), whose last R columns are overwritten too; it is called where there are updates, and what it returns
        is let go before the gradient of the input takes its room. Returns None unless `wants_input`.
        """
        matrix = self._filled(is_refreshed=True)
        if self.ranks:
            through_b = gradient[:, self.outputs :]
            through_b.addmm_(
                gradient[:, : self.outputs], matrix[: self.outputs, self.inputs :], beta=0, alpha=self.scale
            )
            self._add_gradients(gradient, make_inputs()[:, : self.inputs + self.ranks], matrix)
        if not wants_input:
            return None
        weight = matrix[:, : self.inputs]
        return torch.mm(gradient, weight) if add is None else add.addmm_(gradient, weight)

    def _append_update(self, inputs: torch.Tensor, matrix: torch.Tensor) -> None:
        a = matrix[self.outputs :, : self.inputs]
        inputs[:, self.inputs :].addmm_(inputs[:, : self.inputs], a.T, beta=0, alpha=self.scale)

    def _add_gradients(self, gradient: torch.Tensor, inputs: torch.Tensor, matrix: torch.Tensor) -> None:
        self._append_update(inputs, matrix)
        of_output, through_b = gradient[:, : self.outputs], gradient[:, self.outputs :]
        x, through_a = inputs[:, : self.inputs], inputs[:, self.inputs :]
        if len(self._layers) == 1 and self._layers[0].ranks == self.ranks:
            (layer,) = self._layers
            layer.b.grad.addmm_(of_output.T, through_a)
            layer.a.grad.addmm_(through_b.T, x)
            return
        of_b, of_a = of_output.T @ through_a, through_b.T @ x  # (N, R) with the blocks on its diagonal, (R, K)
        for layer in self._layers:
            if layer.ranks:
                layer.b.grad += of_b[layer.in_rows, layer.in_ranks]
                layer.a.grad += of_a[layer.in_ranks]

    # -- the matrix --

    def _filled(self, *, is_refreshed: bool = False) -> torch.Tensor:
        if self._matrix is None:
            return self._new_matrix()
        if not is_refreshed:
            self._write_updates(self._matrix)
        return self._matrix

    def _new_matrix(self) -> torch.Tensor:
        matrix = torch.empty(self.outputs + self.ranks, self.inputs + self.ranks, dtype=self.dtype, device=self._device)
        if self._fill_in_one_pass(matrix):
            return matrix
        for layer in self._layers:
            matrix[layer.in_rows, : self.inputs] = _dequantised(layer.weight)
        self._write_updates(matrix)
        return matrix

    def _fill_in_one_pass(self, matrix: torch.Tensor) -> bool:
        sizes = {"outputs": self.outputs, "ranks": self.ranks}
        return all(
            self._operations.fill_matrix(matrix, layer, **sizes, is_last=layer is self._layers[-1])
            for layer in self._layers
        )

    def _write_updates(self, matrix: torch.Tensor) -> None:
        if not self.ranks:
            return
        matrix[: self.outputs, self.inputs :] = 0
        matrix[self.outputs :, : self.inputs] = 0
        for layer in self._layers:
            if layer.ranks:
                matrix[layer.in_rows, self.inputs :][:, layer.in_ranks] = layer.b
                matrix[self.outputs :, : self.inputs][layer.in_ranks] = layer.a

    def _adopt_weights(self) -> None:
        """Move unquantised weights into the matrix and let their layers look at it there: no byte is held twice."""
        self._matrix = torch.zeros(
            self.outputs + self.ranks, self.inputs + self.ranks, dtype=self.dtype, device=self._device
        )
        for layer in self._layers:
            view = self._matrix[layer.in_rows, : self.inputs]
            view.copy_(layer.weight)
            layer.weight.data = view


def _update(module: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    if not hasattr(module, "lora_A"):
        return None, None
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def _is_quantised(weight: nn.Parameter) -> bool:
    return getattr(weight, "quant_state", None) is not None


def _compute_dtype(weight: nn.Parameter) -> torch.dtype:
    return weight.quant_state.dtype if _is_quantised(weight) else weight.dtype


def _dequantised(weight: nn.Parameter) -> torch.Tensor:
    import bitsandbytes

    return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
