"""The rule behind `usable_call`: does a call do the job that the agent has, parameter by parameter.

    exact     as under the strict policy
    search    it finds what the reference finds: see search_rule.py
    code      it prints what the reference prints, in the sandbox; where programs are not run, equal syntax trees
    message   no content word lost, nothing added: see `_message_verdict`

A call is usable if its tool is right, it fits the schema, and each of its parameters is usable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tool_aware.evaluation.scoring.bfcl import Accepted, same_json
from tool_aware.evaluation.scoring.code_equality import same_syntax
from tool_aware.evaluation.scoring.judgement import NOT_ASKED_FOR, same_value
from tool_aware.evaluation.scoring.parameter_kinds import (
    CODE,
    EXACT,
    MESSAGE,
    SEARCH,
    CallUse,
    ParameterVerdict,
    inner_schema,
    kind_of,
)
from tool_aware.evaluation.scoring.passages import Passages
from tool_aware.evaluation.scoring.program_output import ProgramRuns, output_problem
from tool_aware.evaluation.scoring.search_rule import filler_left_in, search_verdict
from tool_aware.evaluation.scoring.word_comparison import Said, compare_words
from tool_aware.tools import Tool


def reference_values(tool: Tool, parameters: Mapping[str, Any]) -> dict[str, Accepted]:
    """Return a call's own parameters as the accepted values, for references that are no rows of a data set."""
    names = dict.fromkeys([*tool.properties, *parameters])
    values = {name: (parameters[name],) if name in parameters else () for name in names}
    return {
        name: Accepted(
            (*given, *((tool.defaults[name],) if name in tool.defaults and not given else ())),
            given,
            name not in parameters or (name in tool.defaults and same_json(tool.defaults[name], parameters[name])),
        )
        for name, given in values.items()
    }


@dataclass(frozen=True)
class _Part:
    """A parameter, or a part of one: `name` is its path, `key` the name that tells its kind, unless that is fixed."""

    name: str
    key: str
    schema: Any
    fixed_kind: str | None = None

    @property
    def kind(self) -> str:
        """Return the kind of a text in this place."""
        return self.fixed_kind or kind_of(self.key, self.schema)

    def item(self, index: int) -> _Part:
        """Return an item of this array."""
        return _Part(f"{self.name}.{index}", self.key, inner_schema(self.schema, "items"), self.fixed_kind)

    def property(self, key: str) -> _Part:
        """Return a property of this object."""
        return _Part(f"{self.name}.{key}", key, inner_schema(self.schema, "properties", key))


