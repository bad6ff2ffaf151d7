"""Answers with drafts are those of decoding token by token, whatever the drafts are."""

from __future__ import annotations

import pytest

from tests.fixtures.architectures import tiny_model
from tests.unit.engine.test_decoder import model_with_adapter
from tool_aware.chat_format import encode_prompt
from tool_aware.console import Fallbacks
from tool_aware.engine import merged_layers as merging
from tool_aware.engine.merged_layers import MergedLayers, merged_layers
from tool_aware.inference.constrained import AnswerGrammar
from tool_aware.inference.drafted_decoding import DraftingDecoder
from tool_aware.inference.drafts import MOST_CONTEXTS, Drafter, Phrases
from tool_aware.inference.generation import BatchDecoder, Generation, generate
from tool_aware.inference.prefix_cache import Prefix
from tool_aware.tools import Tool, Toolbox

NO_EOS = -1
TIMES = 5  # that a text is learnt: its drafts are then taken for nearly certain


class CountedLayers(MergedLayers):
    """Layers that count the passes over them, and the tokens of each."""

    def __init__(self, model):
        super().__init__(model)
        self.fed = []

    def logits(self, ids, *others):
        self.fed.append(len(ids))
        return super().logits(ids, *others)


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    queries = ("a", "why not, and if so, why?", "17 * 23")
    return [encode_prompt(tiny_tokenizer, f"Choose. Query: {query}") for query in queries]


@pytest.fixture(scope="module")
def layers(quantized):
    return CountedLayers(quantized)


@pytest.fixture(scope="module")
def prefix(quantized, prompts):
    return Prefix.shared_by(quantized, prompts)


@pytest.fixture(scope="module")
def grammar(tiny_tokenizer):
    tools = Toolbox([Tool("ping", "p", {"type": "object", "properties": {"n": {"enum": [1, 2]}}}), Tool("stop", "s")])
    return AnswerGrammar(tiny_tokenizer, tools, vocabulary=len(tiny_tokenizer))


def step_by_step(model, prefix, prompts, limit, eos_id=NO_EOS, grammar=None):
    """Return the answers of the decoder without drafts."""
    decoder = BatchDecoder(
        model,
        prefix,
        rows=len(prompts),
        longest=max(map(len, prompts)),
        eos_id=eos_id,
        max_new_tokens=limit,
        fallbacks=Fallbacks(),
    )
    members = list(range(len(prompts)))
    return decoder.run(prompts, members, grammar.processor(members) if grammar else None)


def drafted(layers, prefix, prompts, limit, eos_id=NO_EOS, grammar=None, phrases=None):
    """Return the answers with drafts, and the tokens of each pass."""
    decoder = DraftingDecoder(layers, prefix, phrases or Phrases(), eos_id=eos_id, max_new_tokens=limit)
    members, layers.fed = list(range(len(prompts))), []
    return decoder.run(prompts, members, grammar.processor(members) if grammar else None), layers.fed


def phrases_of(prompts, answers):
    phrases = Phrases()
    for _ in range(TIMES):
        for prompt, ids in zip(prompts, answers, strict=True):
            phrases.learn([*prompt[-4:], *ids], 4)
    return phrases


def test_right_drafts_save_passes_and_wrong_ones_change_nothing(quantized, layers, prefix, prompts):
    expected = step_by_step(quantized, prefix, prompts, 24)
    right = [answer.ids for answer in expected]
    wrong = [[token if place % 3 else token + 1 for place, token in enumerate(ids)] for ids in right]
    for drafts, fewest, most in ((right, 0, 8), (wrong, 9, 24)):
        answers, passes = drafted(layers, prefix, prompts, 24, phrases=phrases_of(prompts, drafts))
        assert answers == expected
        assert fewest <= len(passes) <= most
        assert sum(passes[1:]) > 3 * len(passes[1:])  # drafts were fed


def test_an_end_within_a_draft_ends_the_answer(quantized, layers, prefix, prompts):
    longer = step_by_step(quantized, prefix, prompts[:1], 24)[0].ids
    eos_id = longer[9]
    expected = step_by_step(quantized, prefix, prompts[:1], 24, eos_id)
    assert expected == [Generation(longer[: longer.index(eos_id)], is_truncated=False)]
    phrases = phrases_of(prompts[:1], [longer])
    answers, passes = drafted(layers, prefix, prompts[:1], 24, eos_id, phrases=phrases)
    assert answers == expected
    assert len(passes) <= 2


