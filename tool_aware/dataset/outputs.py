"""The files of the stage: written beside the old ones, then replaced all together; files of the user stay."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.settings import Config, load_config
from tool_aware.console import Fallbacks, UserError, table
from tool_aware.dataset.assembly import Collected
from tool_aware.dataset.card import build_card
from tool_aware.dataset.dataset_report import ReportData, build_report
from tool_aware.dataset.deduplication import NEAR_DUPLICATE
from tool_aware.dataset.earlier_splits import EarlierSplits
from tool_aware.dataset.previews import preview, preview_rows
from tool_aware.dataset.splitting import Split
from tool_aware.files import indented_json, sha256_of
from tool_aware.manifest import read_manifest, write_manifest
from tool_aware.paths import (
    CARD_NAME,
    DATASET_REPORT_NAME,
    IMPORTED_CONFIG_NAME,
    SAMPLE_NAME,
    SPLIT_REPORT_NAME,
    TO_LABEL_NAME,
    split_name,
)
from tool_aware.prompt import render_instruction
from tool_aware.rows import SPLITS, Row
from tool_aware.stage_times import stage
from tool_aware.tools import Toolbox
from tool_aware.transaction import FileSet

STAGE = "prepare_dataset"
OUTPUT_NAMES = (
    *map(split_name, SPLITS),
    *(SAMPLE_NAME, SPLIT_REPORT_NAME, DATASET_REPORT_NAME, CARD_NAME, TO_LABEL_NAME, IMPORTED_CONFIG_NAME),
)
_ANSWER_BYTES = 1_000  # query, answer and metadata of a row, rounded up
_OTHER_BYTES = 100_000  # report, samples, manifest

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
            key: dict(Counter([str(row.metadata.get(key)) for row in rows]).most_common())
            for key in ("tool", "source", "slice", "language")
        }
        with_history = sum([bool(row.history) for row in rows])
        return {
            "rows": {name: len(self.split.rows[name]) for name in SPLITS},
            **by_key,
            **({"with_history": with_history} if with_history else {}),
            "log_read": self.collected.log_read,
            "log_rejected": dict(self.collected.log_rejected),
            "redacted": dict(self.collected.redacted),
            "exact_duplicates": self.collected.exact_duplicates,
            "near_duplicates": self.collected.near_duplicates,
            "stopped_at_gates": dict(self.collected.stopped_at_gates),
            "dropped_after_check": self.split.dropped_after_check,
            "highest_similarity": self.split.highest_similarity,
        }


@dataclass(frozen=True)
class RowsFile:
    """The text of a file of rows, written row by row: as a whole it would take more memory than the rows."""

    rows: Sequence[Row]

    def __iter__(self) -> Iterator[str]:
        """Yield the parts of what `json.dumps(rows, indent=2)` writes, several times as fast."""
        for number, row in enumerate(self.rows):
            item = {"instruction": row.instruction, "response": row.response, "metadata": dict(row.metadata)}
            yield f"{',' if number else '['}\n  {indented_json(item, '  ')}"
        yield "\n]\n" if self.rows else "[]\n"


@stage("rendering")
def render(result: Result, tools: Toolbox, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str]:
    """Return the content of every file but those of the rows, by name."""
    parts = result.split.rows
    rows = [row for name in SPLITS for row in parts[name]]
    files: dict[str, str] = {}
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


def refuse_foreign_files(folder: Path, *, overwrite: bool, is_import: bool = False) -> None:
    """Raise UserError if the folder is another stage's, or holds files that are not as this one wrote them.

    A dataset card of somebody else is kept instead (`write`), and with `overwrite` all others are, under other names.
    """
    stage = (read_manifest(folder) or {}).get("stage")
    if stage not in (None, STAGE):
        fix = "choose another folder: --set dataset.dir=DIR"
        raise UserError(f"holds a finished run of the stage {stage}", where=str(folder), fix=fix)
    ours, others = own_files(folder), {CARD_NAME} if is_import else {CARD_NAME, IMPORTED_CONFIG_NAME}
    foreign = [
        name for name in OUTPUT_NAMES if name not in others and name not in ours and os.path.lexists(folder / name)
    ]
    if foreign and not overwrite:
        raise UserError(
            f"{', '.join(foreign)}: written by someone else, or edited since",
            where=str(folder),
            fix="move them away, choose another --set dataset.dir=DIR, or let them be renamed with --overwrite",
        )


def own_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of the files that this stage wrote there and nobody has edited since, by name."""
    manifest = read_manifest(folder) or {}
    listed = manifest["outputs"] if manifest.get("stage") == STAGE else {}
    return {
        name: sha256
        for name, sha256 in listed.items()
        if name in OUTPUT_NAMES and (folder / name).is_file() and sha256_of(folder / name) == sha256
    }


