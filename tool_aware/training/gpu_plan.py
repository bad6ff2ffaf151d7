"""The memory plan of a run, from its tokenised examples and what is free on the GPUs of its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config
from tool_aware.text import common_prefix_length

if TYPE_CHECKING:
    from tool_aware.memory.plan import Plan


def plan_memory(config: Config, examples: Sequence[EncodedExample], processes: int) -> Plan:
    """Plan how each process uses its GPU, for the largest micro-batches that `examples` can give."""
    from tool_aware.engine.supported import unsupported_gpu
    from tool_aware.gpu.visible import visible_gpus
    from tool_aware.memory.plan import plan_of
    from tool_aware.memory.spec import TrainingSpec
    from tool_aware.model.base import device, start_gpu

    shared = common_prefix_length([example.prompt for example in examples])
    spec = TrainingSpec.from_config(
        config,
        processes=processes,
        longest_tokens=max(map(len, examples)),
        prefix_tokens=shared if config.training.packing == "prefix" else 0,
        answer_tokens=max(len(example.completion) for example in examples),
    )
    uuids = start_gpu()
    if unsupported_gpu(device()):
        spec = replace(spec, decoder="transformers")
    return plan_of(config, spec, visible_gpus(uuids)[:processes] if uuids else [], has_context=True)