@pytest.mark.parametrize("limit", [1, 2, 7, 12, 13])
def test_a_draft_ends_at_the_limit(quantized, layers, prefix, prompts, grammar, limit):
    """The limits cut what the grammar forces, too: `Parameters: {`."""
    expected = step_by_step(quantized, prefix, prompts, limit, 2, grammar)
    assert all(len(answer.ids) == limit and answer.is_truncated for answer in expected)
    phrases = phrases_of(prompts, [[*answer.ids, 7, 8, 9] for answer in expected])
    assert drafted(layers, prefix, prompts, limit, 2, grammar, phrases)[0] == expected


def test_a_grammar_refuses_drafts_and_its_forced_tokens_need_no_pass_each(quantized, layers, prefix, prompts, grammar):
    free = [answer.ids for answer in step_by_step(quantized, prefix, prompts, 40)]
    expected = step_by_step(quantized, prefix, prompts, 40, 2, grammar)
    assert [answer.ids for answer in expected] != free
    answers, passes = drafted(layers, prefix, prompts, 40, 2, grammar, phrases_of(prompts, free))
    assert answers == expected
    assert len(passes) < 36


def test_answers_are_learnt_for_the_next_ones(layers, prefix, prompts):
    phrases = Phrases()
    first, before = drafted(layers, prefix, prompts[:1], 24, phrases=phrases)
    for _ in range(TIMES):
        again, after = drafted(layers, prefix, prompts[:1], 24, phrases=phrases)
        assert again == first
    assert len(after) < len(before)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_models_and_adapters_answer_the_same(family):
    model = model_with_adapter(family=family)
    prompts = [[*range(20, 60), *range(number, number + length)] for number, length in enumerate((5, 1, 30, 2))]
    expected = step_by_step(model, Prefix.shared_by(model, prompts), prompts, 16)
    for layers in (CountedLayers(model), CountedLayers(model.merge_and_unload())):
        assert drafted(layers, Prefix.shared_by(model, prompts), prompts, 16)[0] == expected


def test_what_cannot_be_merged_is_answered_step_by_step(monkeypatch, quantized, prompts):
    import torch

    assert merged_layers(quantized, 100)
    assert merged_layers(tiny_model("mistral", vocab_size=1000).to(torch.bfloat16), 100) is None  # would be rounded
    expected = [
        answer for batch in generate(quantized, prompts, eos_id=2, max_new_tokens=8, batch_size=3) for answer in batch
    ]
    monkeypatch.setattr(merging, "SHARE_OF_FREE", 0)
    assert merged_layers(quantized, 100) is None
    batches = generate(quantized, prompts, eos_id=2, max_new_tokens=8, batch_size=3)
    assert [answer for batch in batches for answer in batch] == expected


def test_a_draft_goes_on_as_long_as_its_odds_suffice():
    phrases = Phrases()
    phrases.learn([1, 2, 3, 4, 5, 6, 7, 8])
    drafter = Drafter([9, 1, 2, 3], phrases)
    assert drafter.draft([], most=8, least=0.9) == []  # seen once
    for _ in range(3):
        phrases.learn([1, 2, 3, 4, 5, 6, 7, 8])
    assert drafter.draft([], most=8, least=0.9) == [4, 5, 6, 7, 8]
    assert drafter.draft([], most=2, least=0.9) == [4, 5]
    assert drafter.draft([4, 11], most=8, least=0.9) == [4, 11]  # nothing is known behind 11
    phrases.learn([1, 2, 3, 12])
    assert drafter.draft([], most=8, least=0.9) == []  # what came last counts, and it came once
    assert Drafter([5, 6, 5], Phrases()).draft([], most=1, least=0.5) == [6]  # out of the prompt itself


def test_of_very_many_answers_the_last_ones_are_known():
    phrases = Phrases()
    texts = [list(range(100 * number, 100 * number + 100)) for number in range(MOST_CONTEXTS // 100)]
    for text in texts:
        phrases.learn(text)
    assert phrases.behind((texts[-1][0],)).token == texts[-1][1]
    assert phrases.behind((texts[0][0],)) is None
