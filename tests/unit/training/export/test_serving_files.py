"""Servers of others write `tools` as the training prompt and read answers as calls, by files beside the weights."""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from dataclasses import dataclass, field

import jinja2
import pytest

from tests.fixtures import chat_templates as shapes
from tool_aware.chat_format import encode_prompt
from tool_aware.config.data_sections import ConversationSection
from tool_aware.history import shown_turns
from tool_aware.prompt import Turn, escape_controls, parse_response, render_instruction
from tool_aware.router_settings import RouterSettings
from tool_aware.tools import Toolbox
from tool_aware.training.export.serving_files import modelfile, write_serving_files
from tool_aware.training.export.tools_template import tools_template


@pytest.fixture(scope="module")
def settings(config):
    return RouterSettings.of(config).model_copy(update={"conversation": ConversationSection(max_turns=2)})


def offered(settings, *names):
    tools = settings.toolbox
    function = lambda name: {"name": name, "description": "other words", "parameters": dict(tools[name].parameters)}  # noqa: E731
    return [{"type": "function", "function": function(name)} for name in names or reversed(tools.names)]


def rendered_ids(tokenizer, settings, messages, tools):
    template = tools_template(tokenizer, settings)
    text = tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def user(content):
    return {"role": "user", "content": content}


def called(name):
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name, "arguments": "{}"}}]}


TEMPLATES = ["CHATML_WITH_SYSTEM", "THINKING", "LLAMA_3", "GEMMA", "ZEPHYR", "MISTRAL_TEKKEN"]


@pytest.mark.parametrize("shape", ["Mistral", *TEMPLATES])
def test_a_request_with_tools_gets_the_ids_of_the_trained_prompt(tokenizer, settings, shape):
    tokenizer = tokenizer if shape == "Mistral" else shapes.byte_level_tokenizer(getattr(shapes, shape))
    query = "and Norway [INST]? < ü 日本 }} %} {{ x"
    messages = [
        {"role": "system", "content": "Be kind."},
        user("one too many"),
        called("web_search"),
        user([{"type": "text", "text": "leave in\r"}, {"type": "text", "text": " \tSweden " + "x" * 500}]),
        called("rag_retrieval"),
        {"role": "tool", "content": "480 days", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is 480 days."},
        user("thanks"),
        {"role": "assistant", "content": "You are welcome."},
        user(f" {query}\n"),
    ]
    turns = [Turn("leave in\r\n \tSweden " + "x" * 500, "rag_retrieval"), Turn("thanks", "direct_chat")]
    assert shown_turns(turns, settings.conversation) == tuple(turns)
    expected = encode_prompt(tokenizer, render_instruction(query, settings.toolbox, turns))
    assert rendered_ids(tokenizer, settings, messages, offered(settings)) == expected
    some = Toolbox(settings.toolbox[name] for name in ("rag_retrieval", "web_search"))
    expected = encode_prompt(tokenizer, render_instruction("hi", some))
    assert rendered_ids(tokenizer, settings, [user("hi")], offered(settings, "web_search", "rag_retrieval")) == expected


def test_control_tokens_that_a_user_typed_stay_text(tokenizer, settings):
    ids = rendered_ids(tokenizer, settings, [user("a</s><s>b")], offered(settings))
    assert ids == encode_prompt(tokenizer, render_instruction(escape_controls("a</s><s>b"), settings.toolbox))
    assert tokenizer.eos_token_id not in ids


def test_without_tools_it_is_the_models_own_template(tokenizer, settings):
    template = tools_template(tokenizer, settings)
    for messages in ([user("hi")], [user("a"), {"role": "assistant", "content": "b"}, user("c")]):
        ours, own = (
            tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False)
            for text in (template, tokenizer.chat_template)
        )
        assert ours == own


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([user("hi")], [{"function": {"name": "weather"}}], "was not trained with weather; it knows rag_retrieval"),
        (
            [user("hi")],
            [{"function": {"name": "web_search", "parameters": {"properties": {"zip": {}}}}}],
            "knows no parameter zip of web_search",
        ),
        ([user("hi"), called("web_search"), {"role": "tool", "content": "x"}], None, "writes no answers"),
        ([user("hi"), called("web_search")], None, "the last one must be a user turn"),
        ([user([{"type": "text", "text": "hi"}, {"type": "image"}])], None, "a part of a user turn is no text"),
        ([user(" ")], None, "the last one must be a user turn with a text"),
    ],
)
def test_what_the_model_cannot_be_asked_is_refused(tokenizer, settings, messages, tools, message):
    with pytest.raises(jinja2.TemplateError, match=message):
        rendered_ids(tokenizer, settings, messages, tools or offered(settings))


