"""The grammar against reference answers, token by token as they are trained."""

import re

import pytest
import torch

from tests.fixtures import chat_templates as shapes
from tests.fixtures.changed_tokenizer import SENTENCEPIECE_DECODER, changed
from tool_aware.chat_format import chat_format, decode, encode_example, encode_prompt, end_id
from tool_aware.console import UserError
from tool_aware.dataset.synthesis.content import load_content
from tool_aware.dataset.synthesis.generator import Generator
from tool_aware.demo.toy_model import vocabulary_file
from tool_aware.inference.constrained import AnswerGrammar
from tool_aware.inference.generation import generate
from tool_aware.inference.grammar import gbnf, lark, regex
from tool_aware.inference.grammar_check import ROWS_CHECKED, check_references
from tool_aware.prompt import parse_response
from tool_aware.rows import Row
from tool_aware.tokenizer import build_tokenizer
from tool_aware.tools import Tool, Toolbox

FAMILIES = ["tokenizer", "byte_level_tokenizer"]


@pytest.fixture(scope="module")
def made(config):
    """300 rows of all tools, many languages, programs among them."""
    generator = Generator(load_content(), config.toolbox, seed=7)
    return [row for name in config.toolbox.names for row in generator.rows_for(name, 75)]


def numbered(rows):
    return dict(enumerate(rows))


@pytest.fixture(scope="module")
def misread(byte_level_tokenizer):
    """A tokenizer that writes spaces and line ends in the byte-level alphabet in a way that only running it shows."""
    steps = [{"type": "Replace", "pattern": {"Regex": of}, "content": to} for of, to in ((" ", "Ġ"), ("\n", "Ċ"))]
    normalizer = {"type": "Sequence", "normalizers": steps}
    return changed(byte_level_tokenizer, normalizer=normalizer, pre_tokenizer=None, decoder=SENTENCEPIECE_DECODER)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_generated_answer_passes_token_by_token(family, request, made, config):
    tokenizer = request.getfixturevalue(family)
    grammar = AnswerGrammar(tokenizer, config.toolbox)
    assert len(made) == 300
    for row in made:
        ids = encode_example(tokenizer, row.instruction, row.response).completion
        assert grammar.accepted(ids) == len(ids), row.response
        assert grammar.accepted([*ids[:4], ids[-1]]) == 4  # no end in the middle of an answer
    assert check_references(grammar, tokenizer, numbered(made), path="test.json") == []


@pytest.mark.parametrize(
    ("family", "template"),
    [
        *(("bytes", name) for name in ("THINKING", "LLAMA_3", "GEMMA", "MISTRAL_V7", "ZEPHYR", "LLAMA_2")),
        *(("pieces", name) for name in ("ZEPHYR", "LLAMA_2")),
    ],
)
def test_answers_pass_under_any_chat_template(family, template, made, config):
    """Some write a space before an answer, some white space between it and its end, some neither."""
    text = getattr(shapes, template)
    pieces = family == "pieces"
    tokenizer = build_tokenizer(vocabulary_file(), chat_template=text) if pieces else shapes.byte_level_tokenizer(text)
    grammar = AnswerGrammar(tokenizer, config.toolbox)
    assert check_references(grammar, tokenizer, numbered(made[::5]), path="test.json") == []


@pytest.mark.parametrize("tail", [" ", "\n", " /", "\\x"])
def test_what_a_template_writes_behind_an_answer_belongs_to_the_grammar(tail, toy_rows, config):
    other = shapes.byte_level_tokenizer(shapes.CHATML.replace("m.content", f"m.content + {tail!r}"))
    assert chat_format(other).tail == tail
    assert check_references(AnswerGrammar(other, config.toolbox), other, numbered(toy_rows), path="test.json") == []


def test_answers_pass_where_the_tokenizer_came_from_a_gguf_file(byte_level_tokenizer, made, config):
    from_gguf = changed(byte_level_tokenizer, decoder=SENTENCEPIECE_DECODER)
    grammar = AnswerGrammar(from_gguf, config.toolbox)
    assert check_references(grammar, from_gguf, numbered(made), path="test.json") == []