def estimated_bytes(config: Config, sources: Iterable[Path], *, is_import: bool) -> int:
    """Return about how much will be written: rows as long as the prompt, or as many as the source files hold."""
    made = 0 if is_import else sum([*config.synthetic_by_tool.values(), *config.synthetic_kinds.values()])
    row_bytes = len(render_instruction("", config.toolbox).encode()) + _ANSWER_BYTES
    return _OTHER_BYTES + made * row_bytes + sum(source.stat().st_size for source in sources if source.is_file())


@stage("writing")
def write(
    folder: Path,
    contents: Mapping[str, str],
    rows: Mapping[str, Sequence[Row]],
    fallbacks: Fallbacks,
    *,
    config_path: Path,
    overrides: Sequence[str],
    config: Config,
    **details: Any,
) -> None:
    """Replace the files of this stage by new ones, all together and with their manifest. To be used inside `locked`.

    Files that a manifest of this stage lists, as they were written, are replaced, or deleted if there is no new one.
    Of what else has their names, a dataset card stays and the others get another name.
    """
    ours = own_files(folder)
    parts: dict[str, Iterable[str]] = {name: [text] for name, text in contents.items()}
    parts |= {split_name(name): RowsFile(part) for name, part in rows.items()}
    foreign = [name for name in parts if name not in ours and os.path.lexists(folder / name)]
    if CARD_NAME in foreign:
        del parts[CARD_NAME]
        foreign.remove(CARD_NAME)
        what = "is not this stage's, or was edited: it stays, and no dataset card is written"
        fallbacks.add(f"{folder / CARD_NAME} {what}")
    kept_as = {name: _free_name(folder, name) for name in foreign}
    for name, other in kept_as.items():
        fallbacks.add(f"{folder / name} is not this stage's, or was edited: it is now {other}")
    outdated = ours.keys() - parts.keys()
    in_use = {name for name in outdated if (folder / name).samefile(config_path)}
    files = FileSet(folder)
    try:
        hashes = {name: ours[name] for name in in_use}
        hashes |= {name: _written(files.path(name), texts) for name, texts in parts.items()}
        if IMPORTED_CONFIG_NAME in contents:  # it has all tools of the data, which training compares with
            config = _imported_config(folder, contents[IMPORTED_CONFIG_NAME], overrides)
        settings = config.as_dict()
        write_manifest(files.new, stage=STAGE, config=settings, outputs=hashes, fallbacks=fallbacks, **details)
        files.commit(outdated - in_use, kept_as)
    finally:
        files.discard()


def _written(path: Path, texts: Iterable[str]) -> str:
    """Write the texts one after the other; return the sha256 of the file."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for text in texts:
            data = text.encode("utf-8")
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _free_name(folder: Path, name: str) -> str:
    """Return a name that nothing in the folder has: train.json -> train.before-1.json."""
    stem, suffix = Path(name).stem, Path(name).suffix
    names = (f"{stem}.before-{number}{suffix}" for number in itertools.count(1))
    return next(other for other in names if not os.path.lexists(folder / other))


def _imported_config(folder: Path, text: str, overrides: Sequence[str]) -> Config:
    """Return the config that the text will be once it is in the folder; it extends another by a relative path."""
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return load_config(Path(file.name), overrides)


def _json(value: object) -> str:
    return indented_json(value) + "\n"
