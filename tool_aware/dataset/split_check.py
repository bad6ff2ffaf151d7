"""Splits the rows, with the checks that a split has to pass before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, GateFailed, UserError, heading, say
from tool_aware.dataset.earlier_splits import EarlierSplits
from tool_aware.dataset.splitting import Split, split_rows
from tool_aware.rows import SPLITS, Row
from tool_aware.stage_times import stage


@stage("splitting and checking")
def split_and_check(
    rows: Sequence[Row], config: Config, earlier: EarlierSplits | None, fallbacks: Fallbacks, *, source: Path | None
) -> Split:
    """Split the rows, print what became of them, and check the splits; `source` and errors as in `check_split`."""
    heading("Splitting")
    split = split_rows(rows, config.dataset.splits, config.dataset.seed, earlier)
    if earlier:
        kept, dropped = sum(split.kept_in_place.values()), split.dropped_as_trained_on
        say(f"{kept} rows stay in their split of {earlier.folder}; {dropped} dropped that its train.json has")
    thin_tools = check_split(split, config, source=source)
    say(f"no held-out row is nearer than {split.highest_similarity:.3f} to a training row")
    for message in thin_tools:
        fallbacks.add(message)
    return split


def check_split(split: Split, config: Config, *, source: Path | None = None) -> list[str]:
    """Return a warning for each tool that has rows, but not in every split.

    `source` is the file that the rows were imported from, if they were. Raises GateFailed if a held-out row is too
    close to a training row, and UserError if a split is empty or a tool's examples do not reach every split.
    """
    _refuse_leaks(split)
    _refuse_empty_splits(split, config, source)
    return list(_tools_missing_from_a_split(split, config))


def _refuse_leaks(split: Split) -> None:
    if split.leaks:
        worst = max(split.leaks, key=lambda leak: leak.similarity)
        raise GateFailed(
            f"{len(split.leaks)} held-out rows are too close to a training row; "
            f"the closest, at {worst.similarity:.2f}: {worst.query!r} and {worst.nearest_query!r}",
            fix="another dataset.seed, or report it: this should not happen",
        )


def _refuse_empty_splits(split: Split, config: Config, source: Path | None) -> None:
    empty = [name for name in SPLITS if not split.rows[name]]
    if empty:
        number = sum(map(len, split.rows.values()))
        by_hand = "import more rows, or write train.json, val.json and test.json by hand and --check them"
        raise UserError(
            f"{number} distinct rows leave none for {' and '.join(empty)} at dataset.splits {config.dataset.splits}",
            where=str(source or "dataset"),
            fix=by_hand if source else "raise dataset.synthetic_per_tool",
        )


def _tools_missing_from_a_split(split: Split, config: Config) -> Iterator[str]:
    """Yield a warning for each tool that a split lacks. Raises UserError if its rows come from its examples alone."""
    for tool in config.toolbox.names:
        part = {name: [row for row in split.rows[name] if row.tool == tool] for name in SPLITS}
        rows = [row for name in SPLITS for row in part[name]]
        absent = ", ".join(name for name in SPLITS if not part[name])
        if not absent or not rows:
            continue
        templates = {str(row.metadata.get("template")) for row in rows}
        from_examples = all(template.startswith(f"example-{tool}-") for template in templates)
        if from_examples and not config.dataset.splits_from:
            raise UserError(
                f"no row in {absent}: its {len(rows)} rows come from {len(templates)} of its `examples`",
                where=f"tools: {tool}",
                fix="raise dataset.synthetic_per_tool, or give it examples that differ more, better ten of them",
            )
        yield f"{tool} has no row in {absent}; more examples or rows would change that"