def test_a_template_that_would_give_other_prompts_is_not_written(tokenizer, settings, tmp_path, capsys):
    odd = shapes.byte_level_tokenizer("{% if known %}!{% endif %}" + shapes.CHATML)
    write_serving_files(tmp_path, odd, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["Modelfile"]
    assert "no chat_template_tools.jinja" in capsys.readouterr().err
    write_serving_files(tmp_path, tokenizer, settings)
    assert {path.name for path in tmp_path.iterdir()} == {
        "Modelfile",
        "chat_template_tools.jinja",
        "vllm_tool_parser.py",
    }


# ---- the parser ------------------------------------------------------------------------------------------


@dataclass
class Part:
    """Stands in for the classes of vLLM's replies, which only hold values."""

    name: str = ""
    arguments: str = ""
    id: str = "call-1"
    type: str = ""
    index: int = 0
    content: str | None = None
    function: object = None
    tools_called: bool = False
    tool_calls: list = field(default_factory=list)
    regex: str = ""


@pytest.fixture(scope="module")
def plugin():
    """The plugin, imported where vLLM's own modules are stood in for."""

    class ToolParser:
        def __init__(self, tokenizer, tools=None):
            pass

        def adjust_request(self, request):
            return request

    replies = ("DeltaFunctionCall", "DeltaMessage", "DeltaToolCall", "ExtractedToolCallInformation", "FunctionCall")
    manager = types.SimpleNamespace(register_module=lambda name, module: None)
    contents = {
        "vllm.entrypoints.generate.base.protocol": dict.fromkeys((*replies, "ToolCall"), Part),
        "vllm.sampling_params": {"StructuredOutputsParams": Part},
        "vllm.tool_parsers.abstract_tool_parser": {"ToolParser": ToolParser, "ToolParserManager": manager},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, content in contents.items():
            for end in range(1, name.count(".") + 2):
                part = ".".join(name.split(".")[:end])
                patch.setitem(sys.modules, part, sys.modules.get(part, types.ModuleType(part)))
            sys.modules[name].__dict__.update(content)
        yield importlib.import_module("tool_aware.training.export.vllm_tool_parser")
    sys.modules.pop("tool_aware.training.export.vllm_tool_parser")


CALL = 'Tool: x\nParameters: {"a": [1, true, null, -1.5e3, "\\u00fc }\\n"]}\nReasoning: because "so"'
BROKEN = [
    "",
    "Sure! Tool: x",
    "Tool: x",
    "Tool: a b\nParameters: {}\nReasoning: r",
    "Tool: x\nParameters: {'a': 1}\nReasoning: r",
    "Tool: x\nParameters: [1]\nReasoning: r",
    'Tool: x\nParameters: {"a": NaN}\nReasoning: r',
    "Tool: x\nParameters: " + "[" * 10_000,
    'Tool: x\nParameters: {"a": 1}',
    'Tool: x\nParameters: {"a": 1} Reasoning: r',
    'Tool: x\nParameters: {"a": 1}\nReasoning: ',
    'Tool: x\nParameters: {"a": 1}\nReasoning: r\nTool: y',
    'Tool: x\nParameters: {"a": 1}\nAnd: r',
]
TOOLS = [types.SimpleNamespace(function=types.SimpleNamespace(name=name)) for name in ("x", "y")]
REQUEST = types.SimpleNamespace(tools=TOOLS, tool_choice="auto")


def streamed(plugin, text, step):
    parser = plugin.ToolAwareParser(None)
    found = [
        parser.extract_tool_calls_streaming(text[: end - step], text[:end], "", [], [], [], REQUEST)
        for end in range(step, len(text) + step, step)
    ]
    calls = [(call.function.name, call.function.arguments) for part in found if part for call in part.tool_calls]
    return calls, "".join(part.content or "" for part in found if part)


def test_answers_are_calls_where_the_toolkit_reads_one(plugin, toy_rows):
    answers = [CALL, f" {CALL}\n", 'Tool: x\n\nParameters: {\n "a": 1\n}\n\nReasoning:  r ', *BROKEN]
    answers += [row.response.replace(row.tool, "x", 1) for row in toy_rows[:20]]
    parser = plugin.ToolAwareParser(None)
    for text in answers:
        own, found = parse_response(text).call, parser.extract_tool_calls(text, REQUEST)
        assert found.tools_called is (own is not None), text
        if own is None:
            assert (found.content, found.tool_calls) == (text, [])
            continue
        (call,) = found.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == (own.tool, own.parameters)
        assert found.content == own.reasoning


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_stream_gives_the_same_call_and_what_is_none_as_text(plugin, step):
    ((name, arguments),), content = streamed(plugin, CALL, step)
    own = parse_response(CALL).call
    assert (name, json.loads(arguments), content) == (own.tool, own.parameters, own.reasoning)
    for text in ("Sure! Tool: x", "Tool: a b\nParameters: {}", CALL.replace("x", "z", 1), BROKEN[4], BROKEN[12]):
        assert streamed(plugin, text, step) == ([], text)


def test_a_demanded_call_puts_the_names_under_a_grammar(plugin):
    for choice, names in (("required", "x|y"), (TOOLS[1], "y"), ("auto", None)):
        request = types.SimpleNamespace(tools=TOOLS, tool_choice=choice, structured_outputs=None)
        grammar = plugin.ToolAwareParser(None).adjust_request(request).structured_outputs
        assert (grammar and re.search(r"Tool: \((.*?)\)", grammar.regex)[1]) == names
        if names:
            assert re.fullmatch(grammar.regex, CALL.replace("x", names[-1], 1))


# ---- Ollama ----------------------------------------------------------------------------------------------

INSTRUCTION = re.compile(r'(FROM|TEMPLATE|PARAMETER) (?:"""(.*?)"""|([^\n]*))\n|#[^\n]*\n', re.DOTALL)
PARAMETERS = {"temperature", "top_k", "repeat_penalty", "num_ctx", "num_predict", "stop"}  # of Ollama's reference


@pytest.mark.parametrize("shape", ["Mistral", "CHATML_WITH_SYSTEM", "LLAMA_3"])
def test_the_modelfile_has_ollamas_form_and_the_trained_prompt(tokenizer, settings, shape):
    tokenizer = tokenizer if shape == "Mistral" else shapes.byte_level_tokenizer(getattr(shapes, shape))
    text = modelfile(tokenizer, settings)
    found = list(INSTRUCTION.finditer(text))
    assert "".join(one[0] for one in found) == text
    values = [(one[1], one[2] or one[3]) for one in found if one[1]]
    assert [name for name, _ in values if name != "PARAMETER"] == ["FROM", "TEMPLATE"]
    parameters = dict(value.split(" ", 1) for name, value in values if name == "PARAMETER")
    assert parameters.keys() == PARAMETERS
    assert parameters["temperature"] == "0"
    template = dict(values)["TEMPLATE"]
    prompt = render_instruction("hi", settings.toolbox)
    ids = tokenizer(template.replace("{{ .Prompt }}", prompt), add_special_tokens=False)["input_ids"]
    begin = [tokenizer.bos_token_id] if shape == "Mistral" else []  # which Ollama puts there
    assert begin + ids == encode_prompt(tokenizer, prompt)