class ParameterJudge:
    """Judge of parameters. It holds the index of passages and the programs that were run, for any number of calls.

    `texts` are passages beside the shipped ones: references and queries of the evaluated data. `judged_as` names the
    kind of single parameters, `{"tool.parameter": "search"}`. `programs` is None where programs are not to be run.
    """

    def __init__(
        self,
        *,
        texts: Iterable[str] = (),
        judged_as: Mapping[str, str] | None = None,
        programs: ProgramRuns | None = None,
    ) -> None:
        self.passages = Passages(texts)
        self.programs = programs
        self._judged_as = dict(judged_as or {})

    def kind(self, tool: Tool, name: str) -> str:
        """Return what a parameter of a tool is judged by."""
        return self._judged_as.get(f"{tool.name}.{name}") or kind_of(name, tool.properties.get(name, {}))

    def takes_programs(self, tool: Tool) -> bool:
        """Return whether a parameter of a tool is a program."""
        return any(self.kind(tool, name) == CODE for name in tool.properties)

    def search_texts(self, tool: Tool, parameters: Mapping[str, Any]) -> list[str]:
        """Return the texts to search for among a call's parameters."""
        return [v for name, v in parameters.items() if isinstance(v, str) and self.kind(tool, name) == SEARCH]

    def run_programs(self, calls: Iterable[tuple[Tool, Mapping[str, Any], Mapping[str, Accepted]]]) -> None:
        """Run the programs of calls (tool, given and accepted parameters), several at once, before they are judged."""
        if not self.programs:
            return
        due: list[str] = []
        for tool, given, accepted in calls:
            for name, value in given.items():
                answers = accepted.get(name, NOT_ASKED_FOR).values
                if isinstance(value, str) and self.kind(tool, name) == CODE:
                    texts = [answer for answer in answers if isinstance(answer, str)]
                    if texts and not any(same_syntax(value, text) for text in texts):
                        due += [value, *texts]
        self.programs.run(due)

    def judge_call(
        self, tool: Tool, given: Mapping[str, Any], accepted: Mapping[str, Accepted], asked: str = "", earlier: str = ""
    ) -> CallUse:
        """Judge the parameters of a call of the right tool.

        `accepted` are those of the row (`accepted_values`) or of a reference call (`reference_values`); `asked` is
        the user's query, whose words are no inventions, and `earlier` the earlier queries of the conversation.
        """
        problems = tool.parameter_problems(given)
        given = {name: value for name, value in given.items() if not _is_default(tool, name, value)}
        verdicts: list[ParameterVerdict] = []
        for name in dict.fromkeys([*tool.properties, *accepted, *given]):
            wanted = accepted.get(name, NOT_ASKED_FOR)
            part = _Part(name, name, tool.properties.get(name, {}), self._judged_as.get(f"{tool.name}.{name}"))
            if name not in given:
                if not wanted.may_be_absent:
                    verdicts.append(ParameterVerdict(name, part.kind, False, False, "is missing"))
                continue
            answers = tuple(value for value in wanted.values if not _is_default(tool, name, value))
            verdicts += self._verdicts(part, given[name], answers, Said(asked, earlier))
        is_usable = all(verdict.is_usable for verdict in verdicts) and not problems
        return CallUse(is_usable, tuple(verdicts))

    def _verdicts(self, part: _Part, value: Any, answers: Sequence[Any], said: Said) -> list[ParameterVerdict]:
        """Judge one value by the accepted ones; of arrays and objects, each part by the accepted one that fits best."""
        is_text = isinstance(value, str)
        verdict = ParameterVerdict(part.name, part.kind if is_text else EXACT, False, False)
        if any(same_value(value, answer, part.schema, same_syntax) for answer in answers):
            return [_same(verdict, value, answers)]
        every = [parts for answer in answers if (parts := self._by_parts(part, value, answer, said))]
        if every:
            return max(every, key=lambda parts: sum(part.is_usable for part in parts) / len(parts))
        if is_text and verdict.kind != EXACT:
            return [self._text_verdict(verdict, value, [answer for answer in answers if isinstance(answer, str)], said)]
        return [replace(verdict, reason=_exactly(answers))]

    def _by_parts(self, part: _Part, value: Any, answer: Any, said: Said) -> list[ParameterVerdict]:
        """Judge the items of an array or the properties of an object; none if these are no two arrays or objects."""
        if isinstance(value, list) and isinstance(answer, list):
            if len(value) != len(answer):
                reason = f"has {len(value)} items, not {len(answer)}"
                return [ParameterVerdict(part.name, EXACT, False, False, reason)]
            pairs = [(part.item(index), *pair) for index, pair in enumerate(zip(value, answer, strict=True))]
        elif isinstance(value, Mapping) and isinstance(answer, Mapping):
            if value.keys() != answer.keys():
                reason = f"differs in its keys: {', '.join(sorted(value.keys() ^ answer.keys()))}"
                return [ParameterVerdict(part.name, EXACT, False, False, reason)]
            pairs = [(part.property(key), value[key], answer[key]) for key in value]
        else:
            return []
        return [verdict for inner, ours, theirs in pairs for verdict in self._verdicts(inner, ours, [theirs], said)]

    def _text_verdict(
        self, verdict: ParameterVerdict, value: str, texts: Sequence[str], said: Said
    ) -> ParameterVerdict:
        if not texts and verdict.kind == MESSAGE:
            return _unasked(verdict, value, said, self.passages)
        if not texts:
            return replace(verdict, reason="is not asked for")
        if verdict.kind == CODE:
            return self._code_verdict(verdict, value, texts)
        if verdict.kind == SEARCH:
            return search_verdict(verdict, value, texts, said, self.passages)
        every = [self._message_verdict(verdict, value, text, texts, said) for text in texts]
        return max(every, key=lambda one: (one.is_usable, one.kept or 0))

    def _code_verdict(self, verdict: ParameterVerdict, value: str, texts: Sequence[str]) -> ParameterVerdict:
        if not self.programs:
            return replace(verdict, reason="is another program than the reference; programs were not run")
        answered = self.programs.of(value)
        outcomes = [(output_problem(answered, self.programs.of(text)), self.programs.of(text)) for text in texts]
        reason, wanted = min(outcomes, key=lambda outcome: len(outcome[0]) > 0)
        return replace(
            verdict,
            is_usable=not reason,
            reason=reason,
            runs=answered[0].problem is None,
            printed=answered[0].printed,
            wanted=wanted[0].printed,
        )

    def _message_verdict(
        self, verdict: ParameterVerdict, value: str, text: str, texts: Sequence[str], said: Said
    ) -> ParameterVerdict:
        """Judge a message: every content word is kept, in some form, and none is added that the user did not type."""
        compared = compare_words(value, text, texts, said, self.passages)
        reason = compared.hard_problem
        if not reason and compared.lost:
            reason = f"loses {', '.join(compared.lost)}"
        if not reason and compared.added:
            reason = f"adds {', '.join(compared.added)}"
        return replace(
            verdict, is_usable=not reason, reason=reason, kept=compared.kept, lost=compared.lost, added=compared.added
        )


def _same(verdict: ParameterVerdict, value: Any, answers: Sequence[Any]) -> ParameterVerdict:
    """Return the verdict on a value that is right under the strict policy."""
    is_search = verdict.kind == SEARCH
    return ParameterVerdict(
        verdict.name,
        verdict.kind,
        is_same=True,
        is_usable=True,
        kept=1.0 if verdict.kind in (SEARCH, MESSAGE) else None,
        found=1.0 if is_search else None,
        filler=filler_left_in(value, [answer for answer in answers if isinstance(answer, str)]) if is_search else None,
        runs=True if verdict.kind == CODE else None,
    )


def _unasked(verdict: ParameterVerdict, value: str, said: Said, passages: Passages) -> ParameterVerdict:
    """Judge a message text that the reference leaves out: it does no harm if it invents no name or number."""
    compared = compare_words(value, said.query, (), said, passages)
    reason = f"is not asked for and invents {', '.join(compared.hard_added)}" if compared.hard_added else ""
    return replace(verdict, is_usable=not reason, reason=reason, added=compared.added)


def _exactly(answers: Sequence[Any]) -> str:
    return f"is not {' or '.join(map(str, answers[:2]))}" if answers else "is not asked for"


def _is_default(tool: Tool, name: str, value: Any) -> bool:
    return name in tool.defaults and same_json(tool.defaults[name], value)
