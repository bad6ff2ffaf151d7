import pytest

from tool_aware.evaluation.scoring.bfcl import Accepted
from tool_aware.evaluation.scoring.judgement import Prediction, is_reasoning_sound, judge, match_parameters, token_f1
from tool_aware.prompt import parse_response, render_response
from tool_aware.rows import Row
from tool_aware.tools import Tool, Toolbox, ToolCall

TOOLS = Toolbox([
    Tool("search", "finds", {"type": "object", "required": ["query"], "properties": {
        "query": {"type": "string"}, "limit": {"type": "integer", "default": 3, "minimum": 1},
        "scope": {"enum": ["all", "mine"]},
    }}),
    Tool("run", "runs", {"type": "object", "required": ["code"], "properties": {
        "code": {"type": "string", "contentMediaType": "text/x-python"},
    }}),
    Tool("chat", "talks", {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}),
])  # fmt: skip


def make_row(tool="search", parameters=None, **metadata):
    call = ToolCall(tool, parameters or {"query": "cats", "limit": 5}, "It asks so.")
    return Row("find cats", render_response(call), {"source": "test", "tool": tool, **metadata})


def answer(tool, parameters, reasoning="It asks so."):
    return render_response(ToolCall(tool, parameters, reasoning))


def judged(text, row=None, **details):
    return judge(Prediction(0, text, **details), row or make_row(), TOOLS)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (answer("search", {"query": "cats", "limit": 5}), None),
        (answer("search", {"limit": 5, "query": "  CATS. "}), None),
        ("I would search for cats.", "no parseable call"),
        ("Tool: search\nParameters: {broken", "no parseable call"),
        (answer("browse", {"query": "cats"}), "unknown tool"),
        (answer("chat", {"message": "cats"}), "wrong tool"),
        (answer("search", {"query": "cats"}), "missing parameter"),
        (answer("search", {"query": "cats", "limit": 5, "colour": 1}), "extra parameter"),
        (answer("search", {"query": "cats", "limit": 5, "scope": "mine"}), "extra parameter"),
        (answer("search", {"query": "cats", "limit": "5"}), "wrong-type parameter"),
        (answer("search", {"query": "cats", "limit": 0}), "wrong-type parameter"),
        (answer("search", {"query": "dogs", "limit": 5}), "wrong-value parameter"),
    ],
)
def test_each_wrong_row_has_one_error(text, error):
    result = judged(text)
    assert result.error == error
    assert result.is_call_correct == (error is None)


def test_where_only_the_tool_is_known_parameters_have_to_fit_the_schema_alone():
    row = make_row(choice_only=True)
    other = judged(answer("search", {"query": "the cats of Rome"}), row)
    assert (other.error, other.is_call_correct, other.parameters, other.is_bfcl_valid) == (None, True, (), None)
    assert judged(answer("search", {"limit": 5}), row).error == "wrong-type parameter"
    wrong = judged(answer("chat", {"message": "cats"}), row)
    assert (wrong.error, wrong.parameters, wrong.is_bfcl_valid) == ("wrong tool", (), None)


def test_an_answer_cut_off_by_the_limit_is_truncated_and_not_merely_malformed():
    assert judged("Tool: search\nParameters: {", is_truncated=True).error == "truncated"
    whole = judged(answer("search", {"query": "cats", "limit": 5}), is_truncated=True)
    assert whole.error is None  # the call was there before the limit
    assert whole.is_truncated


def test_an_answer_that_names_no_callable_tool_is_invalid_and_never_chat():
    for text in ("", "chat", "Tool: browse\nParameters: {}\nReasoning: x", "Tool: search\nParameters: oops"):
        result = judged(text)
        assert (result.chosen, result.credited) == (None, "invalid")


def test_any_acceptable_tool_is_credited_to_the_rows_own_tool():
    row = make_row(acceptable_tools=["search", "chat"])
    result = judged(answer("chat", {"message": "cats?"}), row)
    assert (result.chosen, result.credited, result.error) == ("chat", "search", None)
    assert result.is_call_correct
    assert result.is_bfcl_valid is None  # there is no reference for that call's parameters
    assert not judged(answer("run", {"code": "1"}), row).is_tool_right


def test_with_another_tool_all_parameters_of_the_row_count_as_missing():
    matches = {match.name: match for match in judged(answer("chat", {"message": "cats"})).parameters}
    assert set(matches) == {"query", "limit"}
    assert all(match.is_expected and not match.is_given for match in matches.values())


def test_a_system_that_only_chooses_has_no_verdict_on_parameters():
    result = judge(Prediction(0, tool="search"), make_row(), TOOLS)
    assert result.is_tool_right
    assert (result.is_parsed, result.is_call_correct, result.parameters) == (None, None, ())


def matches(parameters, accepted, tool="search"):
    wanted = {name: Accepted(tuple(filter(None, v)), (), may_be_absent="" in v) for name, v in accepted.items()}
    return {m.name: m.is_match for m in match_parameters(parameters, TOOLS[tool], wanted)}


def test_the_routers_policy_by_schema_type():
    accepted = {"query": ["the black cat"], "limit": [5], "scope": ["mine"]}
    assert matches({"query": "The black  cat!", "limit": 5, "scope": "mine"}, accepted) == {
        "query": True, "limit": True, "scope": True,
    }  # fmt: skip
    assert matches({"query": "a black cat", "limit": True, "scope": "Mine"}, accepted) == {
        "query": False, "limit": False, "scope": False,
    }  # fmt: skip
    assert matches({"query": "x"}, {"query": ["x"], "limit": [3, ""], "scope": [""]}) == {"query": True}
    assert matches({"query": "x", "limit": 3}, {"query": ["x"], "limit": [3, ""], "scope": [""]}) == {"query": True}
    programs = {"code": ["for i in range(3):\n    print(i)"]}
    assert matches({"code": "for n in range(3): print(n)  # count"}, programs, "run") == {"code": True}
    assert matches({"code": "for n in range(4): print(n)"}, programs, "run") == {"code": False}


def test_word_overlap_is_f1_of_words():
    assert token_f1("the black cat", "Black cat.") == pytest.approx(0.8)
    assert token_f1("a", "b") == 0
    assert token_f1("", "?!") == 1


@pytest.mark.parametrize(
    ("reasoning", "is_sound"),
    [
        ("It asks for cats, e.g. black ones.", True),
        ("It asks for cats. That needs a search.", False),
        ("It needs search rather than chat.", False),
    ],
)
def test_reasoning_is_one_sentence_that_names_no_other_tool(reasoning, is_sound):
    assert is_reasoning_sound(parse_response(answer("search", {"query": "x"}, reasoning)), TOOLS) == is_sound
