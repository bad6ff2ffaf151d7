import contextlib

import pytest

from tool_aware.chat_format import encode_prompt
from tool_aware.inference.generation import generate, plan_batches
from tool_aware.inference.prefix_cache import shared_prefix_length

QUERIES = [
    "hi",
    "what is 17 * 23?",
    "latest news about rust 2.0 and what it means for people who write drivers",
    "find the onboarding policy",
    "sort this list: 3, 1, 2",
    "Ünïcode — 東京の天気は?",
    "who are you",
    "hi",
    "summarise the minutes of last week's meeting and mail them to everyone who was not there, please",
    "convert 3 miles to km",
]
PREAMBLE = "Choose a tool.\n\nTools:\n- a: does this\n- b: does that\n\nQuery: "
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    return [encode_prompt(tiny_tokenizer, PREAMBLE + query) for query in QUERIES]


@pytest.fixture(scope="module", params=["on", "off"])
def reference(request, quantized, prompts):
    """How the adapter is switched, an end-of-answer token, and the answers one by one with it."""
    with switched(quantized, request.param):
        # A random model never says EOS; a token that it does say stands in, so that rows end at different steps.
        eos_id = one_by_one(quantized, prompts[:1], eos_id=2)[0][5]
        expected = one_by_one(quantized, prompts, eos_id)
    assert len({tuple(ids) for ids in expected}) > 5  # the reference tells the prompts apart
    return request.param, eos_id, expected


def switched(model, adapter):
    return model.disable_adapter() if adapter == "off" else contextlib.nullcontext()


def one_by_one(model, prompts, eos_id):
    """The reference: transformers' own greedy search, one prompt at a time, without any cache sharing."""
    import torch

    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=eos_id,
            pad_token_id=0,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def batched(model, prompts, eos_id, batch_size):
    import torch

    answers = {}
    for batch in generate(model, prompts, eos_id=eos_id, max_new_tokens=NEW_TOKENS, batch_size=batch_size):
        assert not torch.is_inference_mode_enabled()  # between batches the caller's own code runs
        answers |= dict(batch)
    return [answers[index] for index in range(len(prompts))]


@pytest.mark.parametrize("has_drafts", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batched_answers_equal_greedy_generation_one_by_one(
    quantized, prompts, reference, batch_size, has_drafts, monkeypatch
):
    if not has_drafts:  # as on a GPU, or where memory does not suffice
        monkeypatch.setattr("tool_aware.engine.merged_layers.SHARE_OF_FREE", 0)
    adapter, eos_id, expected = reference
    with switched(quantized, adapter):
        answers = batched(quantized, prompts, eos_id, batch_size)
    for ids, answer in zip(expected, answers, strict=True):
        assert answer.is_truncated == (eos_id not in ids)
        assert answer.ids == (ids if answer.is_truncated else ids[:-1])
    assert any(answer.is_truncated for answer in answers)
    assert not all(answer.is_truncated for answer in answers)


def test_the_adapter_changes_the_answers(quantized, prompts):
    tuned = batched(quantized, prompts, 2, 16)
    with quantized.disable_adapter():
        base = batched(quantized, prompts, 2, 16)
    assert tuned != base


def test_batches_go_from_long_to_short_and_hold_every_prompt_once():
    batches = plan_batches([5, 9, 1, 7, 3], batch_size=2)
    assert batches == [[1, 3], [0, 4], [2]]
    assert plan_batches([4] * 10, batch_size=8) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]  # 5 + 5, not 8 + 2


def test_every_prompt_keeps_at_least_one_token_of_its_own():
    assert shared_prefix_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_prefix_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert shared_prefix_length([[1, 2, 3]]) == 2
