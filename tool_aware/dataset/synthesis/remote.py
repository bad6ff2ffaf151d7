"""Paraphrases of rows from an OpenAI-compatible endpoint; only what passes five gates is kept.

The gates, in order: format, schema, executable code, round trip (the model, asked as the agent would ask it, must
choose the same tool), near-duplicate. Every finished request is appended to a journal, so a stopped run continues.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tool_aware.chat_server import ChatServer, chat_reply
from tool_aware.config.environment import Environment
from tool_aware.console import UserError, warn
from tool_aware.dataset.deduplication import NEAR_DUPLICATE
from tool_aware.dataset.redaction import Redactor
from tool_aware.dataset.similarity import nearest
from tool_aware.dataset.synthesis.programs import problem_of_program
from tool_aware.files import checked_as
from tool_aware.json_values import unusable
from tool_aware.prompt import parse_response, render_instruction, render_response
from tool_aware.rows import Row, row_of
from tool_aware.text_files import json_lines, parse_json
from tool_aware.tools import Toolbox, ToolCall

GATES = ("format", "schema", "code", "round_trip", "near_duplicate")
PARAPHRASES_PER_REQUEST = 3
TIMEOUT_S = 60.0
RETRIES = 4
RETRY_PAUSE_S = 1.0  # doubled each time; a Retry-After header wins

_REQUEST = """Rewrite a user's query in {count} clearly different ways, as different people would type it: another \
length, register, word order, other concrete subjects of the same kind. The right tool must stay the same. For each, \
give the call that a careful person would make.

{instruction}

Its right answer is:
{response}

Answer with a JSON array only, {count} objects with the keys "query", "tool", "parameters" (object) and "reasoning" \
(one sentence naming the evidence in the query)."""

Chat = Callable[[str], str]


@dataclass(frozen=True)
class Paraphrases:
    """Rows that passed every gate, and how many candidates each gate stopped."""

    rows: list[Row]
    candidates: int
    stopped: Mapping[str, int]
    requests: int = 0


@dataclass(frozen=True)
class Endpoint:
    """An address for chat requests, with model and key. The key is kept out of `repr`."""

    base_url: str = field(repr=False)
    model: str
    api_key: str | None = field(default=None, repr=False)

    def chat(self, prompt: str) -> str:
        """Send one user turn and return the answer's text.

        Raises UserError for a refused key, an unknown model, or a server that keeps failing.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.8}
        server = self.server
        return chat_reply(server.request("chat/completions", body), server.shown).text

    @property
    def server(self) -> ChatServer:
        """Return the server at `base_url`."""
        pauses_s = [RETRY_PAUSE_S * 2**attempt for attempt in range(RETRIES)]
        return ChatServer(self.base_url, self.api_key, TIMEOUT_S, pauses_s, option="OPENAI_BASE_URL")


def endpoint_of(environment: Environment) -> Endpoint:
    """Return the endpoint that the OPENAI_* variables name. Raises UserError if they name none."""
    if not environment.openai_base_url or not environment.openai_model:
        raise UserError(
            "--generator openai needs OPENAI_BASE_URL and OPENAI_MODEL",
            where="environment",
            fix="export OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_MODEL=name",
        )
    return Endpoint(environment.openai_base_url, environment.openai_model, environment.openai_api_key)


def paraphrase(
    sources: Sequence[Row],
    known: Sequence[str],
    tools: Toolbox,
    chat: Chat,
    journal: Path,
    *,
    wanted: int,
    progress: Callable[[int], None] = lambda _: None,
    is_isolated: bool = True,
) -> Paraphrases:
    """Return paraphrases of `sources`, taken in turn until `wanted` rows have passed; journal every request.

    `known` are queries that no new row may nearly repeat. Requests that the journal has are not sent again.
    Programs run in the sandbox, unless `is_isolated` is false; raises NotIsolated where there is none.
    """
    done = _read_journal(journal, tools)
    rows: list[Row] = []
    stopped: Counter[str] = Counter(dict.fromkeys(GATES, 0))
    candidates = requests = 0
    is_cut = journal.is_file() and not journal.read_bytes().endswith(b"\n")
    with journal.open("a", encoding="utf-8") as file:
        file.write("\n" if is_cut else "")
        for source in sources:
            if len(rows) >= wanted:
                break
            outcome = done.get(source.query)
            if outcome is None:
                outcome = _ask(source, [*known, *(row.query for row in rows)], tools, chat, is_isolated)
                requests += 1
                file.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            rows += outcome.rows
            candidates += outcome.candidates
            stopped.update(outcome.stopped)
            progress(len(rows))
    return Paraphrases(rows[:wanted], candidates, dict(stopped), requests)


