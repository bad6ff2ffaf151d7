"""Compile the decoder's Triton kernels for cards that are not here, and hold them to what those cards have.

    python benchmarks/triton_kernels.py          # no GPU needed, but Triton, which a CPU build of torch lacks
    pip install --target FOLDER triton==3.7.1 && PYTHONPATH=FOLDER python benchmarks/triton_kernels.py

One layer of each model, NF4 weights with LoRA r=8 on all linear layers, runs forward and backward over a pack of 16
examples of the tool task, on tensors without data. Each kernel is compiled as it is called there: with those types,
sizes, strides and warps. It is loaded by a driver that knows the card's limits, and not run.

Reads   config.yaml
Writes  benchmarks/results/triton_kernels.json
Exit    0 done; 2 Triton is not installed; 3 a kernel spills registers, or asks for more than a card has
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY))

from tool_aware.config.settings import load_config  # noqa: E402
from tool_aware.console import GateFailed, UserError, run, say, table  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.memory.architectures import PRESETS, Architecture  # noqa: E402
from tool_aware.memory.spec import TrainingSpec  # noqa: E402

if TYPE_CHECKING:
    import torch
    from _pretended_gpu import CompiledKernel
    from peft import PeftModel

RESULT = _REPOSITORY / "benchmarks" / "results" / "triton_kernels.json"
_SMOLLM2 = Architecture("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, ties_embeddings=True)
# Name -> shapes, and whether the scales of the 4-bit weights are quantised again.
MODELS = {
    "mistral-7b": (PRESETS["mistral-7b-v0.2"], True),
    "mistral-7b, scales in fp32": (PRESETS["mistral-7b-v0.2"], False),
    "smollm2-135m": (_SMOLLM2, True),
    "qwen3-8b": (PRESETS["qwen-3-8b"], True),
}
WITHOUT_BF16 = 75  # Turing: models are computed in float16 there
EXAMPLES, PREFIX_TOKENS, OWN_TOKENS = 16, 260, 104
TOKENS = 1952  # a pack of these, rounded up as the engine does


def main(argv: Sequence[str] | None = None) -> int:
    """Compile for each card and print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        raise UserError("Triton is not installed", where="import triton", fix="pip install triton==3.7.1")
    import triton
    from _pretended_gpu import SHARED_KIB

    rows: list[dict[str, Any]] = []
    for model, (architecture, is_nested) in MODELS.items():
        for capability in SHARED_KIB:
            found = compiled(architecture, capability, is_nested=is_nested)
            rows += [{"model": model, **asdict(kernel), "faults": faults(kernel)} for kernel in found]
            say(f"{model} for sm_{capability}: {len(found)} kernels")
    write_json(RESULT, {"triton": triton.__version__, "rows": rows})
    print(report(rows))
    wrong = [
        f"{row['kernel']} of {row['model']} on sm_{row['capability']}: {row['faults'][0]}"
        for row in rows
        if row["faults"]
    ]
    if wrong:
        raise GateFailed("; ".join(wrong))
    return 0


def compiled(architecture: Architecture, capability: int, *, is_nested: bool = True) -> list[CompiledKernel]:
    """Return the kernels that one layer of these shapes calls, compiled for a card of this compute capability."""
    import torch
    from _pretended_gpu import pretended_gpu

    from tool_aware.engine import triton_ops
    from tool_aware.engine.decoder_layer import DecoderLayer, PackContext
    from tool_aware.model.adapter import base_of

    dtype = torch.float16 if capability <= WITHOUT_BF16 else torch.bfloat16
    model = _one_layer(architecture, dtype, is_nested=is_nested)
    with torch.device("meta"), torch.no_grad(), pretended_gpu(capability) as gpu:
        x = torch.empty(1, 16)  # as engine/supported.py asks whether Triton works
        triton_ops.rms_norm(x, x[0], 1e-6, x)
        layer = DecoderLayer(base_of(model).model.layers[0], triton_ops, is_cached=False)
        rotation = torch.empty(TOKENS, architecture.head_dim // 2)
        context = PackContext(_attention(), rotation, rotation)
        x = torch.empty(TOKENS, architecture.hidden, dtype=dtype)
        _, kept = layer.forward(x, context, keep=True)
        layer.backward(layer.grad_buffer(TOKENS), x, kept, context)
        triton_ops.copier([(x[:, :8], torch.empty(TOKENS, 8, dtype=dtype))])()
    return gpu.compiled


def _one_layer(architecture: Architecture, dtype: torch.dtype, *, is_nested: bool) -> PeftModel:
    """Build a model of one layer with an adapter, all of it on "meta"."""
    import torch

    from tool_aware.memory.fake_model import make_fake, meta_model
    from tool_aware.memory.trace import config_of
    from tool_aware.model.adapter import new_adapter

    spec = TrainingSpec(replace(architecture, layers=1), double_quantization=is_nested)
    model = new_adapter(meta_model(spec), config_of(spec, load_config(_REPOSITORY / "config.yaml")))
    with torch.device("meta"):
        make_fake(model)
        for parameter in model.parameters():
            if hasattr(parameter, "quant_state"):
                parameter.quant_state.dtype = dtype
            elif parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    return model


def _attention() -> Any:
    """Return torch's FlashAttention over a pack whose examples share a prefix."""
    import torch

    from tool_aware.engine.packed_attention import FlashAttention, Segments

    starts = torch.empty(EXAMPLES + 2, dtype=torch.int32)
    prefix = torch.empty(PREFIX_TOKENS, dtype=torch.int64)
    copies = torch.empty(2, PREFIX_TOKENS, dtype=torch.int32)
    longest = (PREFIX_TOKENS, EXAMPLES * OWN_TOKENS, PREFIX_TOKENS)
    return FlashAttention(Segments(starts, starts, starts, prefix, copies, *longest))


def faults(kernel: CompiledKernel) -> list[str]:
    """Return what is wrong with a kernel on its card. Triton itself refuses too much shared memory."""
    from _pretended_gpu import REGISTERS, SHARED_KIB, WARP

    found = []
    if kernel.shared_bytes > SHARED_KIB[kernel.capability] * 1024:
        found.append(f"{kernel.shared_bytes} bytes of shared memory")
    if kernel.registers * kernel.warps * WARP > REGISTERS:
        found.append(f"{kernel.registers} registers in each of {kernel.warps * WARP} threads")
    if kernel.spilled_bytes:
        found.append(f"{kernel.spilled_bytes} bytes of registers spilled")
    if kernel.has_bf16 and kernel.capability <= WITHOUT_BF16:
        found.append("bfloat16")
    return found


def report(rows: Iterable[dict[str, Any]]) -> str:
    """Return the most that any kernel takes, by card."""
    lines = []
    for capability in sorted({row["capability"] for row in rows}):
        of_card = [row for row in rows if row["capability"] == capability]
        most = [max(row[key] for row in of_card) for key in ("shared_bytes", "registers", "spilled_bytes")]
        lines.append((f"sm_{capability}", len(of_card), *most, sum(len(row["faults"]) for row in of_card)))
    return table(("card", "kernels", "shared bytes", "registers", "spilled bytes", "faults"), lines)


if __name__ == "__main__":
    run(main)
