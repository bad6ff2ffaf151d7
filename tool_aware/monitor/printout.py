"""The texts of `check` and `estimate`: GPUs, terms of an estimate, what fits. Nothing here prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tool_aware.console import table
from tool_aware.gpu.device_facts import DeviceFacts
from tool_aware.gpu.published_cards import published_card
from tool_aware.gpu.readings import GpuReading
from tool_aware.memory.budget import needed_bytes
from tool_aware.memory.estimate import MemoryEstimate, unmeasured_features
from tool_aware.memory.evaluation_estimate import EvaluationFit
from tool_aware.memory.fit import LARGEST_BATCH, Fit, as_yaml, fit_card, largest_batch, longest_sequence
from tool_aware.memory.knobs import KNOBS
from tool_aware.memory.spec import TrainingSpec
from tool_aware.memory.speed import MEAN_ERROR_PERCENT, MEASURED_ON, NINE_OF_TEN_PERCENT, estimate_speed
from tool_aware.memory.trace import TracedBytes
from tool_aware.monitor.checks import STATUSES, CheckLine
from tool_aware.monitor.display import gib, power, process_text, with_unit
from tool_aware.units import GIB

SHOWN_FROM_GIB = 0.005  # smaller terms would be shown as 0.00
COMMON_CARDS_GB = (6, 8, 10, 12, 16, 24, 40, 80)
COMMON_CARDS = ("RTX 3060", "RTX 4060 Ti", "RTX 4070 Ti", "RTX 4090", "RTX 5070", "T4", "L4", "A10")


def overview(gpus: Sequence[GpuReading]) -> Iterator[str]:
    """Yield the state of every GPU in a few lines each, for `check`."""
    for gpu in gpus:
        yield f"GPU {gpu.index}  {gpu.name}"
        if gpu.problem:
            yield f"  {gpu.problem}"
            continue
        yield f"  memory       {gib(gpu.total_bytes)} GiB: {gib(gpu.used_bytes)} used, {gib(gpu.free_bytes)} free"
        temperature = with_unit(gpu.temperature_c, "C")
        use = with_unit(gpu.utilization_percent, "%")
        yield f"  state        {temperature}, {use} busy, {power(gpu)}, {with_unit(gpu.sm_clock_mhz, 'MHz')}"
        for number, process in enumerate(gpu.processes):
            yield f"  {'' if number else 'processes':<11}  {process_text(process)}"


def check_text(lines: Sequence[CheckLine], width: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield (status, text) for each check, wrapped at `width`; the status is empty on lines that go on with one."""
    indent = " " * (max(map(len, STATUSES)) + 2)
    name_width = max(len(line.name) for line in lines)
    for line in lines:
        texts = _wrapped(line.finding, width, len(indent) + name_width + 2)
        if line.remedy and line.status != "ok":
            texts += _wrapped(f"fix: {line.remedy}", width, len(indent) + name_width + 2)
        yield line.status, f"{line.status:<{len(indent)}}{line.name:<{name_width}}  {texts[0]}"
        for text in texts[1:]:
            yield "", f"{indent}{'':<{name_width}}  {text}"


def _wrapped(text: str, width: int | None, indent: int) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - indent), break_long_words=False, break_on_hyphens=False)


def verdict(lines: Sequence[CheckLine]) -> str:
    """Return the last line of a check."""
    problems = sum(line.status == "problem" for line in lines)
    return f"not ready: {problems} to fix" if problems else "ready to train"


def spec_text(spec: TrainingSpec) -> str:
    """Return one line: what is estimated."""
    targets = spec.targets if isinstance(spec.targets, str) else ", ".join(spec.targets)
    if spec.batch_size == 1:
        batch = f"1 example of {spec.seq_length:,} tokens"
    else:
        batch = f"{spec.batch_size} examples of up to {spec.seq_length:,} tokens, packing {spec.packing}"
        batch += f": {spec.tokens:,} tokens"
    decoder = "" if spec.has_own_decoder else ", transformers' pass"
    return f"{spec.architecture.name}, {spec.quantization}, LoRA r={spec.lora_r} on {targets}; {batch}{decoder}"


def estimate_table(estimate: MemoryEstimate) -> str:
    """Return the terms of an estimate, the totals, and what it rests on."""
    rows = [
        (term.name, gib(term.used_bytes, 2), term.note)
        for term in estimate.terms
        if term.used_bytes >= SHOWN_FROM_GIB * GIB
    ]
    rows.append(("needed on the card", gib(estimate.total_bytes, 2), "what nvidia-smi will show"))
    lines = table(["term", "GiB", ""], rows, "<><").splitlines()
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:-1], rule, lines[-1]])


