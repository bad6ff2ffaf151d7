"""The memory plan of a run, from its tokenised examples and what is free on the GPUs of its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config
from tool_aware.text import common_prefix_length
from tool_aware.training.schedule import Schedule

if TYPE_CHECKING:
    from tool_aware.memory.plan import Plan
    from tool_aware.training.varied_lists import StepExamples


def plan_memory(
    config: Config, examples: Sequence[EncodedExample], processes: int, varied: StepExamples | None = None
) -> Plan:
    """Plan how each process uses its GPU, for the largest micro-batches of plain and `varied` examples."""
    from tool_aware.engine.supported import unsupported_gpu
    from tool_aware.gpu.visible import visible_gpus
    from tool_aware.memory.plan import plan_of
    from tool_aware.memory.spec import TrainingSpec
    from tool_aware.model.base import compute_dtype, device, start_gpu

    shared = common_prefix_length([example.prompt for example in examples])
    longest, answer = max(map(len, examples)), max(len(example.completion) for example in examples)
    if varied:
        most = varied.most_tokens(Schedule.of(config, len(examples), processes).steps, shared)
        longest = min(config.model.max_seq_length, max(longest - shared, most.rest) + max(shared, most.prefix))
        shared, answer = max(shared, most.prefix), max(answer, most.answer)
    spec = TrainingSpec.from_config(
        config,
        processes=processes,
        longest_tokens=longest,
        prefix_tokens=shared if config.training.packing == "prefix" else 0,
        answer_tokens=answer,
    )
    uuids = start_gpu()
    if unsupported_gpu(device(), compute_dtype(config.quantization.bnb_4bit_compute_dtype)):
        spec = replace(spec, decoder="transformers")
    return plan_of(config, spec, visible_gpus(uuids)[:processes] if uuids else [], has_context=True)