def test_a_misread_vocabulary_is_one_message_with_row_text_token_and_versions(misread, made, config):
    grammar = AnswerGrammar(misread, config.toolbox)
    with pytest.raises(UserError) as caught:
        check_references(grammar, misread, numbered(made), path="data/test.json")
    assert caught.value.where == "data/test.json: row 1"
    assert re.search(
        r"after 'Tool:' llguidance refuses the token 'Ġ\w*' \(id \d+\), which it reads as 'Ġ\w*' "
        r"\(llguidance [\d.]+, transformers [\d.]+, tokenizers [\d.]+\)",
        caught.value.what,
    )
    assert "--no-constrained" in caught.value.fix


def test_an_answer_outside_the_schema_is_the_rows_fault_and_only_said(tokenizer, toy_rows, config):
    odd = [
        Row(toy_rows[0].instruction, response)
        for response in (
            'Tool: web_search\nParameters: {"query": "x", "num_results": 51}\nReasoning: More than there may be.',
            'Tool: web_search\nParameters: {"num_results": 5, "query": "x"}\nReasoning: The other order.',
        )
    ]
    grammar = AnswerGrammar(tokenizer, config.toolbox)
    (note,) = check_references(grammar, tokenizer, numbered([*toy_rows[:3], *odd]), path="test.json")
    assert "2 of the first 5 reference answers" in note
    assert "row 4" in note


def test_only_the_first_rows_are_read(misread, toy_rows, config):
    outside = Row(toy_rows[0].instruction, "Tool: none\nParameters: {}\nReasoning: No such tool.")
    rows = numbered([outside] * ROWS_CHECKED + toy_rows)
    (note,) = check_references(AnswerGrammar(misread, config.toolbox), misread, rows, path="test.json")
    assert f"{ROWS_CHECKED} of the first {ROWS_CHECKED}" in note


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_grammars_take_an_answer_as_its_tokens_spell_it(family, request, toy_rows, config):
    from llguidance import LLMatcher, LLTokenizer
    from llguidance.gbnf_to_lark import gbnf_to_lark

    tokenizer, tools = request.getfixturevalue(family), config.toolbox
    spelt = AnswerGrammar(tokenizer, tools).text_of(
        encode_example(tokenizer, toy_rows[0].instruction, toy_rows[0].response).completion[:-1]
    )
    assert spelt.startswith(" Tool: " if family == "tokenizer" else "Tool: ")
    assert re.fullmatch(regex(tools), spelt)
    for grammar in (lark(tools), gbnf_to_lark(gbnf(tools))):
        for text, is_taken in ((spelt, True), (f"  {spelt}", False)):
            matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
            assert (matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()) is is_taken


def test_a_byte_level_model_of_random_weights_answers_well_formed(byte_level_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    tools = Toolbox([Tool("ping", "p", {"type": "object", "properties": {"n": {"enum": [1, 2]}}}), Tool("stop", "s")])
    torch.manual_seed(0)
    vocabulary = len(byte_level_tokenizer) + 24  # embeddings are often padded
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, initializer_range=0.3, **shape)).eval()
    grammar = AnswerGrammar(byte_level_tokenizer, tools, vocabulary=vocabulary)
    prompts = [encode_prompt(byte_level_tokenizer, f"Query: {query}") for query in ("a", "why not", "17 * 23", "b c d")]
    batches = generate(
        model,
        prompts,
        eos_id=end_id(byte_level_tokenizer),
        max_new_tokens=500,
        batch_size=3,  # the second batch has a filler row
        make_processor=grammar.processor,
    )
    answers = [answer for batch in batches for _, answer in batch]
    assert len(answers) == len(prompts)
    for answer in answers:
        call = parse_response(decode(byte_level_tokenizer, answer.ids)).call
        assert call is not None
        assert not tools.problems(call)


def test_a_token_that_is_refused_in_the_middle_of_an_answer_stops_the_run(tokenizer, config):
    processor = AnswerGrammar(tokenizer, config.toolbox, vocabulary=32000).processor([0])
    processor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 32000))
    with pytest.raises(UserError, match=r"broke off within an answer: .*llguidance") as caught:
        processor(torch.tensor([[100]]), torch.zeros(1, 32000))
    assert "--no-constrained" in caught.value.fix
    assert "answers so far are kept" in caught.value.fix
