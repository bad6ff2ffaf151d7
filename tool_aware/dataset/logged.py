"""Reads the query log from wherever it is, and curates it: the part of stage 1 that handles logged rows."""

from __future__ import annotations

from pathlib import Path

from tool_aware.config.environment import Environment, other_database_names
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, say
from tool_aware.database import DatabaseUnreachable
from tool_aware.dataset.curation import Curated, counts_in_words, curate
from tool_aware.dataset.log_files import read_log_file
from tool_aware.dataset.query_log import read_query_log


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
    if export:
        records = read_log_file(export, database)
    elif config.dataset.use_query_log:
        records = read_query_log(database, environment)
    else:
        say("skipped: dataset.use_query_log is false")
        return None
    try:
        curated = curate(records, config.toolbox, database.filters, max_per_session=per_session)
    except DatabaseUnreachable as error:
        if is_required or environment.names_a_database:  # there is a log: never go on without it
            raise
        others = "".join(f"; {name} is set but not read" for name in other_database_names())
        fallbacks.add(f"no query log: {error.where}: {error.what}{others}; continuing with synthesis alone")
        return None
    say(f"{curated.read} logged queries read, {len(curated.rows)} kept")
    if curated.rejected:
        say(f"left out: {counts_in_words(curated.rejected)}")
    if curated.redacted:
        say(f"replaced by placeholders: {counts_in_words(curated.redacted)}")
    return curated
