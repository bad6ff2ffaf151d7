import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.repository import REPOSITORY
from tool_aware.chat_format import decode, encode_example, encode_prompt
from tool_aware.config.settings import load_config
from tool_aware.inference.constrained import AnswerGrammar
from tool_aware.inference.generation import generate
from tool_aware.inference.grammar import gbnf, lark, regex
from tool_aware.prompt import parse_response, render_response
from tool_aware.tools import Tool, Toolbox, ToolCall

TOOLS = load_config(REPOSITORY / "config.yaml").toolbox
WIDE = Toolbox(
    [
        Tool("plot-it", "draws", {
            "type": "object",
            "properties": {
                "kind": {"enum": ["line", "bar", 3]},
                "points": {"type": "array", "items": {"type": "number"}},
                "style": {"type": "object", "properties": {"bold": {"type": "boolean"}, "name": {"type": "string"}}},
                "note": {"type": ["string", "null"]},
                "anything": {},
            },
            "required": ["points"],
        }),
        Tool("ping", "takes nothing"),
    ]
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
ARGUMENTS = st.fixed_dictionaries(
    {"points": st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=3)},
    optional={
        "kind": st.sampled_from(["line", "bar", 3]),
        "style": st.sampled_from([{}, {"bold": True}, {"bold": False, "name": 'a "b"'}, {"name": "x"}]),
        "note": TEXT | st.none(),
        "anything": st.none() | TEXT | st.lists(st.integers(), max_size=2),
    },
)


def in_schema_order(arguments):
    return {name: arguments[name] for name in WIDE["plot-it"].properties if name in arguments}


@settings(max_examples=150, deadline=None)
@given(ARGUMENTS)
def test_the_regex_matches_every_answer_that_fits_the_schemas(arguments):
    answer = render_response(ToolCall("plot-it", in_schema_order(arguments), "Because it asks so."))
    assert re.fullmatch(regex(WIDE), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Tool: plot\nParameters: {}\nReasoning: unknown tool",
        "Tool: plot-it\nParameters: {}\nReasoning: points are required",
        'Tool: plot-it\nParameters: {"points": ["a"]}\nReasoning: no numbers',
        'Tool: plot-it\nParameters: {"kind": "pie", "points": []}\nReasoning: not in the enum',
        'Tool: plot-it\nParameters: {"points": [], "points": []}\nReasoning: twice',
        'Tool: plot-it\nParameters: {"points": [1,]}\nReasoning: not JSON',
        'Tool: ping\nParameters: {"x": 1}\nReasoning: undeclared',
        "Tool: ping\nParameters: {}\nReasoning: two\nlines",
        "Tool: ping\nParameters: {}\nReasoning: ",
    ],
)
def test_the_regex_refuses_what_the_schemas_refuse(answer):
    assert not re.fullmatch(regex(WIDE), answer)


def accepts(grammar, tokenizer, answer):
    """Whether llguidance lets every token of an answer pass, its end included."""
    import torch

    processor = grammar.processor([0])
    ids = encode_example(tokenizer, "x", answer).completion
    for step, token in enumerate(ids):
        scores = processor(torch.tensor([ids[:step]], dtype=torch.long), torch.zeros(1, 32000))
        if scores[0, token] == float("-inf"):
            return False
    return True


def test_llguidance_accepts_rendered_answers_and_enforces_bounds(tokenizer):
    grammar = AnswerGrammar(tokenizer, TOOLS, vocabulary=32000)
    good = (
        'Tool: web_search\nParameters: {"query": "Zürich \\"x\\" 東京", "num_results": 50}\nReasoning: It needs news.'
    )
    assert accepts(grammar, tokenizer, good)
    assert not accepts(grammar, tokenizer, good.replace("50", "51"))
    assert not accepts(grammar, tokenizer, good.replace("web_search", "web_browse"))


@pytest.mark.parametrize("batch_size", [2, 8])
def test_constrained_decoding_makes_even_a_random_model_call_tools_well_formed(quantized, tiny_tokenizer, batch_size):
    tools = Toolbox([Tool("ping", "p", {"type": "object", "properties": {"n": {"enum": [1, 2]}}}), Tool("stop", "s")])
    grammar = AnswerGrammar(tiny_tokenizer, tools, vocabulary=len(tiny_tokenizer))
    prompts = [encode_prompt(tiny_tokenizer, f"Choose. Query: {query}") for query in ("a", "why not", "17 * 23")]
    batches = generate(
        quantized, prompts, eos_id=2, max_new_tokens=400, batch_size=batch_size, make_processor=grammar.processor
    )
    answers = [answer for batch in batches for _, answer in batch]
    assert len(answers) == 3
    for answer in answers:
        text = decode(tiny_tokenizer, answer.ids)
        assert re.match(r'Tool: (ping\nParameters: \{("n": [12])?\}|stop\nParameters: \{\})\nReasoning: ', text)
        call = parse_response(text).call
        assert answer.is_truncated or (call and not tools.problems(call))


def test_the_grammars_of_config_yaml_are_what_they_were(request):
    """Golden text: engines read these files, so a change must be seen and meant."""
    for name, text in (("answer.gbnf", gbnf(TOOLS)), ("answer.regex", regex(TOOLS)), ("answer.lark", lark(TOOLS))):
        golden = REPOSITORY / "tests/golden/grammar" / name
        assert text == golden.read_text(encoding="utf-8"), name


def test_gbnf_rules_are_all_defined():
    text = gbnf(WIDE)
    defined = set(re.findall(r"^([a-z][a-zA-Z0-9-]*) ::=", text, re.MULTILINE))
    without_text = re.sub(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[0-9,]+\}', "", text)
    used = set(re.findall(r"[a-z][a-zA-Z0-9-]*", without_text))
    assert used == defined
    assert json.dumps("bold") not in text  # quotes inside literals are escaped
