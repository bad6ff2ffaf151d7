"""Reads the query log from wherever it is, and curates it: the part of stage 1 that handles logged rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tool_aware.config.environment import Environment, other_database_names
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, say
from tool_aware.database import DatabaseUnreachable
from tool_aware.dataset.curation import Curated, counts_in_words, curate
from tool_aware.dataset.log_files import read_log_file
from tool_aware.dataset.log_findings import LogFindings
from tool_aware.dataset.query_log import read_query_log
from tool_aware.dataset.redaction import Redactor
from tool_aware.dataset.session_turns import SessionTurns
from tool_aware.stage_times import stage

_NAMES_SHOWN = 10
_REMEDIES = {
    "success_unknown": "rows without a value there are kept with --set database.filters.only_success=false",
    "quality_unknown": "rows without a value there are kept with --set database.filters.min_result_quality=null",
    "low_quality": "--set database.filters.min_result_quality=N asks for less",
    "time_unknown": "rows without a time are kept with --set database.filters.since=null",
    "too_old": "--set database.filters.since=DATE names an earlier day",
}


@stage("reading the log")
def read_log(
    config: Config,
    environment: Environment,
    fallbacks: Fallbacks,
    export: Path | None = None,
    encoding: str | None = None,
    *,
    is_required: bool = False,
) -> Curated | None:
    """Read and curate logged rows of an export or of the database; None without a query log, and why in one line."""
    database, per_session = config.database, config.dataset.max_per_session
    findings = LogFindings(str(export) if export else f"{database.schema_name}.{database.table}")
    turns = SessionTurns(config.conversation) if config.conversation.max_turns else None
    if export:
        records = read_log_file(export, database, findings, encoding, turns)
    elif config.dataset.use_query_log:
        records = read_query_log(database, environment, findings, turns)
    else:
        say("skipped: dataset.use_query_log is false")
        return None
    try:
        curated = curate(records, config.toolbox, database.filters, max_per_session=per_session, turns=turns)
    except DatabaseUnreachable as error:
        if is_required or environment.names_a_database:  # there is a log: never go on without it
            raise
        others = "".join(f"; {name} is set but not read" for name in other_database_names())
        fallbacks.add(f"no query log: {error.where}: {error.what}{others}; continuing with synthesis alone")
        return None
    rejected = {**findings.rejected}
    for reason, count in curated.rejected.items():
        rejected[reason] = rejected.get(reason, 0) + count
    curated = replace(curated, read=findings.read, rejected=rejected)
    if turns is not None and not turns and curated.rows:
        findings.notes.append(f"no row of {findings.name} has both a session and a time: none shows earlier turns")
    for message in findings.formats:
        say(message)
    for message in [*findings.messages(database.filters), *_messages(curated, config)]:
        fallbacks.add(message)
    number = sum(bool(row.metadata.get("history")) for row in curated.rows)
    with_history = f", {number} of them with earlier turns" if number else ""
    say(f"{curated.read} logged queries read, {len(curated.rows)} kept{with_history}")
    if curated.rejected:
        say(f"left out: {counts_in_words(curated.rejected)}")
    if curated.redacted:
        say(f"replaced by placeholders: {counts_in_words(curated.redacted)}")
    return curated


def _messages(curated: Curated, config: Config) -> list[str]:
    """Return what the user should know of a log of which much, or all, is left out."""
    found = []
    if curated.unknown_tools:
        names = ", ".join(
            f"{Redactor().redact(name)!a} {count}" for name, count in curated.unknown_tools.most_common(_NAMES_SHOWN)
        )
        more = len(curated.unknown_tools) - _NAMES_SHOWN
        found.append(
            f"logged tools that config.yaml does not have: {names}{f' and {more} more' if more > 0 else ''}; name what "
            f"they are called now in database.tool_names, for example {{web: {config.toolbox.names[0]}}}"
        )
    if not curated.rows:
        why = f": {counts_in_words(curated.rejected)}" if curated.rejected else ""
        most = max(curated.rejected, key=lambda reason: curated.rejected[reason], default="")
        remedy = f"; {_REMEDIES[most]}" if most in _REMEDIES else ""
        found.append(f"no logged row is used: {curated.read} were read{why}{remedy}")
    return found
