"""What train_memory.py prints: a line for each configuration, a table of all, and how the goals stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from _memory_grid import Case

from tool_aware.console import table
from tool_aware.memory.measured import compare_row, mean_and_worst

Rows = Sequence[dict[str, Any]]


def short(row: dict[str, Any]) -> str:
    """Return the case in a few words and what was measured."""
    return f"{described(row)}: {row.get('why') or outcome(row)}"


def described(row: dict[str, Any]) -> str:
    """Return a case as one phrase, without the usual settings."""
    targets = "all-linear" if row["targets"] == "all-linear" else "attention"
    unusual = {
        f"prefix {row['prefix_tokens']}": row["prefix_tokens"],
        row["packing"]: row["packing"] != Case.packing,
        f"r={row['lora_r']}": row["lora_r"] != Case.lora_r,
        targets: targets == "attention",
        "no checkpointing": not row["checkpointing"],
        "offload": row["offload"],
        f"{row['kept_layers']} kept": row["kept_layers"],
        f"{row['cached_layers']} cached": row["cached_layers"],
        f"x{row['accumulation']}": row["accumulation"] > 1,
        row["optimizer"]: row["optimizer"] != Case.optimizer,
        f"{row['answer_tokens']} labels": row["answer_tokens"] > 1000,
        "eager": row["attention"] == "eager",
        "transformers": row["decoder"] == "transformers",
        "recorded": row.get("is_recorded"),
        f"cap {row['cap_gib']} GiB": row["cap_gib"],
        "own process": row["is_alone"],
    }
    parts = [row["preset"], row["quantization"], f"{row['batch_size']} x {row['seq_length']}"]
    return " ".join([*parts, *(name for name, is_so in unusual.items() if is_so)])


def outcome(row: dict[str, Any]) -> str:
    """Return the peaks in GiB as text."""
    figures = " / ".join("-" if figure is None else f"{figure:.2f}" for figure in measured(row))
    return f"{'out of memory at ' if row['oom'] else ''}{figures} GiB, {row['seconds_per_step']} s a step"


def measured(row: dict[str, Any]) -> tuple[float | None, ...]:
    """Return the three peaks in GiB."""
    return row["allocated_gib"], row["reserved_gib"], row["nvml_gib"]


def report(measured_rows: Rows, skipped: Rows) -> str:
    """Return the table, the goals, and what was left out."""
    return "\n".join(_report_lines(measured_rows, skipped))


def _report_lines(measured_rows: Rows, skipped: Rows) -> Iterator[str]:
    rows = []
    for row in measured_rows:
        figures = [
            "-" if row[key] is None else f"{row[key]:.2f}" for key in ("allocated_gib", "reserved_gib", "nvml_gib")
        ]
        comparison = None if row["oom"] or row["allocated_gib"] is None else compare_row(row)
        error = f"{comparison.allocated_error:+.1%}" if comparison else "-"
        rows.append((described(row), *figures, error, "OOM" if row["oom"] else row["seconds_per_step"]))
    yield table(("configuration", "allocated", "reserved", "NVML", "formula", "s/step"), rows, "<>>>>>")
    yield from _errors(measured_rows)
    for row in measured_rows:
        if row["goal_gib"] and row["allocated_gib"]:
            is_met = not row["oom"] and row["allocated_gib"] <= row["goal_gib"]
            yield f"goal {row['goal_gib']} GiB allocated, {described(row)}: {'met' if is_met else 'MISSED'}"
        if row["cap_gib"] and not row["oom"] and row["nvml_gib"]:
            kept = "trains" if row["nvml_gib"] <= row["cap_gib"] else "TOOK MORE"
            yield f"within {row['cap_gib']} GiB in all, {described(row)}: {kept}, NVML shows {row['nvml_gib']:.2f}"
    if skipped:
        yield f"{len(skipped)} not measured:"
        yield from (f"  {short(row)}" for row in skipped)


def _errors(measured_rows: Rows) -> Iterator[str]:
    known = [compare_row(row) for row in measured_rows if row["allocated_gib"] is not None and not row["oom"]]
    of_total = [one.total_error for one in known]
    for name, errors in (("allocated", [one.allocated_error for one in known]), ("in all", of_total)):
        if found := mean_and_worst(errors):
            yield f"formula, {name}: mean error {found[0]:.2%}, worst {found[1]:.2%} of {len(known)} configurations"
