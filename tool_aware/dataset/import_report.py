"""Collects the rows of an import for the splits, and says what was taken over, changed and left out."""

from __future__ import annotations

from pathlib import Path

from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError, say
from tool_aware.dataset.assembly import Collected
from tool_aware.dataset.curation import counts_in_words
from tool_aware.dataset.deduplication import deduplicate
from tool_aware.dataset.importing import Imported, config_with_tools, import_file
from tool_aware.paths import IMPORTED_CONFIG_NAME

_NAMES_SHOWN = 5
_REASONS_SHOWN = 20


def collect_import(
    source: Path,
    config: Config,
    config_path: Path,
    fallbacks: Fallbacks,
    *,
    answers: Path | None = None,
    encoding: str | None = None,
    split: str | None = None,
    token: str | None = None,
) -> Collected:
    """Convert another project's data. Tools that the config lacks go into a config of their own beside the data.

    Raises UserError if nothing could be taken over, with the reasons.
    """
    imported = import_file(
        source,
        config.toolbox,
        answers,
        encoding=encoding,
        split=split,
        token=token,
        conversation=config.conversation,
    )
    unique = deduplicate(imported.rows)
    if not unique.rows:
        raise UserError(
            "\n".join(["no row could be taken over:", *reasons_in_words(imported)]),
            where=str(source),
            fix=_fix(imported),
        )
    say(f"{len(imported.rows)} rows taken over, {sum(imported.skipped.values())} left out")
    for line in reasons_in_words(imported):
        say(line)
    for line in _conversations_in_words(imported):
        say(line)
    _report_changes(imported, config, fallbacks)
    redacted = dict(imported.redactor.counts)
    if redacted:
        say(f"replaced by placeholders: {counts_in_words(redacted)}")
    more_files = {}
    if imported.foreign_tools:
        target = config.dataset.dir / IMPORTED_CONFIG_NAME
        more_files[target.name] = config_with_tools(config, config_path, imported.foreign_tools, target.parent)
        number = len(imported.foreign_tools)
        fallbacks.add(f"{number} tools are not in {config_path}: run the next stages with --config {target}")
    skipped = dict(imported.skipped.most_common())
    return Collected(
        unique.rows, unique.exact, unique.near, log_rejected=skipped, redacted=redacted, more_files=more_files
    )


def reasons_in_words(imported: Imported) -> list[str]:
    """Return a line for each reason with its count, and the first items that it left out."""
    lines = []
    for reason, number in imported.skipped.most_common(_REASONS_SHOWN):
        lines.append(f"  {reason}: {number}")
        lines += [f"    {named}" for named in imported.named.get(reason, ())]
    if len(imported.skipped) > _REASONS_SHOWN:
        lines.append(f"  ... and {len(imported.skipped) - _REASONS_SHOWN} more reasons")
    return lines


def _conversations_in_words(imported: Imported) -> list[str]:
    """Return what became of conversations of several turns, in lines; none if there are no such."""
    with_history = sum(bool(row.history) for row in imported.rows)
    lines = []
    if with_history or imported.further_rows:
        more = f"{imported.further_rows} are further calls of a conversation, which is in one split"
        lines.append(f"{with_history} rows have earlier turns of their conversation; {more}")
    if imported.turns_not_shown:
        lines.append(f"{imported.turns_not_shown} turns left out by conversation.max_turns or max_tokens")
    if imported.further_left_out:
        counts = counts_in_words(imported.further_left_out)
        lines.append(f"answers left out of conversations that have rows: {counts}")
    return lines


def _fix(imported: Imported) -> str:
    if any("a comma follows the value" in named for named in imported.named.get("is not JSON", ())):
        return "JSON Lines have no comma between lines; remove them: sed -i 's/,[[:space:]]*$//' FILE"
    return "see docs/FORMATS.md for the forms that are read"


def _report_changes(imported: Imported, config: Config, fallbacks: Fallbacks) -> None:
    """Report which tools have other names or other definitions than in the source."""
    if imported.renamed:
        shown = ", ".join(f"{theirs} -> {ours}" for theirs, ours in list(imported.renamed.items())[:_NAMES_SHOWN])
        number = len(imported.renamed)
        fallbacks.add(
            f"{number} tools have other names than in the source, with _ for what names may not have: {shown}"
        )
    own = sorted(name for name in imported.redefined if name in config.toolbox)
    if own:
        fallbacks.add(f"rows define tools of the config in another way; the config's definition stays: {_some(own)}")
    foreign = sorted(imported.redefined - set(own))
    if foreign:
        what = f"{len(foreign)} tools are defined in several ways; the first definition of each is kept"
        fallbacks.add(f"{what} in {IMPORTED_CONFIG_NAME}, each row shows its own: {_some(foreign)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
