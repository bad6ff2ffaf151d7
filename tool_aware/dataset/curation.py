"""Turns logged choices into rows to train on.

A logged tool is what the old router chose, not a label. A record is kept if the log marks it as successful, no record
of the same query names another tool, its text is clean, and its session is not over-represented. Personal data is
replaced. Every rejected record is counted by its reason.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tool_aware.config.data_sections import FiltersSection
from tool_aware.dataset.deduplication import NEAR_DUPLICATE
from tool_aware.dataset.log_records import LogRecord, reason_to_leave_out
from tool_aware.dataset.quarantine import reason_to_quarantine
from tool_aware.dataset.redaction import Redactor
from tool_aware.dataset.session_turns import Histories, SessionTurns
from tool_aware.dataset.similarity import Compared, GramIndex
from tool_aware.prompt import Turn, render_instruction, render_response
from tool_aware.rows import Row, identity_of_question
from tool_aware.text import normalised, one_line_if_short, shortened
from tool_aware.tools import Tool, Toolbox, ToolCall

_MAY_BE_UNKNOWN = ("success", "quality", "timestamp")
_NAMES_COUNTED = 1_000
TEXT_PARAMETERS = ("query", "message", "text", "question", "prompt", "input")

_CODE_BLOCK = re.compile(r"```(?:python|py)?\s*\n(?P<code>.+?)```", re.DOTALL)
_EXPRESSION = re.compile(r"(?<![\w.])[\d(][\d\s.()]*(?:(?:\*\*|[-+*/%])[\d.()\s]*\d[\d.()\s]*)+")
_REASONS = (
    'The logged request "{evidence}" was answered well by {tool}.',
    '{tool} answered "{evidence}" well before.',
    'Requests such as "{evidence}" went well with {tool} in the log.',
    'For "{evidence}" the log shows a good result of {tool}.',
)


@dataclass(frozen=True)
class Curated:
    """Rows from the log, reasons and counts of what was left out, and the conflicts for a person to label."""

    rows: list[Row]
    read: int
    rejected: Mapping[str, int]
    redacted: Mapping[str, int]
    to_label: list[dict[str, Any]] = field(default_factory=list)
    unknown_tools: Counter[str] = field(default_factory=Counter)
    """Logged names that the config has no tool for; of names beyond the first 1,000 only the rows are counted."""


@dataclass(frozen=True)
class _Candidate:
    query: str
    tool: str
    session: str | None
    history: tuple[Turn, ...] = ()

    @property
    def compared(self) -> str | Compared:
        """Return what is compared with others, as `similarity.compared` does of a row."""
        whole = "\n".join([*(turn.query for turn in self.history), self.query])
        return Compared(whole, self.query) if self.history else self.query


def curate(
    records: Iterable[LogRecord],
    tools: Toolbox,
    filters: FiltersSection,
    *,
    max_per_session: int,
    turns: SessionTurns | None = None,
) -> Curated:
    """Filter, redact, resolve conflicts, cap, and turn what is left into rows. Memory grows with distinct queries.

    With `turns` rows show what came before them in their session, and are compared as conversations.
    """
    redactor = Redactor()
    histories = Histories(turns, tools, redactor) if turns is not None else None
    rejected: Counter[str] = Counter()
    unknown_tools: Counter[str] = Counter()
    read = 0
    candidates: dict[str, list[_Candidate]] = defaultdict(list)
    per_session: Counter[str] = Counter()
    for record in records:
        read += 1
        query = one_line_if_short(record.query or "")
        reason = _reason_to_reject(record, query, tools, filters)
        if reason or record.tool is None:
            rejected[reason or "unknown_tool"] += 1
            if reason == "unknown_tool" and (record.tool in unknown_tools or len(unknown_tools) < _NAMES_COUNTED):
                unknown_tools[record.tool or ""] += 1
            continue
        redacted, history = histories.of(record.turn, query) if histories else (redactor.redact(query), ())
        candidate = _Candidate(redacted, record.tool, record.session, history)
        identity = identity_of_question(redacted, history)
        same = candidates[identity]
        if any(other.tool == candidate.tool for other in same):
            rejected["duplicate"] += 1
        elif record.session and not same and per_session[record.session] >= max_per_session:
            rejected["session_cap"] += 1
            del candidates[identity]
        else:
            if record.session and not same:
                per_session[record.session] += 1
            same.append(candidate)
    agreed, to_label = _without_conflicts(candidates)
    rejected["conflicting_tools"] += sum(len(item["tools"]) for item in to_label)
    distinct = _one_per_cluster(agreed)
    rejected["near_duplicate"] += len(agreed) - len(distinct)
    rows = []
    for candidate in distinct:
        row = _row(candidate, tools)
        if row is None:
            rejected["parameters_not_derivable"] += 1
            to_label.append(_to_label(candidate, [candidate.tool], "parameters_not_derivable"))
        else:
            rows.append(row)
    counts = {name: count for name, count in rejected.items() if count}
    return Curated(rows, read, counts, dict(redactor.counts), to_label, unknown_tools)


def _reason_to_reject(record: LogRecord, query: str, tools: Toolbox, filters: FiltersSection) -> str | None:
    """Return why a record is not used. The filters are applied once more, to what is known of it."""
    if record.tool not in tools:
        return "unknown_tool"
    reason = reason_to_leave_out(record, filters, absent=_MAY_BE_UNKNOWN)
    if reason:
        return reason
    reason = reason_to_quarantine(query)
    if reason:
        return f"quarantine_{reason}"
    return None if normalised(query) else "no_words"


def _without_conflicts(
    candidates: Mapping[str, Sequence[_Candidate]],
) -> tuple[list[_Candidate], list[dict[str, Any]]]:
    agreed, conflicts = [], []
    for same in candidates.values():
        if len(same) == 1:
            agreed.append(same[0])
        else:
            tools = sorted({candidate.tool for candidate in same})
            conflicts.append(_to_label(same[0], tools, "the log disagrees with itself"))
    return agreed, conflicts


def _to_label(candidate: _Candidate, tools: list[str], why: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"query": candidate.query, "tools": tools, "why": why}
    return asked | {"history": list(map(asdict, candidate.history))} if candidate.history else asked


def _one_per_cluster(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Keep the first (newest) of each set of nearly equal queries."""
    if not candidates:
        return []
    dropped: set[int] = set()
    for pair in GramIndex([candidate.compared for candidate in candidates]).pairs(NEAR_DUPLICATE):
        if pair.first not in dropped:
            dropped.add(pair.second)
    return [candidate for number, candidate in enumerate(candidates) if number not in dropped]


