"""The rule behind `usable_call`: does a call do the job that the agent has, parameter by parameter.

    exact     as under the strict policy
    search    it finds what the reference finds: see `_search_verdict`
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
from tool_aware.evaluation.scoring.key_terms import (
    NEGATION,
    Terms,
    has_number,
    language_of,
    month_number,
    terms_of,
)
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
from tool_aware.tools import Tool

FEWEST_KEPT = 0.55  # of the reference's content words, each weighed by how rare it is
NEARLY_FIRST = 0.8  # of the score of the first passage
NOT_TYPED = 0.5  # the weight of a word of the reference that the user did not type, of that of one that he did
FEWEST_FOUND = 0.3  # of the reference's top passages, where the answer adds words


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
        self, tool: Tool, given: Mapping[str, Any], accepted: Mapping[str, Accepted], asked: str = ""
    ) -> CallUse:
        """Judge the parameters of a call of the right tool.

        `accepted` are those of the row (`accepted_values`) or of a reference call (`reference_values`); `asked` is
        what the user typed, with the earlier queries of the conversation: its words are no inventions.
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
            verdicts += self._verdicts(part, given[name], answers, asked)
        is_usable = all(verdict.is_usable for verdict in verdicts) and not problems
        return CallUse(is_usable, tuple(verdicts))

    def _verdicts(self, part: _Part, value: Any, answers: Sequence[Any], asked: str) -> list[ParameterVerdict]:
        """Judge one value by the accepted ones; of arrays and objects, each part by the accepted one that fits best."""
        is_text = isinstance(value, str)
        verdict = ParameterVerdict(part.name, part.kind if is_text else EXACT, False, False)
        if any(same_value(value, answer, part.schema, same_syntax) for answer in answers):
            return [_same(verdict, value, answers)]
        every = [parts for answer in answers if (parts := self._by_parts(part, value, answer, asked))]
        if every:
            return max(every, key=lambda parts: sum(part.is_usable for part in parts) / len(parts))
        if is_text and verdict.kind != EXACT:
            return [
                self._text_verdict(verdict, value, [answer for answer in answers if isinstance(answer, str)], asked)
            ]
        return [replace(verdict, reason=_exactly(answers))]

    def _by_parts(self, part: _Part, value: Any, answer: Any, asked: str) -> list[ParameterVerdict]:
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
        return [verdict for inner, ours, theirs in pairs for verdict in self._verdicts(inner, ours, [theirs], asked)]

    def _text_verdict(
        self, verdict: ParameterVerdict, value: str, texts: Sequence[str], asked: str
    ) -> ParameterVerdict:
        if not texts and verdict.kind == MESSAGE:
            return _unasked(verdict, value, asked, self.passages)
        if not texts:
            return replace(verdict, reason="is not asked for")
        if verdict.kind == CODE:
            return self._code_verdict(verdict, value, texts)
        judged = self._search_verdict if verdict.kind == SEARCH else self._message_verdict
        every = [judged(verdict, value, text, texts, asked) for text in texts]
        return max(every, key=lambda one: (one.is_usable, one.kept or 0, one.found or 0))

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

    def _search_verdict(
        self, verdict: ParameterVerdict, value: str, text: str, texts: Sequence[str], asked: str
    ) -> ParameterVerdict:
        """Judge a search text: names, numbers and negations are kept and none is invented, and it finds the same.

        A name or number counts as invented if neither an accepted text nor the user has it.
        """
        compared = _compare(value, text, texts, asked, self.passages)
        ours, theirs = self.passages.top(value), self.passages.top(text)
        found = len({*ours} & {*theirs}) / len(theirs) if theirs else None
        reason = _hard_problem(compared)
        if not reason and (compared.kept < FEWEST_KEPT or not compared.is_core_kept):
            reason = f"loses {', '.join(compared.lost)}"
        if not reason and compared.added and found is not None and found < FEWEST_FOUND:
            reason = f"adds {', '.join(compared.added)} and so finds other passages"
        if not reason and compared.added and compared.lost_typed and not _finds_first(ours, theirs):
            reason = f"has {', '.join(compared.added)} instead of {', '.join(compared.lost_typed)}"
        return replace(
            verdict,
            is_usable=not reason,
            reason=reason,
            kept=compared.kept,
            found=found,
            lost=compared.lost,
            added=compared.added,
            filler=_filler(value, texts),
        )

    def _message_verdict(
        self, verdict: ParameterVerdict, value: str, text: str, texts: Sequence[str], asked: str
    ) -> ParameterVerdict:
        """Judge a message: every content word is kept, in some form, and none is added that the user did not type."""
        compared = _compare(value, text, texts, asked, self.passages)
        reason = _hard_problem(compared)
        if not reason and compared.lost:
            reason = f"loses {', '.join(compared.lost)}"
        if not reason and compared.added:
            reason = f"adds {', '.join(compared.added)}"
        return replace(
            verdict, is_usable=not reason, reason=reason, kept=compared.kept, lost=compared.lost, added=compared.added
        )


