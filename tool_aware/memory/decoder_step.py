"""Memory of a micro-batch under the toolkit's own decoder: what tool_aware/engine/decoder.py has alive.

Its buffers are wider than what they hold by the ranks of the updates (`_width`). A layer's weights and updates are
written out as one matrix while they are used, and during the use before (tool_aware/engine/projections.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from tool_aware.engine.sizes import CHUNK_LABELS, FLASH_ROUNDING, RANKS_MULTIPLE, rounded_up, row_width
from tool_aware.memory.spec import (
    BYTES_16BIT,
    LOGIT_BYTES,
    Moment,
    ResolvedSpec,
    Term,
    TrainingSpec,
    gradients_that_wait,
)

GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj",), ("up_proj",), ("down_proj",))  # one matrix each
PACK_BYTES = 4 * 8  # per token: ids, positions, groups and examples as int64
INPUTS_ON_THE_WAY = 2  # with offload: the one in use and the next one to come


def moments(spec: ResolvedSpec) -> Iterator[Moment]:
    """Yield the moments at which a micro-batch can need most."""
    layers, tokens, kept_layers = spec.architecture.layers, spec.tokens, spec.kept_layers
    gradients = max(gradients_that_wait(spec), float(BYTES_16BIT * spec.adapter_parameters))
    one_input = BYTES_16BIT * spec.architecture.hidden * tokens
    inputs = Term("layer inputs", (INPUTS_ON_THE_WAY if spec.offload else layers) * one_input, _where(spec))
    kept = Term("kept activations", kept_bytes(spec), f"{kept_layers} layers")
    always = (Term("gradients", gradients, "and a copy to fall back to"), Term("pack", _pack_bytes(spec)))

    working = working_bytes(spec) - (activation_bytes(spec) if kept_layers else 0.0)
    yield Moment("the loss", (*always, inputs, kept, Term("logits", loss_bytes(spec))))
    yield Moment(
        "the last layer's backward pass", (*always, inputs, kept, Term("one layer's working set", max(0.0, working)))
    )


def activation_bytes(spec: TrainingSpec) -> float:
    """Return the bytes that one layer's backward pass reads: q, k, v; attention, log-sum-exp; residual; gate, up."""
    return spec.tokens * (_attention_width(spec) + _mlp_width(spec))


def kept_bytes(spec: ResolvedSpec) -> float:
    """Return the bytes of the activations that layers keep until their backward pass."""
    return spec.kept_layers * activation_bytes(spec)


def kept_between_matrices_bytes(spec: ResolvedSpec) -> float:
    """Return the bytes of kept activations that are allocated while matrices written ahead come and go.

    They leave gaps, as the two lie beside each other and live for different times.
    """
    return kept_bytes(spec) if _writes_ahead(spec) else 0.0


def working_bytes(spec: ResolvedSpec) -> float:
    """Return the bytes while one layer is differentiated: what it reads, gradients, weights; of MLP or attention."""
    architecture, tokens = spec.architecture, spec.tokens
    gradient = BYTES_16BIT * _width(spec, architecture.hidden, "down_proj")
    hidden = BYTES_16BIT * _width(spec, architecture.intermediate, "down_proj")
    # A last layer that is computed again leaves what gate and up have read, of the width of a gradient.
    rows = gradient + hidden + gradient * (not spec.kept_layers)
    in_mlp = tokens * rows + activation_bytes(spec) + _written_out_bytes(spec)
    # Of the layer's gradient there are two then: that of its output, which the caller holds, and the residual's.
    of_attention = BYTES_16BIT * architecture.query_width
    in_attention = tokens * (_attention_width(spec) + 2 * gradient + of_attention) + _flash_backward_bytes(spec)
    return max(in_mlp, in_attention)


def loss_bytes(spec: TrainingSpec) -> float:
    """Return the bytes of the last states, of those at the labels (plain, normed, gradient), and of their logits."""
    states = BYTES_16BIT * spec.architecture.hidden * (spec.tokens + 3 * spec.label_tokens)
    return states + LOGIT_BYTES * min(spec.label_tokens, CHUNK_LABELS) * spec.architecture.vocabulary


