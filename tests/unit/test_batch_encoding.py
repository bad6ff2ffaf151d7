"""Examples that are tokenised together have the ids that each has alone, and what they share is tokenised once."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerFast

from tests.fixtures import chat_templates as shapes
from tests.unit.test_prompt import PIECES
from tool_aware.batch_encoding import encode_examples
from tool_aware.chat_format import encode_example
from tool_aware.demo.toy_model import vocabulary_file
from tool_aware.prompt import Turn, render_preamble, render_question
from tool_aware.tokenizer import build_tokenizer

TOKENIZERS = {
    "mistral": lambda: build_tokenizer(vocabulary_file()),
    "mistral tekken": lambda: shapes.byte_level_tokenizer(shapes.MISTRAL_TEKKEN),
    "zephyr": lambda: build_tokenizer(vocabulary_file(), chat_template=shapes.ZEPHYR),
    "chatml": lambda: shapes.byte_level_tokenizer(shapes.CHATML_WITH_SYSTEM, split=shapes.GPT2_SPLIT),
    "llama 3": lambda: shapes.byte_level_tokenizer(shapes.LLAMA_3),
    "a control token takes spaces": lambda: shapes.with_rstrip(shapes.CHATML, "<|im_start|>", "<|im_end|>"),
}


def with_token(text):
    """A tokenizer that has a text as one token, wherever it stands."""
    tokenizer = shapes.byte_level_tokenizer(shapes.CHATML)
    tokenizer.add_tokens([text])
    return tokenizer


def pairs_of(config, count=24):
    """Prompts with the same tools and random questions, one of them after an earlier turn, and answers."""
    generator, preamble = random.Random(1), render_preamble(config.toolbox)
    texts = ["".join(generator.choice(PIECES) for _ in range(generator.randint(0, 30))) for _ in range(count)]
    questions = [render_question(text, [Turn("hello", "web_search")] if text == texts[3] else ()) for text in texts]
    return preamble, [(preamble + question, f"Tool: x\nReasoning: {question[9:]}.") for question in questions]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_are_those_of_each_example_alone(config, kind):
    tokenizer = TOKENIZERS[kind]()
    preamble, pairs = pairs_of(config, count=40)
    alone = [encode_example(tokenizer, *pair) for pair in pairs]
    for shared in (preamble, "", "another text", preamble.strip()[:-3], "\n"):
        assert encode_examples(tokenizer, pairs, shared=shared) == alone
    assert encode_examples(tokenizer, pairs[:1], shared=preamble) == alone[:1]
    assert encode_examples(tokenizer, []) == []


@pytest.mark.parametrize("token", ["\nReasoning: <one", "values>\nR", "value>\nReasoning", "query>\n\nQuery"])
def test_a_token_over_the_line_end_is_not_cut(config, token):
    tokenizer = with_token(token)
    preamble, pairs = pairs_of(config)
    alone = [encode_example(tokenizer, *pair) for pair in pairs]
    assert encode_examples(tokenizer, pairs, shared=preamble) == alone


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_prompts_share_is_tokenised_once(config, kind, monkeypatch):
    tokenizer, texts = TOKENIZERS[kind](), list[str]()
    call = PreTrainedTokenizerFast.__call__

    def counted(self, text, **options):
        texts.extend([text] if isinstance(text, str) else text)
        return call(self, text, **options)

    preamble, pairs = pairs_of(config)
    encode_examples(tokenizer, pairs[:2], shared=preamble)
    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    encode_examples(tokenizer, pairs, shared=preamble)
    assert sum("Choose the one tool" in text for text in texts) == 1


def test_texts_beyond_the_models_length_are_left_to_transformers_which_warns(config, monkeypatch):
    tokenizer, calls = TOKENIZERS["mistral"](), list[int]()
    call = PreTrainedTokenizerFast.__call__

    def counted(self, text, **options):
        calls.append(len(text))
        return call(self, text, **options)

    _, pairs = pairs_of(config, count=40)
    within = encode_examples(tokenizer, pairs)
    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    tokenizer.model_max_length = 100
    assert encode_examples(tokenizer, pairs) == within
    first, again = calls  # the first one sets how the tokenizer reads control tokens
    assert first == 1
    assert again >= 2 * len(pairs)