@dataclass(frozen=True)
class _Counted:
    """Holds how many candidates a finished request had, and how many of them each gate stopped."""

    source: str  # its query
    candidates: int
    stopped: dict[str, int]


@dataclass(frozen=True)
class _Outcome(_Counted):
    """One finished request, a line of the journal, with the rows that passed."""

    rows: list[Row]


def _read_journal(journal: Path, tools: Toolbox) -> dict[str, _Outcome]:
    """Return finished requests by source query; damaged lines, as a crash leaves them, are asked again."""
    done: dict[str, _Outcome] = {}
    damaged = []
    for line in json_lines(journal) if journal.is_file() else ():
        if outcome := _outcome(line.value, tools):
            done[outcome.source] = outcome
        else:
            damaged.append(str(line.number))
    if damaged:
        warn(f"{journal}: not finished requests, so these are sent again: line {', '.join(damaged)}")
    return done


def _outcome(value: object, tools: Toolbox) -> _Outcome | None:
    """Return a line of the journal; None if it is damaged, or has rows that do not fit the tools."""
    if unusable(value) or not isinstance(value, dict) or not isinstance(value.get("rows"), list):
        return None
    rows = [row_of(item, tools) for item in value["rows"]]
    if None in rows or type(value.get("candidates")) is not int:
        return None
    try:
        counted = checked_as(value, _Counted, where="")
    except UserError:
        return None
    is_counted = min((counted.candidates, *counted.stopped.values())) >= 0 and counted.stopped.keys() <= set(GATES)
    return _Outcome(**vars(counted), rows=[row for row in rows if row]) if is_counted else None


def _ask(source: Row, known: Sequence[str], tools: Toolbox, chat: Chat, is_isolated: bool) -> _Outcome:
    prompt = _REQUEST.format(count=PARAPHRASES_PER_REQUEST, instruction=source.instruction, response=source.response)
    rows: list[Row] = []
    stopped: Counter[str] = Counter()
    candidates = 0
    for candidate in _candidates(chat(prompt)):
        candidates += 1
        row = _as_row(candidate, source, tools)
        if row is None:
            stopped["format"] += 1
            continue
        others = [*known, source.query, *(other.query for other in rows)]
        gate = _first_closed_gate(row, others, tools, chat, is_isolated)
        if gate:
            stopped[gate] += 1
        else:
            rows.append(row)
    return _Outcome(source.query, candidates, dict(stopped), rows)


def _candidates(text: str) -> Iterator[object]:
    """Yield the objects of the JSON array in an answer, which may be in a code block; one None if there is no array."""
    start, end = text.find("["), text.rfind("]")
    try:
        items = parse_json(text[start : end + 1])
    except ValueError:
        items = [None]
    yield from items if isinstance(items, list) and items else [None]


def _as_row(candidate: object, source: Row, tools: Toolbox) -> Row | None:
    """Return a candidate as a row; None if it fails the format gate: a text query and a valid call of the same tool."""
    if unusable(candidate) or not isinstance(candidate, dict):
        return None
    if not isinstance(candidate.get("query"), str) or not candidate["query"].strip():
        return None
    parameters, reasoning = candidate.get("parameters"), candidate.get("reasoning")
    if candidate.get("tool") != source.tool or not isinstance(parameters, dict) or not isinstance(reasoning, str):
        return None
    kept = source.query + source.response  # invented: nobody's
    try:
        query, parameters, reasoning = Redactor().redact_call(candidate["query"], parameters, [reasoning], kept=kept)
        call = ToolCall(source.tool, parameters, " ".join(reasoning.split()))
    except ValueError:  # SecretInParameter is one
        return None
    copied = ("tool", "slice", "language", "template", "group", "program", "domain", "acceptable_tools")
    details = {key: source.metadata[key] for key in copied if key in source.metadata}
    instruction = render_instruction(" ".join(query.split()), tools)
    return Row(instruction, render_response(call), {"source": "paraphrase", **details})


def _first_closed_gate(row: Row, known: Iterable[str], tools: Toolbox, chat: Chat, is_isolated: bool) -> str | None:
    call = row.answer.call
    assert call is not None, "_as_row renders whole calls only"
    if tools.problems(call):
        return "schema"
    if "code" in tools[call.tool].required:
        code = str(call.parameters["code"])
        if problem_of_program(code, is_isolated=is_isolated):
            return "code"
    if parse_response(chat(row.instruction)).tool not in row.acceptable_tools:
        return "round_trip"
    similarity = nearest([row.query], list(known))[0]
    return "near_duplicate" if similarity[0] >= NEAR_DUPLICATE else None
