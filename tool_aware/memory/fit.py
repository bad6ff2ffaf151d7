"""Make a configuration fit a card: the smallest edits of config.yaml, those that cost least quality first.

What config.yaml leaves to the memory plan is no edit: the plan is made anew after each.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tool_aware.config.sections import LONGEST_SEQUENCE
from tool_aware.config.settings import by_section
from tool_aware.config.yaml_file import apply_override, read_yaml_file
from tool_aware.console import UserError
from tool_aware.files import write_text
from tool_aware.memory.budget import KnownBudget, budget_on_card, needed_bytes
from tool_aware.memory.knobs import KNOBS, Knob
from tool_aware.memory.plan import Plan, leanest, make_plan
from tool_aware.memory.spec import TrainingSpec
from tool_aware.units import GIB

SMALLEST_RANK = 4
SHORTEST_SEQUENCE = 256
LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Edit:
    """One change: dotted keys of config.yaml with their new values, what it costs, and the spec it leads to."""

    keys: Mapping[str, Any]
    cost: str
    spec: TrainingSpec


EditStep = Callable[[TrainingSpec], Edit | None]  # makes one edit that needs less memory; None if it changes nothing


@dataclass(frozen=True)
class Fit:
    """A spec compared with a card of `vram_bytes`, with which plan, and the edits that make it fit if it does not.

    `edits` is None if none of them suffices. `lean` is what a plan falls back to when memory is short.
    """

    vram_bytes: float
    budget: KnownBudget
    plan: Plan  # without edits
    edits: tuple[Edit, ...] | None
    final_plan: Plan  # with them
    lean: TrainingSpec

    @property
    def fits_as_it_is(self) -> bool:
        """Return whether no edit is needed."""
        return self.edits == ()

    @property
    def is_limited(self) -> bool:
        """Return whether config.yaml allows less than the card has."""
        return self.budget != budget_on_card(self.vram_bytes)

    @property
    def keys(self) -> dict[str, Any]:
        """Return all edits together: dotted key -> value."""
        return {key: value for edit in self.edits or () for key, value in edit.keys.items()}


def fit_card(spec: TrainingSpec, vram_bytes: float, is_open: frozenset[str], allowed_gib: float | None = None) -> Fit:
    """Find out how `spec` fits a card, whose other programs need a margin; `is_open` are the plan's choices.

    `allowed_gib` is what config.yaml allows of it.
    """
    budget = budget_on_card(vram_bytes, allowed_gib)
    edits = edits_that_fit(leanest(spec, is_open), budget.limit_bytes)
    lean = edited = edits[-1].spec if edits else leanest(spec, is_open)
    set_by_edits = {key for edit in edits or () for key in edit.keys}
    if "training.per_device_train_batch_size" not in set_by_edits:  # splitting the effective batch is the plan's part
        edited = replace(lean, batch_size=spec.batch_size, accumulation=spec.accumulation)
    set_knobs = {knob.field for knob in KNOBS if f"optimization.{knob.key}" in set_by_edits}
    final_plan = make_plan(edited, budget, is_open - set_knobs)
    return Fit(vram_bytes, budget, make_plan(spec, budget, is_open), edits, final_plan, lean)


def edits_that_fit(spec: TrainingSpec, limit_bytes: float) -> tuple[Edit, ...] | None:
    """Find the fewest edits, in order of what they cost, after which `spec` fits; none that is not needed stays."""
    of_the_run = (_quantize, _halve_batch, _page_optimizer, _halve_rank, _halve_sequence)
    edits_in_order: list[EditStep] = [_share_prefix, *_edits_of_knobs(), *of_the_run]
    steps: list[EditStep] = []
    current = spec
    while needed_bytes(current) > limit_bytes:
        found = next(((step, edit) for step in edits_in_order if (edit := step(current)) is not None), None)
        if found is None:
            return None
        steps.append(found[0])
        current = found[1].spec
    return tuple(_apply(spec, _pruned(spec, steps, limit_bytes)))


def _pruned(spec: TrainingSpec, steps: Sequence[EditStep], limit_bytes: float) -> list[EditStep]:
    """Leave out each step without which the rest still fits, the costliest first."""
    kept = list(steps)
    for index in range(len(steps) - 1, -1, -1):
        without = kept[:index] + kept[index + 1 :]
        edits = list(_apply(spec, without))
        if needed_bytes(edits[-1].spec if edits else spec) <= limit_bytes:
            kept = without
    return kept


def _apply(spec: TrainingSpec, steps: Sequence[EditStep]) -> Iterator[Edit]:
    for step in steps:
        edit = step(spec)
        if edit is not None:
            yield edit
            spec = edit.spec


# ---- the edits in order: what to change, cheapest in quality first ----------------------------------------


def _share_prefix(spec: TrainingSpec) -> Edit | None:
    if spec.packing == "prefix":
        return None
    return Edit({"training.packing": "prefix"}, "same gradients", replace(spec, packing="prefix"))


def _edits_of_knobs() -> list[EditStep]:
    """Return an edit for each cost that knobs have, in the order of the table."""
    by_cost: dict[str, list[tuple[Knob, bool | int]]] = {}
    for knob in KNOBS:
        if knob.leanest:
            by_cost.setdefault(knob.leanest.cost, []).append((knob, knob.leanest.value))
    return [functools.partial(_set_knobs, values, cost) for cost, values in by_cost.items()]


def _set_knobs(values: Sequence[tuple[Knob, bool | int]], cost: str, spec: TrainingSpec) -> Edit | None:
    changes = [(knob, value) for knob, value in values if knob.has_effect(spec, value)]
    if not changes:
        return None
    keys = {f"optimization.{knob.key}": value for knob, value in changes}
    return Edit(keys, cost, spec.with_fields({knob.field: value for knob, value in changes}))


def _quantize(spec: TrainingSpec) -> Edit | None:
    if spec.quantization == "4bit" and spec.double_quantization:
        return None
    keys = {
        "quantization.load_in_4bit": True,
        "quantization.load_in_8bit": False,
        "quantization.bnb_4bit_use_double_quant": True,
    }
    return Edit(keys, "QLoRA reports no loss of quality", replace(spec, quantization="4bit", double_quantization=True))


def _halve_batch(spec: TrainingSpec) -> Edit | None:
    if spec.batch_size == 1:
        return None
    batch, accumulation = spec.batch_size // 2, spec.accumulation * spec.batch_size // (spec.batch_size // 2)
    keys = {"training.per_device_train_batch_size": batch, "training.gradient_accumulation_steps": accumulation}
    return Edit(
        keys, "about the same effective batch, slower", replace(spec, batch_size=batch, accumulation=accumulation)
    )


def _page_optimizer(spec: TrainingSpec) -> Edit | None:
    if spec.optimizer == "paged_adamw_8bit":
        return None
    cost = "coarser optimizer states, no fp32 masters"
    return Edit({"optimization.optim": "paged_adamw_8bit"}, cost, replace(spec, optimizer="paged_adamw_8bit"))


def _halve_rank(spec: TrainingSpec) -> Edit | None:
    if spec.lora_r <= SMALLEST_RANK:
        return None
    rank = max(SMALLEST_RANK, spec.lora_r // 2)
    return Edit({"lora.r": rank}, "a smaller adapter learns less", replace(spec, lora_r=rank))


def _halve_sequence(spec: TrainingSpec) -> Edit | None:
    length = max(SHORTEST_SEQUENCE, spec.seq_length // 2)
    # Every example has the shared prefix and an answer: in less than that none would be left to train on.
    if length >= spec.seq_length or length <= spec.prefix_tokens + spec.answer_tokens:
        return None
    keys = {"model.max_seq_length": length, "training.too_long": "drop"}
    return Edit(keys, "drops the longer examples", replace(spec, seq_length=length))


# ---- how far it could go ---------------------------------------------------------------------------------


def longest_sequence(spec: TrainingSpec, limit_bytes: float) -> int:
    """Return the tokens of the longest single example that fits, in steps of 64; 0 if none does."""
    alone = replace(spec, batch_size=1, prefix_tokens=0)
    return 64 * largest(
        lambda blocks: needed_bytes(replace(alone, seq_length=64 * blocks)) <= limit_bytes, LONGEST_SEQUENCE // 64
    )


def largest_batch(spec: TrainingSpec, limit_bytes: float) -> int:
    """Return how many examples of the spec's length fit one micro-batch; 0 if not even one does."""
    return largest(lambda size: needed_bytes(replace(spec, batch_size=size)) <= limit_bytes, LARGEST_BATCH)