def matrix_bytes(spec: TrainingSpec, names: tuple[str, ...]) -> float:
    """Return the bytes of the matrix of linear layers with the same input: weights and updates, (N + R) x (K + R)."""
    shapes = spec.architecture.linear_shapes
    inputs, outputs = shapes[names[0]][0], sum(shapes[name][1] for name in names)
    rank = _padded_rank(spec, names)
    return float(BYTES_16BIT * (outputs + rank) * row_width(inputs, rank))


def layer_matrices_bytes(spec: TrainingSpec) -> float:
    """Return the bytes of all matrices of a layer: what a cached or 16-bit layer holds all the time."""
    return sum(matrix_bytes(spec, names) for names in GROUPS)


def _attention_width(spec: TrainingSpec) -> float:
    """Return the bytes per token of q, k, v; the attention's output; log-sum-exp; the residual after it.

    Where the heads of q and k are normed, those before the norm are kept as well.
    """
    architecture = spec.architecture
    elements = architecture.query_width + 2 * architecture.kv_width + architecture.hidden
    elements += architecture.head_norm_width + _width(spec, architecture.query_width, "o_proj")
    return BYTES_16BIT * elements + 4 * architecture.heads


def _mlp_width(spec: TrainingSpec) -> float:
    """Return the bytes per token of gate and up."""
    return BYTES_16BIT * sum(_width(spec, spec.architecture.intermediate, name) for name in ("gate_proj", "up_proj"))


def _flash_backward_bytes(spec: TrainingSpec) -> float:
    """Return the bytes of FlashAttention's backward pass: gradients; k, v for every query head, q in fp32 too."""
    architecture, tokens = spec.architecture, spec.tokens
    segments = spec.batch_size + (spec.packing == "prefix" and spec.prefix_tokens > 0)
    rounded = tokens + FLASH_ROUNDING * segments
    expanded = 2 * BYTES_16BIT * architecture.query_width * (architecture.kv_heads != architecture.heads)
    results = BYTES_16BIT * (architecture.query_width + 2 * architecture.kv_width) + expanded
    return tokens * results + rounded * 4 * (architecture.query_width + architecture.heads)


def _written_out_bytes(spec: ResolvedSpec) -> float:
    """Return the bytes of the matrices of weights at the peak: the one in use, and the one that is used next."""
    if _are_there(spec):
        return 0.0
    gate, up, down = (matrix_bytes(spec, (name,)) for name in ("gate_proj", "up_proj", "down_proj"))
    if not _writes_ahead(spec):
        return max(gate, up, down)  # one at a time
    return up + (down if spec.kept_layers else max(down, gate))


def _are_there(spec: ResolvedSpec) -> bool:
    """Return whether all matrices of weights are held throughout."""
    return spec.quantization == "none" or spec.cached_layers == spec.architecture.layers


def _writes_ahead(spec: ResolvedSpec) -> bool:
    """Return whether matrices are written while the product before runs."""
    return not (spec.offload or _are_there(spec))


def _width(spec: TrainingSpec, elements: int, name: str) -> int:
    """Return the elements of a row of the buffer of so many that linear layer `name` reads or writes."""
    return row_width(elements, _padded_rank(spec, (name,)))


def _padded_rank(spec: TrainingSpec, names: tuple[str, ...]) -> int:
    """Return the columns that updates add to a buffer: the ranks of those layers that have one, rounded up."""
    ranks = spec.lora_r * len(spec.target_names & set(names))
    return rounded_up(ranks, RANKS_MULTIPLE)


def _pack_bytes(spec: TrainingSpec) -> float:
    positions = 2 * BYTES_16BIT * spec.architecture.head_dim // 2  # cos and sin
    return float(spec.tokens * (PACK_BYTES + positions))


def _where(spec: ResolvedSpec) -> str:
    return "in host memory but for those in use" if spec.offload else f"{spec.tokens:,} tokens"