def basis_text(estimate: MemoryEstimate) -> str:
    """Return where the peak is, and what the estimate rests on."""
    calibration = estimate.calibration
    lines = [
        f"peaks in {estimate.peaks_in}; torch allocates {gib(estimate.allocated_bytes, 2)} "
        f"(error up to {calibration.allocated_error_percent:g} %) and reserves {gib(estimate.reserved_bytes, 2)} GiB; "
        f"in all the error is up to {calibration.error_percent:g} %",
        f"calibrated on {calibration.source}; the CUDA context of smaller cards is smaller",
    ]
    if unmeasured := unmeasured_features(estimate.spec):
        lines.append(f"not among those runs, counted from shapes: {', '.join(unmeasured)}")
    return "\n".join(lines)


def estimate_record(
    estimate: MemoryEstimate, answer: Fit | None = None, exact: TracedStep | None = None
) -> dict[str, Any]:
    """Return plain values for --json."""
    record = estimate.as_dict()
    if exact:
        record["exact"] = exact.as_dict()
    if answer:
        record["vram_gib"] = round(answer.vram_bytes / GIB, 2)
        record["fits"] = answer.fits_as_it_is
        record["plan"] = answer.final_plan.as_dict()
        record["edits"] = None if answer.edits is None else answer.keys
    return record


@dataclass(frozen=True)
class TracedStep:
    """A traced step beside the formula for the same step, which is not always the planned one."""

    traced: TracedBytes
    formula: MemoryEstimate
    planned: TrainingSpec

    @property
    def without(self) -> list[str]:
        """Return what the planned step has and the traced one has not."""
        traced, planned = self.formula.spec.resolved, self.planned.resolved
        names = [
            knob.label.replace("_", " ")
            for knob in KNOBS
            if getattr(traced, knob.field) != getattr(planned, knob.field)
        ]
        return names + [planned.optimizer] * (traced.optimizer != planned.optimizer)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for --json, sizes in GiB."""
        sizes = {"gib": self.traced.peak_bytes, "formula_gib": self.formula.tensor_bytes}
        return {name: round(size / GIB, 3) for name, size in sizes.items()} | {"without": self.without}


def exact_text(exact: TracedStep) -> str:
    """Return one line: what the traced step takes, what the formula says, and what the planned step has besides."""
    traced, formula_bytes = exact.traced, exact.formula.tensor_bytes
    without = f" (without {', '.join(exact.without)})" if exact.without else ""
    return (
        f"traced step{without}: {gib(traced.peak_bytes, 2)} GiB in tensors (model at rest "
        f"{gib(traced.rest_bytes, 2)}); the formula says {gib(formula_bytes, 2)} "
        f"({formula_bytes / traced.peak_bytes - 1:+.1%})"
    )


def fit_text(answer: Fit) -> str:
    """Return whether it fits the card and how the run would use it, what would make it fit, how far it could go."""
    limit, spec = answer.budget.limit_bytes, answer.final_plan.spec
    size = f"{answer.vram_bytes / GIB:.3g} GiB"
    if answer.is_limited:
        size = f"the {limit / GIB:.3g} GiB that training.memory_budget_gib allows of {size}"
    if answer.edits is None:
        return f"does not fit {size}, and no edit of config.yaml makes it: a smaller model is needed"
    if answer.fits_as_it_is:
        lines = [f"fits {size}; the run would use it so:"]
    else:
        short = (needed_bytes(answer.plan.spec) - limit) / GIB
        lines = [f"does not fit {size}: {short:.1f} GiB too much. It fits with", "", as_yaml(answer.keys), ""]
        costs = {", ".join(edit.keys): edit.cost for edit in answer.edits}  # an edit may be made more than once
        lines += [f"  {keys}: {cost}" for keys, cost in costs.items()]
        lines.append("and the run would then use it so:")
    lines += textwrap.indent(answer.final_plan.text(), "  ").splitlines()
    examples = largest_batch(answer.lean, limit)
    lines.append(
        f"room for: one example of {longest_sequence(answer.lean, limit):,} tokens, "
        f"or micro-batches of {examples}{'+' if examples == LARGEST_BATCH else ''} x {spec.seq_length:,} tokens"
    )
    return "\n".join(lines)


def evaluation_fit_text(answer: EvaluationFit) -> str:
    """Return whether evaluation fits the card, by how much, and with how large batches it would."""
    size, left_gib = f"{answer.vram_bytes / GIB:.3g} GiB", answer.left_bytes / GIB
    verdict = (
        f"fits {size}: {left_gib:.1f} GiB to spare"
        if answer.fits
        else f"does not fit {size}: {-left_gib:.1f} GiB too much"
    )
    lines = [f"{verdict}, the estimate's error included; to use: {answer.source}"]
    if answer.largest_batch:
        more = "+" if answer.largest_batch == LARGEST_BATCH else ""
        lines.append(f"room for: evaluation.batch_size: {answer.largest_batch}{more}")
    else:
        lines.append("no evaluation.batch_size fits: a smaller model is needed")
    return "\n".join(lines)


def speed_text(spec: TrainingSpec, card: str | None, examples_in_run: float | None = None) -> str | None:
    """Return the time of a micro-step and of a run on a card; None if the card's rates are not known."""
    speed = estimate_speed(spec, card) if card else None
    if speed is None:
        return None
    examples = f"{spec.batch_size} example{'s' * (spec.batch_size > 1)}"
    lines = [
        f"time on {card}: {speed.expected_s:.2f} s a micro-step of {examples} ({speed.least_s:.2f} to "
        f"{speed.most_s:.2f}), {spec.tokens / speed.expected_s:,.0f} tokens/s; no faster than {speed.limit_s:.2f} s "
        "by its published rate"
    ]
    if examples_in_run:
        minutes = examples_in_run / spec.batch_size * speed.expected_s / 60
        lines.append(f"  some {minutes:,.0f} minutes for the run's {examples_in_run:,.0f} examples, without validation")
    error = f"{MEAN_ERROR_PERCENT} % off on average, nine of ten within {NINE_OF_TEN_PERCENT} %, over {MEASURED_ON}"
    others = "" if speed.is_measured else "; this card was not measured, so the band is wider"
    return "\n".join([*lines, f"  an estimate: {error}{others}"])