def largest(is_possible: Callable[[int], bool], limit: int) -> int:
    """Return the largest number from 0 to `limit` that is possible, given that all smaller ones are."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_possible(middle) else (low, middle - 1)
    return low


def as_yaml(keys: Mapping[str, Any]) -> str:
    """Write dotted keys as lines to paste into config.yaml."""
    lines = []
    for section, values in by_section(keys).items():
        lines.append(f"{section}:")
        lines += [
            f"  {key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()
        ]
    return "\n".join(lines)


def write_fitting_config(path: Path, base: Path, answer: Fit, overrides: Sequence[str]) -> None:
    """Write a config file that extends `base` by `overrides` (`section.key=value`) and the edits that make it fit.

    Raises UserError if no edit suffices, or if the file is there already.
    """
    size = f"{answer.vram_bytes / GIB:g}"
    if answer.edits is None:
        raise UserError("no edit makes it fit", where=f"--vram {size}", fix="a smaller model")
    if path.exists():
        raise UserError("is there already", where=str(path), fix="delete it, or name another file")
    before, after = (read_yaml_file(base) for _ in range(2))
    for override in (*overrides, *(f"{key}={json.dumps(value)}" for key, value in answer.keys.items())):
        apply_override(after, override)
    values = {"extends": os.path.relpath(base, path.parent), **_changed(before, after)}
    head = f"# Fits {size} GiB: python monitor_gpu.py estimate --vram {size}\n"
    write_text(path, head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of `after` is laid over `before`: sections by key, lists whole, as `extends` replaces them."""
    changed = {}
    for key, value in after.items():
        if key in before and before[key] == value:
            continue
        both_are_sections = isinstance(value, dict) and isinstance(before.get(key), dict)
        changed[key] = _changed(before[key], value) if both_are_sections else value
    return changed
