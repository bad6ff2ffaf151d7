"""Put rows of all sources together: logged ones first, then synthetic ones, without duplicates, as many as wanted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tool_aware.beside import Beside, usable_cores
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.dataset.curation import Curated
from tool_aware.dataset.deduplication import Deduplicated, deduplicate
from tool_aware.dataset.synthesis import double_requests, follow_ups
from tool_aware.dataset.synthesis.content import SEARCH_TOOLS, Content
from tool_aware.dataset.synthesis.dialogues import load_follow_ups
from tool_aware.dataset.synthesis.generator import Example, Generator, RowKey
from tool_aware.rows import Row
from tool_aware.stage_times import stage
from tool_aware.tools import Toolbox

SPARE = 1.08  # near-duplicates cost a few per cent, so that many more are made than kept
ROUNDS = 6  # further attempts to make up for duplicates, each with twice the spare

# What a row costs, in rows of a tool that takes no search text (0.11 ms of a 2.8 GHz core), and what a process does.
_SEARCH_COST, _BESIDE_COST = 2.5, 4.5
_STARTING_ROWS, _MOST_PROCESSES = 7_000, 4
_BESIDE = (follow_ups.SLICE, double_requests.SLICE)


@dataclass(frozen=True)
class Collected:
    """The rows to split, from all sources, and the counts of what was left out or replaced before."""

    rows: list[Row]
    exact_duplicates: int = 0
    near_duplicates: int = 0
    log_read: int = 0
    log_rejected: Mapping[str, int] = field(default_factory=dict)  # by reason; of an import as well
    redacted: Mapping[str, int] = field(default_factory=dict)  # by rule
    to_label: Sequence[Mapping[str, Any]] = ()
    stopped_at_gates: Mapping[str, int] = field(default_factory=dict)
    more_files: Mapping[str, str] = field(default_factory=dict)  # content by name: those that only an import writes
    inputs: Mapping[str, str] = field(default_factory=dict)  # sha256 by path of the files that rows were read from


@dataclass(frozen=True)
class Assembled:
    """The rows of the dataset, and how many duplicates were dropped on the way."""

    rows: list[Row]
    exact_duplicates: int
    near_duplicates: int
    shortfalls: Mapping[str, int]  # tool -> rows that the content could not supply


def with_log(collected: Collected, logged: Curated) -> Collected:
    """Return `collected` with the counts of the log that its logged rows are from."""
    rejected, redacted = logged.rejected, logged.redacted
    return replace(collected, log_read=logged.read, log_rejected=rejected, redacted=redacted, to_label=logged.to_label)


def check_tools(config: Config, content: Content) -> None:
    """Raise UserError if there are tools that no rows can be made for; takes no time."""
    if config.dataset.synthetic_per_tool:
        make_generator(config, config.toolbox, content).check_examples(config.toolbox.names)


@stage("synthesising")
def assemble(config: Config, content: Content, logged: Sequence[Row]) -> Assembled:
    """Make the synthetic rows that `config.dataset` asks for and join them to the logged ones."""
    wanted = config.synthetic_by_tool
    spare = SPARE
    for _ in range(ROUNDS):
        made = _synthesise(config, content, wanted, spare)
        unique = deduplicate([*logged, *made])
        rows, missing = _trimmed(unique, {**wanted, **config.synthetic_kinds})
        is_exhausted = len(made) < int(sum(wanted.values()) * spare) and spare > 2
        if not missing or is_exhausted:
            break
        spare = 1 + (spare - 1) * 3
    return Assembled(rows, unique.exact, unique.near, missing)


def _synthesise(config: Config, content: Content, wanted: Mapping[str, int], spare: float) -> list[Row]:
    """Make rows, many of them in several processes. Which are taken is decided here, so that they are the same."""
    counts = {tool: int(count * spare) + 1 for tool, count in wanted.items() if count}
    kinds = {kind: int(count * spare) + 1 for kind, count in config.synthetic_kinds.items() if count}
    generator, others = make_generator(config, config.toolbox, content), None
    own, *shares = _shares(counts, kinds)
    if shares:
        beside = [Beside(_made_ahead, config, content, *share) for share in shares]
        for ahead, found in [_made_ahead(config, content, *own), *(process.result() for process in beside)]:
            generator.take_from(ahead)
            others = others or found
    ambiguous = generator.ambiguous_rows(kinds["ambiguous"]) if "ambiguous" in kinds else []
    rows = [row for tool, count in counts.items() for row in generator.rows_for(tool, count)]
    return [*ambiguous, *rows, *(others or _beside_others(config, generator, kinds))]


Share = tuple[dict[str, int], dict[str, int]]  # rows of tools, and of kinds beside them, that one process makes


def _shares(counts: Mapping[str, int], kinds: Mapping[str, int]) -> list[Share]:
    """Divide the rows among processes so that they end at about the same time; the first is this one."""
    begun = [0.0, *[_STARTING_ROWS] * (min(usable_cores(), _MOST_PROCESSES) - 1)]
    shares: list[Share] = [({}, {}) for _ in begun]
    beside = {kind: count for kind, count in kinds.items() if kind in _BESIDE}
    costs = {tool: count * (_SEARCH_COST if tool in SEARCH_TOOLS else 1) for tool, count in counts.items()}
    costs[""] = sum(beside.values()) * _BESIDE_COST
    for tool, cost in sorted(costs.items(), key=lambda item: -item[1]):
        least = begun.index(min(begun))
        begun[least] += cost
        if tool:
            shares[least][0][tool] = counts[tool]
        else:
            shares[least][1].update(beside)
    return [shares[0], *(share for share in shares[1:] if any(share))]


def _made_ahead(
    config: Config, content: Content, counts: Mapping[str, int], kinds: Mapping[str, int]
) -> tuple[dict[RowKey, Row], list[Row]]:
    """Return rows of tools that will be needed, and all rows of these kinds; none that fail, which fail again."""
    generator = make_generator(config, config.toolbox, content)
    made = generator.recorded()
    with contextlib.suppress(UserError):
        for tool, count in counts.items():
            generator.rows_for(tool, count)
        return made, _beside_others(config, generator, kinds)
    return made, []


def _beside_others(config: Config, generator: Generator, kinds: Mapping[str, int]) -> list[Row]:
    """Make the rows with earlier turns and those with two requests. They come last, so that no other row makes way."""
    tools, seed = config.toolbox, config.dataset.seed
    rows: list[Row] = []
    if count := kinds.get(follow_ups.SLICE):
        maker = follow_ups.FollowUps(load_follow_ups(), generator, tools, seed=seed, limits=config.conversation)
        rows += maker.rows(count)
    if count := kinds.get(double_requests.SLICE):
        pairs = double_requests.TwoRequests(double_requests.load_two_requests(), generator, tools, seed=seed)
        rows += pairs.rows(count)
    return rows


def make_generator(config: Config, tools: Toolbox, content: Content) -> Generator:
    """Return the generator for a config: its seed, slices, tools and the tools' example queries."""
    slices = None if config.dataset.slices == "all" else config.dataset.slices
    examples = {
        tool.name: [Example(example.query, example.parameters, example.reasoning) for example in tool.examples]
        for tool in config.tools
    }
    return Generator(content, tools, seed=config.dataset.seed, slices=slices, examples=examples)


def _trimmed(unique: Deduplicated, wanted: Mapping[str, int]) -> tuple[list[Row], dict[str, int]]:
    """Keep all logged rows and the first wanted number of each synthetic kind; also return how many are missing."""
    left = Counter(wanted)
    rows = []
    for row in unique.rows:
        if row.metadata["source"] != "synthetic":
            rows.append(row)
            continue
        kind = _kind_of(row)
        if left[kind] > 0:
            left[kind] -= 1
            rows.append(row)
    return rows, {kind: count for kind, count in left.items() if count > 0}


def _kind_of(row: Row) -> str:
    """Return which number of `dataset` a synthetic row counts towards: that of a kind, or that of its tool."""
    slice_ = row.metadata["slice"]
    if slice_ in (follow_ups.SLICE, double_requests.SLICE):
        return slice_
    return "ambiguous" if row.metadata.get("acceptable_tools") else row.tool
