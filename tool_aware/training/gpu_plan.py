"""The memory plan of a run, from its tokenised examples and what is free on its GPUs, or on the host without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config
from tool_aware.host_memory import SHARE_OF_FREE, free_host_bytes
from tool_aware.text import common_prefix_length
from tool_aware.training.schedule import Schedule
from tool_aware.units import GIB

if TYPE_CHECKING:
    from tool_aware.memory.budget import Budget
    from tool_aware.memory.plan import Plan
    from tool_aware.training.varied_lists import StepExamples


_SAVES_TIME_ON_THE_CPU = frozenset({"checkpointing", "cached_layers"})


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
    plan = plan_of(config, spec, visible_gpus(uuids)[:processes] if uuids else [], has_context=True)
    if device().type == "cpu" and config.training.memory_budget_gib == "auto":
        return on_the_cpu(config, plan, free_host_budget(processes))
    return plan


def on_the_cpu(config: Config, plan: Plan, budget: Budget) -> Plan:
    """Return the plan of a run without a GPU: no layer is computed or dequantised twice if there is room for that.

    Micro-batches stay as they are, and so does all of the plan if there is no room.
    """
    from tool_aware.memory.plan import make_plan, open_choices

    if budget.limit_bytes is None:
        return plan
    found = make_plan(plan.spec, budget, open_choices(config) & _SAVES_TIME_ON_THE_CPU)
    return found if found.fits else plan


def free_host_budget(processes: int) -> Budget:
    """Return what each of some processes may take of this machine's memory; no limit where it does not tell."""
    from tool_aware.memory.budget import Budget, KnownBudget

    free_bytes = free_host_bytes()
    if free_bytes is None:
        return Budget(None, "no GPU")
    source = f"no GPU; a quarter of the {free_bytes / GIB:.1f} GiB that are free"
    return KnownBudget(SHARE_OF_FREE * free_bytes / processes, source)
