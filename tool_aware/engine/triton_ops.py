"""The operations of backend.Operations as Triton kernels, for CUDA. torch_ops.py has them for the CPU.

Each kernel reads its inputs once and writes its outputs once, in place where that saves memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tool_aware.engine import torch_ops

if TYPE_CHECKING:
    from tool_aware.engine.projections import StackedLinear

_BLOCK = 1024  # elements of one program of an element-wise kernel
_TILE = 4096  # weights of one program of the dequantisation; fewer where they do not divide a row
_HEADS = 16  # heads of one program of the kernels that norm and rotate
_COPY_BLOCK = 1024  # elements of one program of the copies of updates
_TRITON_KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
_FILL_WARPS = 4  # tiles of 1,024 to 16,384 and 2 to 16 warps were tried on an H200: 4,096 and 4 reach 3.3 TB/s


# ---- RMS norm -------------------------------------------------------------------------------------------


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """See Operations.rms_norm."""
    tokens, size = x.shape
    _rms_norm[(tokens,)](
        x, weight, out, x.stride(0), out.stride(0), eps, size, triton.next_power_of_2(size), num_warps=8
    )


@triton.jit
def _rms_norm(x, weight, out, x_stride, out_stride, eps, size: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < size
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values) / size + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    normed = (values * factor).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * out_stride + column, (scale * normed).to(out.dtype.element_ty), mask=inside)


def rms_norm_backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    gradient: torch.Tensor,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """See Operations.rms_norm_backward."""
    tokens, size = x.shape
    added = gradient if residual is None else residual
    strides = (x.stride(0), gradient.stride(0), added.stride(0), out.stride(0))
    sizes = (size, triton.next_power_of_2(size))
    _rms_norm_backward[(tokens,)](
        x, weight, gradient, added, out, *strides, eps, residual is not None, *sizes, num_warps=8
    )


@triton.jit
def _rms_norm_backward(
    x, weight, gradient, residual, out, x_stride, gradient_stride, residual_stride, out_stride, eps,
    has_residual: tl.constexpr, size: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < size
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(gradient + row * gradient_stride + column, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values) / size + eps)
    normed = values * factor
    result = factor * (scaled - normed * (tl.sum(scaled * normed) / size))
    if has_residual:
        result += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, result.to(out.dtype.element_ty), mask=inside)


# ---- rotary position embeddings -------------------------------------------------------------------------


def rotate(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, *, add: torch.Tensor | None = None
) -> None:
    """See Operations.rotate."""
    tokens, count, size = heads.shape
    added = heads if add is None else add
    strides = (heads.stride(0), added.stride(0), out.stride(0))
    sizes = (count, triton.next_power_of_2(count), size // 2, triton.next_power_of_2(size // 2))
    _rotate[(tokens,)](heads, added, cos, sin, out, *strides, add is not None, *sizes)


@triton.jit
def _rotate(
    heads, added, cos, sin, out, heads_stride, added_stride, out_stride,
    has_added: tl.constexpr, count: tl.constexpr, count_block: tl.constexpr, half: tl.constexpr,
    half_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, count_block)[:, None]
    column = tl.arange(0, half_block)[None, :]
    inside = (head < count) & (column < half)
    place = head * 2 * half + column
    first = tl.load(heads + row * heads_stride + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(heads + row * heads_stride + place + half, mask=inside, other=0.0).to(tl.float32)
    if has_added:
        first += tl.load(added + row * added_stride + place, mask=inside, other=0.0).to(tl.float32)
        second += tl.load(added + row * added_stride + place + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    s = tl.load(sin + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + place, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + row * out_stride + place + half, (second * c + first * s).to(out.dtype.element_ty), mask=inside)


# ---- norms of query and key heads, and rotation ----------------------------------------------------------


def norm_and_rotate(
    heads: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor
) -> None:
    """See Operations.norm_and_rotate."""
    tokens, count, size = heads.shape
    sizes = (count, min(_HEADS, triton.next_power_of_2(count)), size // 2, triton.next_power_of_2(size // 2))
    grid = (tokens, triton.cdiv(count, sizes[1]))
    _norm_and_rotate[grid](heads, weight, cos, sin, out, heads.stride(0), out.stride(0), eps, *sizes)


@triton.jit
def _norm_and_rotate(
    heads, weight, cos, sin, out, heads_stride, out_stride, eps,
    count: tl.constexpr, count_block: tl.constexpr, half: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * count_block + tl.arange(0, count_block))[:, None]
    column = tl.arange(0, half_block)[None, :]
    inside = (head < count) & (column < half)
    place = head * 2 * half + column
    first = tl.load(heads + row * heads_stride + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(heads + row * heads_stride + place + half, mask=inside, other=0.0).to(tl.float32)
    squares = tl.sum(first * first + second * second, axis=1)
    factor = tl.rsqrt(squares / (2 * half) + eps)[:, None]
    first *= factor * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    second *= factor * tl.load(weight + place + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    s = tl.load(sin + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + place, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + row * out_stride + place + half, (second * c + first * s).to(out.dtype.element_ty), mask=inside)


def norm_and_rotate_backward(
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
    """See Operations.norm_and_rotate_backward."""
    tokens, count, size = heads.shape
    added = gradient if add is None else add
    strides = (heads.stride(0), gradient.stride(0), added.stride(0), out.stride(0))
    sizes = (count, min(_HEADS, triton.next_power_of_2(count)), size // 2, triton.next_power_of_2(size // 2))
    _norm_and_rotate_backward[(tokens, triton.cdiv(count, sizes[1]))](
        heads, weight, cos, sin, gradient, added, out, *strides, eps, add is not None, *sizes
    )


@triton.jit
def _norm_and_rotate_backward(
    heads, weight, cos, sin, gradient, added, out, heads_stride, gradient_stride, added_stride, out_stride, eps,
    has_added: tl.constexpr, count: tl.constexpr, count_block: tl.constexpr, half: tl.constexpr,
    half_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * count_block + tl.arange(0, count_block))[:, None]
    column = tl.arange(0, half_block)[None, :]
    inside = (head < count) & (column < half)
    place = head * 2 * half + column
    up = tl.load(gradient + row * gradient_stride + place, mask=inside, other=0.0).to(tl.float32)
    down = tl.load(gradient + row * gradient_stride + place + half, mask=inside, other=0.0).to(tl.float32)
    if has_added:
        up += tl.load(added + row * added_stride + place, mask=inside, other=0.0).to(tl.float32)
        down += tl.load(added + row * added_stride + place + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    s = tl.load(sin + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    grad_first = (up * c + down * s) * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    grad_second = (down * c - up * s) * tl.load(weight + place + half, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(heads + row * heads_stride + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(heads + row * heads_stride + place + half, mask=inside, other=0.0).to(tl.float32)
    squares = tl.sum(first * first + second * second, axis=1)
    factor = tl.rsqrt(squares / (2 * half) + eps)[:, None]
    first *= factor
    second *= factor
    mean = (tl.sum(first * grad_first + second * grad_second, axis=1) / (2 * half))[:, None]
    kind = out.dtype.element_ty
    tl.store(out + row * out_stride + place, (factor * (grad_first - first * mean)).to(kind), mask=inside)
    tl.store(out + row * out_stride + place + half, (factor * (grad_second - second * mean)).to(kind), mask=inside)


# ---- SwiGLU ---------------------------------------------------------------------------------------------


def swiglu(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """See Operations.swiglu."""
    tokens, size = out.shape
    grid = (tokens, triton.cdiv(size, _BLOCK))
    _swiglu[grid](gate, up, out, gate.stride(0), up.stride(0), out.stride(0), size, _BLOCK)


@triton.jit
def _swiglu(gate, up, out, gate_stride, up_stride, out_stride, size: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < size
    g = tl.load(gate + row * gate_stride + column, mask=inside).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=inside).to(tl.float32)
    tl.store(out + row * out_stride + column, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


def swiglu_backward_(gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor) -> None:
    """See Operations.swiglu_backward_."""
    tokens, size = gradient.shape
    grid = (tokens, triton.cdiv(size, _BLOCK))
    _swiglu_backward[grid](gate, up, gradient, gate.stride(0), up.stride(0), gradient.stride(0), size, _BLOCK)


@triton.jit
def _swiglu_backward(
    gate, up, gradient, gate_stride, up_stride, gradient_stride, size: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < size
    g = tl.load(gate + row * gate_stride + column, mask=inside).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=inside).to(tl.float32)
    upstream = tl.load(gradient + row * gradient_stride + column, mask=inside).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    of_gate = upstream * u * sigmoid * (1 + g * (1 - sigmoid))
    tl.store(gate + row * gate_stride + column, of_gate.to(gate.dtype.element_ty), mask=inside)
    tl.store(up + row * up_stride + column, (upstream * g * sigmoid).to(up.dtype.element_ty), mask=inside)
    product = (g * sigmoid * u).to(gradient.dtype.element_ty)
    tl.store(gradient + row * gradient_stride + column, product, mask=inside)


# ---- 4-bit weights --------------------------------------------------------------------------------------


def fill_matrix(matrix: torch.Tensor, layer: StackedLinear, *, outputs: int, ranks: int, is_last: bool) -> bool:
    """See Operations.fill_matrix.

    A 4-bit weight is codebook[nibble] * scale of its block; the scales are 8-bit themselves if quantised twice:
    codebook2[byte] * scale2 + offset (QLoRA, section 3). The same values as bitsandbytes gives, to the last bit.
    """
    state = layer.quant_state
    if state is None:
        return False
    inputs = matrix.shape[1] - ranks
    tile = _TILE
    while inputs % tile:
        tile //= 2
    if tile < state.blocksize or matrix.dtype != state.dtype:
        return False
    nested = state.state2
    rank_rows = (ranks if is_last else layer.first_rank + layer.ranks) - layer.first_rank
    scales = (nested.absmax, nested.code, state.offset, nested.blocksize) if nested else (state.absmax,) * 3 + (1,)
    update = (layer.update.a, layer.update.b) if layer.update else (matrix, matrix)  # without one, neither is read
    place = (layer.first_row, layer.rows, outputs, layer.first_rank)
    sizes = (inputs, ranks, triton.next_power_of_2(max(ranks, 1)), layer.ranks, state.blocksize, tile)
    _fill_matrix[((layer.rows + rank_rows) * (inputs // tile),)](
        *(matrix, matrix.stride(0), layer.weight, state.code, state.absmax, *scales, *update, *place),
        *(nested is not None, *sizes),
        enable_fp_fusion=False,
        num_warps=_FILL_WARPS,
    )
    return True


def copier(copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """See Operations.copier. One kernel copies all: the 420 updates of a small model take longer to launch."""
    kinds = {(to.dtype, of.dtype, to.device) for to, of in copies}
    if len(kinds) != 1 or not all(of.is_contiguous() and to.stride(1) == 1 for to, of in copies):
        return torch_ops.copier(copies)
    ((to_kind, of_kind, device),) = kinds
    parts = [[number, first] for number, (_, of) in enumerate(copies) for first in range(0, of.numel(), _COPY_BLOCK)]
    places = torch.tensor(parts, dtype=torch.int32, device=device)
    table = torch.zeros(len(copies), 5, dtype=torch.int64, device=device)
    written: list[list[int]] = []  # what the table holds
    kinds_in_triton = (_TRITON_KINDS[to_kind], _TRITON_KINDS[of_kind])

    def copy_all() -> None:
        # An optimizer may have moved the updates into a buffer of its own since.
        rows = [[to.data_ptr(), of.data_ptr(), to.stride(0), of.shape[1], of.numel()] for to, of in copies]
        if rows != written:
            table.copy_(torch.tensor(rows))
            written[:] = rows
        _copy_all[(len(parts),)](table, places, *kinds_in_triton, _COPY_BLOCK)

    return copy_all


@triton.jit
def _copy_all(table, places, to_kind: tl.constexpr, of_kind: tl.constexpr, block: tl.constexpr):
    row = table + 5 * tl.load(places + 2 * tl.program_id(0)).to(tl.int64)
    first = tl.load(places + 2 * tl.program_id(0) + 1)
    to = tl.load(row).to(tl.pointer_type(to_kind))
    of = tl.load(row + 1).to(tl.pointer_type(of_kind))
    stride, columns, count = tl.load(row + 2), tl.load(row + 3).to(tl.int32), tl.load(row + 4)
    place = first + tl.arange(0, block)
    inside = place < count
    values = tl.load(of + place, mask=inside, other=0.0)
    tl.store(to + (place // columns) * stride + place % columns, values.to(to_kind), mask=inside)


@triton.jit
def _fill_matrix(
    matrix, stride, packed, code, absmax, absmax2, code2, offset, blocksize2, a, b,
    first_row, rows, outputs, first_rank,
    is_nested: tl.constexpr, inputs: tl.constexpr, ranks: tl.constexpr, ranks_block: tl.constexpr,
    own_ranks: tl.constexpr, blocksize: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = inputs // tile
    row = (tl.program_id(0) // tiles).to(tl.int64)
    part = tl.program_id(0) % tiles
    kind = matrix.dtype.element_ty
    if row < rows:
        first = row * inputs + part * tile
        block = tl.arange(0, tile // blocksize)
        scale = tl.load(absmax + first // blocksize + block)
        if is_nested:
            scale2 = tl.load(absmax2 + (first // blocksize + block) // blocksize2)
            scale = tl.load(code2 + scale.to(tl.int32)) * scale2 + tl.load(offset)
        place = block[:, None] * (blocksize // 2) + tl.arange(0, blocksize // 2)[None, :]
        byte = tl.load(packed + first // 2 + place).to(tl.int32)
        high = (tl.load(code + (byte >> 4)) * scale[:, None]).to(kind)
        low = (tl.load(code + (byte & 15)) * scale[:, None]).to(kind)
        values = tl.reshape(tl.join(high, low), (tile,))
        tl.store(matrix + (first_row + row) * stride + part * tile + tl.arange(0, tile), values)
        if ranks > 0 and part == 0:
            column = tl.arange(0, ranks_block)
            own = (column >= first_rank) & (column < first_rank + own_ranks)
            update = tl.load(b + row * own_ranks + column - first_rank, mask=own, other=0.0)
            target = matrix + (first_row + row) * stride + inputs + column
            tl.store(target, update.to(kind), mask=column < ranks)
    else:
        rank = row - rows
        column = part * tile + tl.arange(0, tile)
        # An adapter that is only read may be float32: both branches have to give `values` one type.
        values = tl.load(a + rank * inputs + column, mask=(rank < own_ranks) & (column < inputs), other=0.0).to(kind)
        tl.store(matrix + (outputs + first_rank + rank) * stride + column, values)