class _Compared:
    """The words that an answer loses of one text, and those that it has and nobody said.

    Hard are names, numbers, words that say when, and negations. `kept` is the share of the text's content words that
    are kept, each weighed by how rare it is, and by half if the user did not type it: it is the writer's choice then.
    `is_core_kept`: no word that the user typed as well and that is lost is rarer than all that are kept.
    """

    def __init__(self, ours: Terms, theirs: Terms, typed: Terms, said: Terms, passages: Passages) -> None:
        lost, added = _words_lost(theirs, ours), _words_lost(ours, said)
        self.hard_lost = (*(word for word in lost if _is_hard(word, theirs, passages)), *_other_lost(theirs, ours))
        self.hard_added = (*(word for word in added if word in ours.names | ours.times), *_other_lost(ours, said))
        self.lost = tuple(dict.fromkeys((*lost, *self.hard_lost)))
        self.added = tuple(dict.fromkeys((*added, *self.hard_added)))
        not_typed = {*_words_lost(theirs, typed)}
        weights = {word: passages.weight(word) for word in theirs.content}
        rarest_kept = max((weights[word] for word in theirs.content if word not in lost), default=0.0)
        self.lost_typed = [word for word in lost if word not in not_typed]
        self.is_core_kept = all(weights[word] <= rarest_kept for word in self.lost_typed)
        weights |= {word: NOT_TYPED * weights[word] for word in not_typed}
        total = sum(weights.values())
        self.kept = 1 - sum(weights[word] for word in lost) / total if total else 1.0


def _is_hard(word: str, of: Terms, passages: Passages) -> bool:
    """Return whether a word is a name or says when; a capital makes a name of a German word that no passage has."""
    return word in of.names | of.times or (word in of.capitals and passages.weight(word) >= passages.most)


def _words_lost(of: Terms, among: Terms) -> list[str]:
    """Return the content words of one text that another does not have in any form."""
    return [
        word
        for word in of.content
        if not (among.has_name(word) if word in of.names else among.has(word))
        and not has_number(month_number(word), among.numbers)
    ]


def _other_lost(of: Terms, among: Terms) -> list[str]:
    """Return the numbers of one text that another does not have in any reading, and the negation if it has none."""
    numbers = [*among.numbers, *filter(None, map(month_number, among.content))]
    lost = [min(number, key=len) for number in of.numbers if not has_number(number, numbers)]
    is_reversed = of.is_negated and not (among.is_negated or among.is_free_of)
    return [*lost, *([NEGATION] if is_reversed else [])]


def _compare(value: str, text: str, texts: Sequence[str], asked: str, passages: Passages) -> _Compared:
    said = "\n".join((*texts, asked))
    language = language_of(said)
    ours, theirs, typed, allowed = (terms_of(one, language) for one in (value, text, asked or text, said))
    return _Compared(ours, theirs, typed, allowed, passages)


def _finds_first(ours: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    """Return whether what the reference finds first is among what the answer finds first, or nearly."""
    first = next(iter(theirs), None)
    return first is None or ours.get(first, 0.0) >= NEARLY_FIRST * max(ours.values(), default=0.0)


def _hard_problem(compared: _Compared) -> str:
    if compared.hard_lost:
        return f"loses {', '.join(compared.hard_lost)}"
    return f"invents {', '.join(compared.hard_added)}" if compared.hard_added else ""


def _same(verdict: ParameterVerdict, value: Any, answers: Sequence[Any]) -> ParameterVerdict:
    """Return the verdict on a value that is right under the strict policy."""
    is_search = verdict.kind == SEARCH
    return replace(
        verdict,
        is_same=True,
        is_usable=True,
        kept=1.0 if verdict.kind in (SEARCH, MESSAGE) else None,
        found=1.0 if is_search else None,
        filler=_filler(value, [answer for answer in answers if isinstance(answer, str)]) if is_search else None,
        runs=True if verdict.kind == CODE else None,
    )


def _filler(value: str, texts: Sequence[str]) -> int:
    """Count the function words that an answer has more than the first accepted text."""
    language = language_of("\n".join(texts))
    return max(0, terms_of(value, language).filler - terms_of(texts[0], language).filler)


def _unasked(verdict: ParameterVerdict, value: str, asked: str, passages: Passages) -> ParameterVerdict:
    """Judge a message text that the reference leaves out: it does no harm if it invents no name or number."""
    compared = _compare(value, asked, (), asked, passages)
    reason = f"is not asked for and invents {', '.join(compared.hard_added)}" if compared.hard_added else ""
    return replace(verdict, is_usable=not reason, reason=reason, added=compared.added)


def _exactly(answers: Sequence[Any]) -> str:
    return f"is not {' or '.join(map(str, answers[:2]))}" if answers else "is not asked for"


def _is_default(tool: Tool, name: str, value: Any) -> bool:
    return name in tool.defaults and same_json(tool.defaults[name], value)
