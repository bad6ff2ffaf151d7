"""Tools as public MCP servers, OpenAPI and pydantic write them: read, shown, held to and judged whole."""

import json
import re

import llguidance
import pytest
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from tests.fixtures.repository import REPOSITORY
from tool_aware.dataset.imports.foreign_tools import tools_of
from tool_aware.evaluation.scoring.judgement import Prediction, judge
from tool_aware.inference.constrained import readable_schemas
from tool_aware.inference.grammar import gbnf, lark, regex
from tool_aware.prompt import render_preamble, render_response
from tool_aware.rows import Row
from tool_aware.tool_lines import tool_line
from tool_aware.tool_schema import schema_problems
from tool_aware.tools import Tool, Toolbox, ToolCall

PUBLIC = json.loads((REPOSITORY / "tests/fixtures/public_tools.json").read_text(encoding="utf-8"))
TOOLS = {item["name"]: Tool(item["name"], item["description"], item["inputSchema"]) for item in PUBLIC}


def accepts(grammar, text):
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    return matcher.consume_tokens(tokenizer.tokenize_str(text)) and matcher.is_accepting()


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item["name"])
def test_a_call_fits_every_grammar_and_is_right_if_it_is_the_references(item):
    assert schema_problems(item["name"], item["inputSchema"]) == []
    tool = TOOLS[item["name"]]
    tools = Toolbox([tool])
    readable = readable_schemas(tools).schemas
    for asked in item["asked"]:
        given = {name: asked["arguments"][name] for name in tool.properties if name in asked["arguments"]}
        answer = render_response(ToolCall(tool.name, given, "It asks so."))
        assert accepts(lark(tools, schemas=readable), answer)
        assert accepts(gbnf_to_lark(gbnf(tools)), answer)
        assert re.fullmatch(regex(tools), answer)
        found = judge(Prediction(0, answer), Row("do it", answer, {"source": "t", "tool": tool.name}), tools)
        assert (found.is_call_correct, found.is_bfcl_valid, found.fits_schema) == (True, True, True)


def test_their_lines_are_half_as_long_as_their_schemas_in_the_prompt():
    shown = {name: tool_line(tool).removesuffix(f": {tool.description}") for name, tool in TOOLS.items()}
    nested = {name: len(line) for name, line in shown.items() if "{" in line}
    assert len(nested) >= 14
    plain = {name: len(json.dumps(TOOLS[name].properties)) for name in nested}
    assert sum(nested.values()) < sum(plain.values()) / 2
    assert len(render_preamble(Toolbox(TOOLS.values())).partition("Tools:\n")[2].split("\n\n")[0].splitlines()) == len(
        TOOLS
    )


def test_they_are_imported_as_mcp_and_openai_send_them():
    sent = [{key: value for key, value in item.items() if key != "asked"} for item in PUBLIC]
    as_openai = [
        {"type": "function", "function": {"name": item["name"], "description": item["description"],
                                          "parameters": item["inputSchema"]}} for item in PUBLIC
    ]  # fmt: skip
    for listed in (sent, json.dumps(sent), {"tools": sent}, as_openai):
        assert [tool.parameters for tool in tools_of(listed).toolbox] == [tool.parameters for tool in TOOLS.values()]


def backwards(value):
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(value)}
    return list(map(backwards, value)) if isinstance(value, list) else value


def test_imported_calls_have_their_names_in_the_order_that_grammars_write():
    for item in PUBLIC:
        tool = TOOLS[item["name"]]
        for asked in item["asked"]:
            ordered = tool.in_order(backwards(asked["arguments"]))
            assert ordered == asked["arguments"]
            answer = render_response(ToolCall(tool.name, ordered, "It asks so."))
            assert re.fullmatch(regex(Toolbox([tool])), answer), answer