def fit_table(spec: TrainingSpec, is_open: frozenset[str], allowed_gib: float | None = None) -> str:
    """Return a Markdown table of common card sizes: how they are used, what has to change, how far they go."""
    lines = [
        "| card | how the plan uses it | needed | edits of config.yaml | longest example | largest micro-batch |",
        "|---|---|---|---|---|---|",
    ]
    for size in COMMON_CARDS_GB:
        answer = fit_card(spec, size * GIB, is_open, allowed_gib)
        if answer.edits is None:
            lines.append(f"| {size} GB | - | - | a smaller model is needed | - | - |")
            continue
        edits = ", ".join(f"`{key}: {json.dumps(value).strip(chr(34))}`" for key, value in answer.keys.items())
        fitting, limit = answer.final_plan.spec, answer.budget.limit_bytes
        lines.append(
            f"| {size} GB | {plan_phrase(fitting)} | {gib(needed_bytes(fitting))} GiB | {edits or 'none'} "
            f"| {longest_sequence(answer.lean, limit):,} tokens | {largest_batch(answer.lean, limit)} examples |"
        )
    return "\n".join(lines)


def cards_table(spec: TrainingSpec, is_open: frozenset[str], allowed_gib: float | None = None) -> str:
    """Return a Markdown table of cards that people own: the plan, what it needs, and the time of an optimizer step."""
    lines = [
        "| card | computes in | decoder | how the plan uses it | needed | seconds a step (from, to) |",
        "|---|---|---|---|---|---|",
    ]
    for name in COMMON_CARDS:
        card = published_card(name)
        assert card is not None, "a row of published_cards.CARDS"
        device, size = DeviceFacts("cuda", card.capability), card.sizes_gib[-1]
        answer = fit_card(spec.on(device), size * GIB, is_open, allowed_gib)
        fitting = answer.final_plan.spec
        speed = estimate_speed(fitting, name)
        assert speed is not None, "the card is in the table"
        seconds, least, most = (fitting.accumulation * s for s in (speed.expected_s, speed.least_s, speed.most_s))
        decoder = "own" if fitting.has_own_decoder else "transformers'"
        edits = ", ".join(f"`{key}: {value}`" for key, value in answer.keys.items())
        plan = plan_phrase(fitting) + (f", with {edits}" if edits else "")
        lines.append(
            f"| {name}, {size:g} GiB | {device.dtype} | {decoder} | {plan} | {gib(needed_bytes(fitting))} GiB "
            f"| {seconds:.1f} ({least:.1f}, {most:.1f}) |"
        )
    return "\n".join(lines)


def plan_phrase(spec: TrainingSpec) -> str:
    """Return a plan in a few words."""
    return ", ".join(filter(None, (knob.phrase(spec.resolved) for knob in KNOBS)))
