"""Judges a Reasoning line: its evidence stands in the query, it leads to the tool called, it is no mere form.

Whether it leads to the tool is asked of somebody who reads nothing else: TF-IDF and logistic regression, trained on the
references of train.json and val.json, with the names of the tools masked. It is a figure, not a proof: a sentence whose
form always goes with one tool leads there whatever its evidence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tool_aware.evaluation.scoring.baselines import FEWEST_TRAINING_ROWS, tfidf_regression
from tool_aware.evaluation.scoring.intervals import Figure, group_numbers, share
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction
from tool_aware.evaluation.scoring.one_thread import on_one_thread
from tool_aware.prompt import read_response
from tool_aware.reasoning_text import SAMPLE, boilerplate, quoted, stands_in
from tool_aware.rows import Row
from tool_aware.text import spread_evenly

MOST_ROWS = 5000  # references that the reader learns from; more take seconds and change nothing
MASK = "TOOL"

Reader = Callable[[Sequence[str]], list[str]]  # reasonings to the tool that each leads to


@dataclass(frozen=True)
class ReasoningFigures:
    """Figures of the Reasoning lines of all answers that can be read.

    `quotes_evidence`: something stands in quotation marks; `evidence_in_query`: it does, and all of it stands in the
    query or an earlier turn. `leads_to_tool`: somebody who reads nothing else chooses the tool that the answer calls;
    None where there are too few references to learn from. `boilerplate`: share of reasonings that are the same sentence
    as another one but for what fills its slots, among `reasonings` of them; `sentences` counts the different ones.
    """

    quotes_evidence: Figure
    evidence_in_query: Figure
    leads_to_tool: Figure | None
    boilerplate: float | None
    sentences: int
    reasonings: int


@on_one_thread("sklearn")
def reader_of_reasonings(rows: Iterable[Row], tools: Sequence[str]) -> Reader | None:
    """Return who names the tool that a reasoning leads to, having learnt from the references of `rows`.

    None where these are fewer than FEWEST_TRAINING_ROWS or are all for one tool.
    """
    learnt = [row for row in spread_evenly(list(rows), MOST_ROWS) if not row.is_choice_only]
    labels = [row.tool for row in learnt]
    if len(labels) < FEWEST_TRAINING_ROWS or len(set(labels)) < 2:
        return None
    names = sorted({*tools, *labels}, key=len, reverse=True)
    choose = tfidf_regression([without_names(row.answer.reasoning or "", names) for row in learnt], labels)

    @on_one_thread("sklearn")
    def read(reasonings: Sequence[str]) -> list[str]:
        if not reasonings:
            return []
        return choose([without_names(text, names) for text in reasonings])

    return read


def without_names(reasoning: str, names: Sequence[str]) -> str:
    """Return a reasoning whose tools' names are masked, also where they are written with spaces or hyphens."""
    return _names_pattern(tuple(names)).sub(MASK, reasoning) if names else reasoning


@lru_cache(maxsize=8)
def _names_pattern(names: Sequence[str]) -> re.Pattern[str]:
    written = "|".join(re.escape(name).replace("_", "[_ -]") for name in names)
    return re.compile(rf"(?<!\w)(?:{written})(?!\w)", re.IGNORECASE)


def judge_reasonings(
    judgements: Mapping[str, list[Judgement]],
    predictions: Mapping[str, Sequence[Prediction]],
    rows: Mapping[int, Row],
    read: Reader | None,
) -> None:
    """Add what is found of reasonings to the judgements of systems, which are of the same rows in the same order.

    The judgements are changed; answers that cannot be read have no reasoning. What several systems write of a row is
    judged once.
    """
    different = {
        id(judgement): (judgement, text)
        for name, judged in judgements.items()
        for judgement, prediction in _pairs(judged, predictions[name])
        if judgement.is_parsed and (text := _reasoning(prediction.text))
    }
    texts = list(dict.fromkeys(text for _, text in different.values()))
    tools = dict(zip(texts, read(texts), strict=True)) if read else {}
    evidence = {}
    for judgement, text in different.values():
        of = judgement.row, text
        if of not in evidence:
            evidence[of] = _evidence(text, rows[judgement.row].conversation)
        judgement.quotes_evidence, judgement.is_evidence_in_query = evidence[of]
        judgement.reasoning_leads_to = tools.get(text)


def _evidence(reasoning: str, typed: str) -> tuple[bool, bool]:
    """Return whether a reasoning quotes something, and whether all of that stands in what the user typed."""
    quotes = quoted(reasoning)
    return bool(quotes), bool(quotes) and all(stands_in(quote, typed) for quote in quotes)


def reasoning_figures(
    judgements: Sequence[Judgement], predictions: Sequence[Prediction], *, seed: int
) -> ReasoningFigures | None:
    """Add up the reasonings that `judge_reasonings` judged; None where there are none."""
    import numpy as np

    pairs = [(j, p) for j, p in _pairs(judgements, predictions) if j.quotes_evidence is not None]
    if not pairs:
        return None
    judged = [judgement for judgement, _ in pairs]
    groups = group_numbers([judgement.group for judgement in judged])
    is_read = np.array([bool(judgement.reasoning_leads_to) for judgement in judged])
    leads_to_tool = np.array([judgement.reasoning_leads_to == judgement.chosen for judgement in judged])
    found = boilerplate([_reasoning(prediction.text) for _, prediction in spread_evenly(pairs, SAMPLE)])
    return ReasoningFigures(
        quotes_evidence=share([bool(j.quotes_evidence) for j in judged], groups, seed=seed),
        evidence_in_query=share([bool(j.is_evidence_in_query) for j in judged], groups, seed=seed),
        leads_to_tool=share(leads_to_tool[is_read], groups[is_read], seed=seed) if is_read.any() else None,
        boilerplate=found.share if found else None,
        sentences=found.sentences if found else 0,
        reasonings=found.reasonings if found else 0,
    )


def _pairs(judgements: Sequence[Judgement], predictions: Sequence[Prediction]) -> list[tuple[Judgement, Prediction]]:
    return list(zip(judgements, predictions, strict=True))


def _reasoning(text: str | None) -> str:
    return read_response(text or "").reasoning or ""
