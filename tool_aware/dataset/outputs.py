"""The files of the stage: rendered in memory first, then written one after the other, so that they match."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.console import UserError, table
from tool_aware.dataset.assembly import Collected
from tool_aware.dataset.card import build_card
from tool_aware.dataset.dataset_report import ReportData, build_report
from tool_aware.dataset.deduplication import NEAR_DUPLICATE
from tool_aware.dataset.earlier_splits import EarlierSplits
from tool_aware.dataset.previews import preview, preview_rows
from tool_aware.dataset.splitting import Split
from tool_aware.files import sha256_of, write_text
from tool_aware.manifest import read_manifest
from tool_aware.paths import (
    CARD_NAME,
    DATASET_REPORT_NAME,
    SAMPLE_NAME,
    SPLIT_REPORT_NAME,
    TO_LABEL_NAME,
    split_file,
    split_name,
)
from tool_aware.rows import SPLITS, Row
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Result:
    """The splits and all counts of a run."""

    split: Split
    seed: int
    collected: Collected
    earlier: EarlierSplits | None = None
    """The data set whose splits were kept, if any."""

    def counts(self) -> dict[str, Any]:
        """Return the numbers for the manifest and the card."""
        rows = [row for name in SPLITS for row in self.split.rows[name]]
        by_key = {
            key: dict(Counter(str(row.metadata.get(key)) for row in rows).most_common())
            for key in ("tool", "source", "slice", "language")
        }
        return {
            "rows": {name: len(self.split.rows[name]) for name in SPLITS},
            **by_key,
            "log_read": self.collected.log_read,
            "log_rejected": dict(self.collected.log_rejected),
            "redacted": dict(self.collected.redacted),
            "exact_duplicates": self.collected.exact_duplicates,
            "near_duplicates": self.collected.near_duplicates,
            "stopped_at_gates": dict(self.collected.stopped_at_gates),
            "dropped_after_check": self.split.dropped_after_check,
            "highest_similarity": self.split.highest_similarity,
        }


def render(result: Result, tools: Toolbox, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str]:
    """Return the content of every file, by name."""
    parts = result.split.rows
    rows = [row for name in SPLITS for row in parts[name]]
    files = {split_name(name): _json([asdict(row) for row in parts[name]]) for name in SPLITS}
    files[SAMPLE_NAME] = _json([preview(row, tokenizer) for row in preview_rows(rows)])
    files[SPLIT_REPORT_NAME] = _json(split_report(result))
    dropped = {
        **result.collected.log_rejected,
        "exact_duplicates": result.collected.exact_duplicates,
        "near_duplicates": result.collected.near_duplicates,
        "held-out_rows_too_close_to_train": result.split.dropped_after_check,
        **{f"paraphrase gate {gate}": count for gate, count in result.collected.stopped_at_gates.items()},
    }
    report = ReportData(
        parts,
        result.split.nearest,
        {name: count for name, count in dropped.items() if count},
        result.collected.redacted,
        result.seed,
        result.split.is_exhaustive,
    )
    files[DATASET_REPORT_NAME] = build_report(report, tokenizer)
    files[CARD_NAME] = build_card(parts, tools, result.counts(), result.seed)
    if result.collected.to_label:
        files[TO_LABEL_NAME] = "".join(
            json.dumps(item, ensure_ascii=False) + "\n" for item in result.collected.to_label
        )
    return files | dict(result.collected.more_files)


def split_report(result: Result) -> dict[str, Any]:
    """Return what the splits guarantee, and for each held-out row its similarity to the nearest training row."""
    by_slice: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    for name in SPLITS:
        for row in result.split.rows[name]:
            by_slice[str(row.metadata.get("slice"))][name] += 1
    return {
        "measure": "cosine of the sets of character trigrams of normalised queries",
        "threshold": NEAR_DUPLICATE,
        "every_pair_compared": result.split.is_exhaustive,
        "highest_similarity": result.split.highest_similarity,
        "pairs_at_or_above_threshold": len(result.split.leaks),
        "exact_duplicates_dropped": result.collected.exact_duplicates,
        "near_duplicates_dropped": result.collected.near_duplicates,
        "held_out_rows_dropped_after_check": result.split.dropped_after_check,
        "rows_by_slice": dict(sorted(by_slice.items())),
        "held_out": [asdict(leak) for leak in sorted(result.split.nearest, key=lambda leak: -leak.similarity)],
    }


def summary(parts: Mapping[str, Sequence[Row]]) -> str:
    """Return a table of the rows by tool, source and split."""
    rows = [row for part in parts.values() for row in part]
    lines: list[tuple[object, ...]] = []
    for key, prefix in (("tool", ""), ("source", "from ")):
        for value in sorted({str(row.metadata[key]) for row in rows}):
            numbers = [sum(row.metadata[key] == value for row in parts[name]) for name in SPLITS]
            lines.append((prefix + value, *numbers, sum(numbers)))
    lines.append(("all", *(len(parts[name]) for name in SPLITS), len(rows)))
    return table(("rows", *SPLITS, "all"), lines)


def entry_of_earlier_splits(split: Split, earlier: EarlierSplits) -> dict[str, Any]:
    """Return the manifest's entry on the splits that were kept: whose, and how many rows."""
    return {
        "folder": str(earlier.folder),
        "sha256": dict(earlier.sha256),
        "rows": dict(split.kept_in_place),
        "dropped": split.dropped_as_trained_on,
    }


def refuse_foreign_files(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError if the folder holds data that this script did not write, or that was edited since."""
    if overwrite:
        return
    written = (read_manifest(folder) or {}).get("outputs", {})
    paths = [split_file(folder, name) for name in SPLITS]
    foreign = [path.name for path in paths if path.is_file() and written.get(path.name) != sha256_of(path)]
    if foreign:
        raise UserError(
            f"{', '.join(foreign)}: written by someone else, or edited since",
            where=str(folder),
            fix="move them away, choose another --set dataset.dir=DIR, or replace them with --overwrite",
        )


def write(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write all files and return their paths; remove an old list of rows to label if there is no new one."""
    if TO_LABEL_NAME not in files:
        (folder / TO_LABEL_NAME).unlink(missing_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
