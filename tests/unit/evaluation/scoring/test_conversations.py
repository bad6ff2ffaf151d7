import pytest

from tool_aware.evaluation.scoring.earlier_turns import LEFT_OUT, with_and_without
from tool_aware.evaluation.scoring.judgement import Prediction, judge
from tool_aware.evaluation.scoring.robustness import make_variants
from tool_aware.evaluation.scoring.two_requests import two_requests, words_of_the_rest
from tool_aware.prompt import Turn, parse_response, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.tools import Tool, Toolbox, ToolCall

TOOLS = Toolbox([Tool("docs", "finds documents"), Tool("web", "searches the web"), Tool("chat", "talks")])


def row(query, tool, *history, reasoning="So.", **metadata):
    return Row(
        render_instruction(query, TOOLS, [Turn(*turn) for turn in history]),
        render_response(ToolCall(tool, {}, reasoning)),
        {"source": "test", "tool": tool, **metadata},
    )


ROWS = {
    3: row("leave in Spain", "docs"),
    5: row("and in Germany?", "docs", ("leave in Spain", "docs"), follow_up="ellipsis"),
    6: row("no, on the web", "web", ("leave in Spain", "docs"), follow_up="correction"),
    8: row("the same for Poland", "docs", ("leave in Spain", "docs"), follow_up="ellipsis"),
}


def test_rows_of_a_conversation_are_also_asked_without_their_earlier_turns():
    alone = next(variant for variant in make_variants(ROWS, TOOLS, seed=0) if variant.name == LEFT_OUT)
    assert {index: asked.instruction for index, asked in alone.rows.items()} == {
        index: render_instruction(ROWS[index].query, TOOLS) for index in (5, 6, 8)
    }
    assert LEFT_OUT not in [variant.name for variant in make_variants({3: ROWS[3]}, TOOLS, seed=0)]


def test_what_the_earlier_turns_decide_is_told_by_kind_of_follow_up():
    def chosen(*tools):
        return [judge(Prediction(i, tool=tool), ROWS[i], TOOLS) for i, tool in zip((5, 6, 8), tools, strict=True)]

    found = with_and_without(ROWS, chosen("docs", "docs", "docs"), chosen("web", "web", "docs"), seed=0)
    assert [(each.kind, each.with_turns.n, each.only_with, each.only_without) for each in found] == [
        ("all", 3, 1, 1),
        ("ellipsis", 2, 1, 0),
        ("correction", 1, 0, 1),
    ]
    assert (found[1].with_turns.value, found[1].without_turns.value) == (1.0, 0.5)
    assert found[1].without_turns.low < 0.5 < found[1].without_turns.high


RAIL = '"Our travel policy" is an internal document; today\'s rail strikes remain for a web search.'
TWO = {
    0: row("our travel policy, and rail strikes today", "docs", reasoning=RAIL, then_tool="web"),
    1: row(
        "news on tariffs, then say what a tariff is", "web", reasoning="News; a definition remains.", then_tool="chat"
    ),
    2: row("hello", "chat"),
}
CALL = "Tool: docs\nParameters: {}\nReasoning: It asks for documents."
OTHER = "Tool: web\nParameters: {}\nReasoning: It asks for news."


@pytest.mark.parametrize(
    "text", [f"{CALL}\n{OTHER}", f"{CALL}\n\n{OTHER}", "Tool: docs\nTool: web\nParameters: {}\nReasoning: Both."]
)
def test_an_answer_of_two_calls_is_malformed(text):
    assert parse_response(text).call is None
    found = two_requests(TWO, [Prediction(0, text)], [judge(Prediction(0, text), TWO[0], TOOLS)], seed=0)
    assert (found.first.value, found.second.value, found.malformed.value, found.several_calls.value) == (0, 0, 1, 1)


def test_two_requests_tell_which_tool_was_chosen_and_whether_the_other_is_named():
    answers = [
        Prediction(0, "Tool: docs\nParameters: {}\nReasoning: Our policy comes first; rail strikes of today are next."),
        Prediction(1, "Tool: chat\nParameters: {}\nReasoning: It asks for a definition."),
        Prediction(2, "Tool: chat\nParameters: {}\nReasoning: A greeting."),
    ]
    found = two_requests(TWO, answers, [judge(answer, TWO[answer.row], TOOLS) for answer in answers], seed=0)
    assert (found.first.value, found.first.n, found.second.value, found.malformed.value) == (0.5, 2, 0.5, 0.0)
    assert found.names_rest.value == 0.5  # the other one called the tool that comes second
    choices = [Prediction(0, tool="web"), Prediction(1, tool="web")]
    only_chosen = two_requests(TWO, choices, [judge(each, TWO[each.row], TOOLS) for each in choices], seed=0)
    assert (only_chosen.second.value, only_chosen.malformed, only_chosen.names_rest) == (0.5, None, None)
    assert two_requests({2: TWO[2]}, answers[2:], [judge(answers[2], TWO[2], TOOLS)], seed=0) is None


def test_words_that_every_reasoning_has_name_no_request():
    rows = {n: row("q", "docs", reasoning=f"Ours; the subject{n} remains.", then_tool="web") for n in range(20)}
    assert words_of_the_rest(rows)[7] == {"subject7"}
    sums = {0: row("q", "docs", reasoning="Ours; what remains is 21 % of 719.", then_tool="web")}
    assert {"21", "719"} <= words_of_the_rest(sums)[0]
    assert words_of_the_rest({0: row("q", "docs", reasoning="Nothing is said.", then_tool="web")}) == {0: frozenset()}
