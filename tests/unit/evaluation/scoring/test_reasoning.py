"""Reasonings are judged by their evidence, by the tool that they lead to, and by how much of them is form."""

import pytest

from tool_aware.evaluation.scoring.judgement import Prediction, judge
from tool_aware.evaluation.scoring.reasoning import (
    judge_reasonings,
    reader_of_reasonings,
    reasoning_figures,
    without_names,
)
from tool_aware.prompt import Turn, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.tools import ToolCall

TOOLS = {"rag_retrieval": "points to our own documents", "web_search": "is public and changes, use web_search"}


@pytest.fixture
def made(config):
    """Return what makes a row of a query, its tool, a reasoning and an earlier query."""

    def make(query, tool, reasoning, earlier=""):
        history = [Turn(earlier, tool)] if earlier else []
        response = render_response(ToolCall(tool, {"query": query}, reasoning))
        return Row(render_instruction(query, config.toolbox, history), response, {"source": "test", "tool": tool})

    return make


@pytest.fixture
def read(config, made):
    words = ("alpha", "beta", "gamma", "delta", "omega", "sigma")
    rows = [made(word, tool, f'"{word}" {why}.') for word in words for tool, why in TOOLS.items()]
    return reader_of_reasonings(rows, config.toolbox.names)


def judged(rows, texts, config, read):
    predictions = [Prediction(number, text) for number, text in enumerate(texts)]
    found = [judge(each, rows[each.row], config.toolbox) for each in predictions]
    judge_reasonings({"": found}, {"": predictions}, rows, read)
    return found, reasoning_figures(found, predictions, seed=0)


def test_evidence_may_stand_in_the_query_or_an_earlier_turn_and_nowhere_else(config, made, read):
    row = made("and in Lyon?", "web_search", "So.", earlier="weather in Paris tomorrow")
    reasonings = ['"In Lyon" is public.', '"weather in Paris" is public.', '"in Nice" is public.', "It is public."]
    texts = [render_response(ToolCall("web_search", {"query": "x"}, reasoning)) for reasoning in reasonings]
    found, figures = judged(dict.fromkeys(range(4), row), texts, config, read)
    assert [each.is_evidence_in_query for each in found] == [True, True, False, False]
    assert [each.quotes_evidence for each in found] == [True, True, True, False]
    assert (figures.quotes_evidence.value, figures.evidence_in_query.value) == (0.75, 0.5)
    assert (figures.boilerplate, figures.sentences, figures.reasonings) == (0.75, 2, 4)


def test_a_reasoning_for_another_tool_than_the_one_called_does_not_lead_there(config, made, read):
    row = made("pumps", "rag_retrieval", "So.")
    reasonings = ['"pumps" points to our own documents.', '"pumps" is public and changes, use rag_retrieval.']
    texts = [render_response(ToolCall("rag_retrieval", {"query": "x"}, reasoning)) for reasoning in reasonings]
    found, figures = judged({0: row, 1: row, 2: row}, [*texts, "I do not know."], config, read)
    assert [each.reasoning_leads_to for each in found] == ["rag_retrieval", "web_search", None]
    assert (figures.leads_to_tool.value, figures.leads_to_tool.n) == (0.5, 2)


def test_reasonings_of_several_systems_are_judged_as_those_of_each_alone(config, made, read):
    row = made("pumps", "rag_retrieval", "So.")
    reasonings = ['"pumps" points to our own documents.', '"pumps" is public and changes.', "It is public."]
    texts = [render_response(ToolCall("rag_retrieval", {"query": "x"}, reasoning)) for reasoning in reasonings]
    rows = dict.fromkeys(range(3), row)
    answers = {"one": texts, "other": [texts[0], "I do not know.", texts[1]]}
    predictions = {name: [Prediction(n, text) for n, text in enumerate(given)] for name, given in answers.items()}
    together = {name: [judge(each, row, config.toolbox) for each in given] for name, given in predictions.items()}
    together["other"][0] = together["one"][0]  # the same answer to the same row
    judge_reasonings(together, predictions, rows, read)
    for name, given in answers.items():
        assert together[name] == judged(rows, given, config, read)[0]
    assert together["other"][0] is together["one"][0]


def test_names_of_tools_give_nothing_away():
    masked = without_names("Use web_search, a Web search, not the web-searcher.", ["web_search"])
    assert masked == "Use TOOL, a TOOL, not the web-searcher."


def test_without_references_or_answers_there_is_no_figure(config, made):
    assert reader_of_reasonings([], config.toolbox.names) is None
    assert reader_of_reasonings([made(f"q{n}", "web_search", "So.") for n in range(20)], config.toolbox.names) is None
    row = made("pumps", "rag_retrieval", "So.")
    assert judged({0: row}, [row.response], config, None)[1].leads_to_tool is None
    assert judged({0: row}, ["I do not know."], config, None)[1] is None