def _row(candidate: _Candidate, tools: Toolbox) -> Row | None:
    parameters = derive_parameters(tools[candidate.tool], candidate.query)
    if parameters is None:
        return None
    evidence = shortened(candidate.query)
    pattern = _REASONS[hashlib.sha256(candidate.query.encode()).digest()[0] % len(_REASONS)]
    call = ToolCall(candidate.tool, parameters, pattern.format(evidence=evidence, tool=candidate.tool))
    if tools.problems(call):
        return None
    details: dict[str, Any] = {"source": "query_log", "tool": candidate.tool, "slice": "logged", "language": "unknown"}
    if candidate.session:
        # The id itself may identify a person; a digest keeps one session together as well.
        details["group"] = (
            f"session-{hashlib.sha256(candidate.session.encode(errors='surrogatepass')).hexdigest()[:12]}"
        )
    row = Row(render_instruction(candidate.query, tools, candidate.history), render_response(call), details)
    if candidate.history:  # what "and in Germany?" was completed to, the log does not say
        details["choice_only"] = True
        details["history"] = list(map(asdict, row.history))
    return row


def derive_parameters(tool: Tool, query: str) -> dict[str, Any] | None:
    """Return a logged call's parameters, derived by rule; None where they would be invented.

    1. No required parameter: none are sent.
    2. One required text parameter named like a query or a message: the logged text.
    3. A required `code`: the fenced block in the text, or `print(...)` of the one arithmetic expression in it.
    """
    required = [name for name in tool.properties if name in tool.required]
    if not required:
        return {}
    if len(required) > 1:
        return None
    name = required[0]
    if name == "code":
        code = code_in(query)
        return {name: code} if code else None
    if name in TEXT_PARAMETERS and tool.properties[name].get("type") == "string":
        return {name: query}
    return None


def code_in(query: str) -> str | None:
    """Return the program in a text: a fenced block, or its only expression printed; None if there is none."""
    block = _CODE_BLOCK.search(query)
    if block:
        return block["code"].strip()
    expressions = [match[0].strip() for match in _EXPRESSION.finditer(query)]
    if len(expressions) != 1:
        return None
    try:
        with warnings.catch_warnings():  # 2(3) is a call of a number
            warnings.simplefilter("error", SyntaxWarning)
            compile(expressions[0], "<query>", "eval")
    except (SyntaxError, SyntaxWarning, ValueError, OverflowError, MemoryError, RecursionError):
        return None
    return f"print({expressions[0]})"


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Return reasons and counts as text, the most frequent first."""
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(counts.items(), key=lambda x: -x[1]))
