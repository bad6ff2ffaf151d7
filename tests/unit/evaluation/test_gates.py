"""Demands on the figures: read from the command line, and missed or met."""

from __future__ import annotations

import pytest

from tool_aware.console import UserError
from tool_aware.evaluation.gates import FIGURES, PER_TOOL, NamedFigure, parse_gates
from tool_aware.evaluation.scoring.judgement import Judgement
from tool_aware.evaluation.scoring.metrics import summarise

TOOLS = ("rag", "web", "chat")


@pytest.fixture
def metrics():
    """Three rows of rag, one of them given to web, and no row of chat; no system's answers, only choices."""
    chosen = ["rag", "rag", "web"]
    judgements = [Judgement(row, "rag", tool, tool, f"row {row}") for row, tool in enumerate(chosen)]
    return summarise("tuned", judgements, TOOLS, no_tool=None, seed=0)


def test_a_demand_names_a_figure_or_a_figure_of_a_tool(metrics):
    gates = parse_gates(["accuracy=0.8", "recall.rag=0.5"], ["web=0.02"], True, TOOLS)
    assert gates.minimum == {NamedFigure("accuracy"): 0.8, NamedFigure("recall", "rag"): 0.5}
    assert gates.max_drop == {"web": 0.02}
    assert [figure.value(metrics) for figure in gates.minimum] == [pytest.approx(2 / 3)] * 2
    assert str(NamedFigure("recall", "rag")) == "recall.rag"


def test_every_figure_that_can_be_demanded_is_one_of_the_metrics(metrics):
    for figure in [*map(NamedFigure, FIGURES), *(NamedFigure(figure, tool) for figure in PER_TOOL for tool in TOOLS)]:
        value = figure.value(metrics)
        assert value is None or 0 <= value <= 1


def test_figures_without_cases_and_those_of_whole_answers_have_no_value_here(metrics):
    assert NamedFigure("f1", "chat").value(metrics) is None
    assert NamedFigure("parse_rate").value(metrics) is None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("precision=0.5", "'precision' is not one of accuracy, "),
        ("f1.browse=0.5", "'f1.browse' is not one of"),
        ("accuracy=80", "needs a number from 0 to 1"),
        ("accuracy", "needs a number from 0 to 1"),
    ],
)
def test_a_demand_that_cannot_be_read_is_refused(option, words):
    with pytest.raises(UserError, match=words):
        parse_gates([option], [], False, TOOLS)
