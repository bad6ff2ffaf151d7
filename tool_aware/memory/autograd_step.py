"""Memory of a micro-batch under transformers' forward pass and autograd: padded rows, 8-bit weights, dropout.

Counted from transformers' Mistral and peft's LoRA layers; `saved` is what autograd keeps for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

from tool_aware.engine.sizes import CHUNK_LABELS
from tool_aware.memory.spec import BYTES_16BIT, LOGIT_BYTES, Moment, Term, TrainingSpec, gradients_that_wait
from tool_aware.model.adapter import ATTENTION_LINEARS, MLP_LINEARS

STATE_BYTES = 10  # per token and element of width around the loss: the final norm's fp32 copies and its output
SAVED_SCORE_BYTES = 6  # eager attention, per score: fp32 softmax 4 and its bf16 copy 2
PEAK_SCORE_BYTES = 12  # and while differentiated: gradients in bf16 2 and fp32 4
NORM_BYTES = 4  # per element: RMSNorm keeps an fp32 copy of its input


def moments(spec: TrainingSpec) -> Iterator[Moment]:
    """Yield the moments at which a micro-batch can need most."""
    architecture, layers = spec.architecture, spec.architecture.layers
    gradients = float(spec.adapter_parameters * BYTES_16BIT)
    waiting = Term("gradients", gradients_that_wait(spec), "and a copy to fall back to")
    checkpoint = float(BYTES_16BIT * architecture.hidden * spec.tokens)
    layer, mask = saved_bytes_per_layer(spec), Term("attention mask", mask_bytes(spec))
    if spec.checkpointing:
        saved, working = layers * (checkpoint + bytes_that_escape_checkpointing(spec)), layer + backward_bytes(spec)
        saved_name, working_name = "layer inputs", "one layer's working set"
    else:
        saved, working = layers * layer, backward_bytes(spec)
        saved_name, working_name = "kept activations", "backward temporaries"
    every_layer = Term(saved_name, saved, f"{spec.tokens:,} tokens")
    one_layer = Term(saved_name, saved / layers, "of the first layer")
    one_backward = Term(working_name, working)
    all_gradients = Term("gradients", max(waiting.used_bytes, gradients), "of all layers")

    yield Moment("the loss", (waiting, mask, every_layer, Term("logits", loss_bytes(spec))))
    yield Moment("the last layer's backward pass", (waiting, mask, every_layer, one_backward))
    yield Moment("the first layer's backward pass", (all_gradients, mask, one_layer, one_backward))


def saved_bytes_per_layer(spec: TrainingSpec) -> float:
    """Return the bytes autograd keeps of one decoder layer."""
    per_token = _saved_in_attention(spec) + _saved_in_mlp(spec)
    if spec.attention == "eager":
        return per_token * spec.tokens + SAVED_SCORE_BYTES * spec.architecture.heads * attention_pairs(spec)
    return per_token * spec.tokens + BYTES_16BIT * attention_pairs(spec)


def _saved_in_attention(spec: TrainingSpec) -> float:
    """Return the bytes per token: the norm's input; q, k, v and output; log-sum-exp; LoRA's inputs."""
    architecture, kept = spec.architecture, _with_kept_input(spec, ATTENTION_LINEARS)
    # SDPA wants keys and values repeated for the query heads that share them.
    norms = NORM_BYTES * (architecture.hidden + architecture.head_norm_width)
    saved = norms + 4 * BYTES_16BIT * architecture.query_width + 4 * architecture.heads
    # A frozen linear layer keeps nothing; LoRA keeps its input, once for those that share it, and the r-wide product.
    if kept - {"o_proj"}:
        saved += BYTES_16BIT * architecture.hidden
    return saved + BYTES_16BIT * spec.lora_r * len(spec.target_names & set(ATTENTION_LINEARS))


def _saved_in_mlp(spec: TrainingSpec) -> float:
    """Return the bytes per token: the norm's input; gate, its activation and up; LoRA's inputs."""
    architecture, kept = spec.architecture, _with_kept_input(spec, MLP_LINEARS)
    saved = NORM_BYTES * architecture.hidden + 3 * BYTES_16BIT * architecture.intermediate
    if kept - {"down_proj"}:
        saved += BYTES_16BIT * architecture.hidden
    if "down_proj" in kept:
        saved += BYTES_16BIT * architecture.intermediate
    return saved + BYTES_16BIT * spec.lora_r * len(spec.target_names & set(MLP_LINEARS))


def bytes_that_escape_checkpointing(spec: TrainingSpec) -> float:
    """Return the bytes per layer that are not freed after the forward pass although they will be recomputed.

    bitsandbytes' 8-bit layers keep their inputs on the autograd node itself and not as saved tensors
    (`MatMul8bitLt.forward`: ctx.tensors), where torch.utils.checkpoint cannot take them away.
    """
    if spec.quantization != "8bit":
        return 0.0
    architecture = spec.architecture
    width = 2 * architecture.hidden + architecture.query_width + architecture.intermediate
    return float(BYTES_16BIT * width * spec.tokens)


def _with_kept_input(spec: TrainingSpec, names: tuple[str, ...]) -> frozenset[str]:
    """Return those of `names` whose input is kept for the backward pass: adapted ones, and all in 8 bits."""
    return frozenset(names) if spec.quantization == "8bit" else spec.target_names & frozenset(names)


def backward_bytes(spec: TrainingSpec) -> float:
    """Return the bytes that live for a moment while a layer is differentiated, on top of what it saved.

    The peak is in the MLP: at a dequantised weight matrix, or, with many tokens, among its wide gradients. Eager
    attention peaks among the gradients of its scores instead, when the MLP's tensors are gone.
    """
    architecture = spec.architecture
    hidden, middle = BYTES_16BIT * architecture.hidden, BYTES_16BIT * architecture.intermediate
    largest_matrix = max(inputs * outputs for inputs, outputs in architecture.linear_shapes.values())
    dequantized = largest_matrix * BYTES_16BIT * (spec.quantization != "none")
    peaks: list[float] = [(hidden + middle) * spec.tokens + dequantized, (hidden + 2 * middle) * spec.tokens]
    if spec.attention == "eager":
        scores = (PEAK_SCORE_BYTES - SAVED_SCORE_BYTES) * architecture.heads * attention_pairs(spec)
        peaks.append(scores + (hidden - _saved_in_mlp(spec)) * spec.tokens)
    return max(peaks)


def mask_bytes(spec: TrainingSpec) -> float:
    """Return the bytes of the mask that the model is given: bool, or 16-bit where attention adds it."""
    return float((BYTES_16BIT if spec.attention == "eager" else 1) * attention_pairs(spec))


def loss_bytes(spec: TrainingSpec) -> float:
    """Return the bytes of logits, chunk by chunk, and of the states they are made from."""
    logits = LOGIT_BYTES * min(spec.label_tokens, CHUNK_LABELS) * spec.architecture.vocabulary
    states = STATE_BYTES * spec.architecture.hidden * spec.tokens
    return logits + states


def attention_pairs(spec: TrainingSpec) -> int:
    """Count the query-key pairs of the dense mask: of each padded row, or of the whole pack."""
    return spec.tokens**2 if spec.packing != "none" else spec.batch_size * spec.row_tokens**2
