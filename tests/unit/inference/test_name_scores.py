import contextlib
import math

import pytest

from tool_aware.chat_format import encode_prompt, tool_label_tokens, tool_name_tokens
from tool_aware.inference.name_scores import NameTrie, probabilities, score_names

NAMES = ["rag_retrieval", "web_search", "web_search_news", "web", "code_execution", "direct_chat"]
QUERIES = ["hi", "latest news about the elections in four countries", "17 * 23", "who wrote Faust?", "東京の天気は?"]


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    label = tool_label_tokens(tiny_tokenizer)
    return [encode_prompt(tiny_tokenizer, f"Choose a tool.\n\nQuery: {query}") + label for query in QUERIES]


def name_by_name(model, prompt, ids):
    """The reference: log p(name | prompt) from a plain forward pass over prompt + name."""
    import torch

    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([prompt + ids])).logits[0].float().log_softmax(-1)
    return sum(log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))


@pytest.mark.parametrize("adapter", ["on", "off"])
def test_one_pass_over_the_trie_equals_a_pass_per_name(quantized, tiny_tokenizer, prompts, adapter):
    names = tool_name_tokens(tiny_tokenizer, NAMES)
    with quantized.disable_adapter() if adapter == "off" else contextlib.nullcontext():
        scores = {}
        for batch in score_names(quantized, prompts, names, batch_size=2):
            scores |= dict(batch)
        for index, prompt in enumerate(prompts):
            for name, ids in names.items():
                assert scores[index][name] == pytest.approx(name_by_name(quantized, prompt, ids), abs=2e-4)


def test_names_that_begin_alike_share_their_nodes_and_none_is_a_prefix_of_another(tokenizer):
    names = tool_name_tokens(tokenizer, ["web", "web_search"])
    trie = NameTrie.of(names)
    assert trie.parents.count(-1) == 1
    assert len(trie.tokens) < sum(len(ids) - 1 for ids in names.values())
    assert all([token for _, token in trie.paths[name]] == ids for name, ids in names.items())


def test_probabilities_sum_to_one_and_temperature_flattens_them():
    sharp = probabilities({"a": -1.0, "b": -3.0})
    flat = probabilities({"a": -1.0, "b": -3.0}, temperature=4.0)
    assert sum(sharp.values()) == pytest.approx(1)
    assert sharp["a"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert 0.5 < flat["a"] < sharp["a"]
    assert probabilities({"a": -1000.0, "b": -2000.0}) == {"a": 1.0, "b": 0.0}
