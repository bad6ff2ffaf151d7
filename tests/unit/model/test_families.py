"""Of every family in the table: examples of a pack stay apart, and answers from shared keys and values are its own."""

from __future__ import annotations

import pytest
import torch

from tests.fixtures.architectures import tiny_config, tiny_model
from tool_aware.chat_format import EncodedExample
from tool_aware.console import UserError
from tool_aware.engine.attention import attention_mask
from tool_aware.engine.loss import label_losses, without_head
from tool_aware.engine.packing import pack
from tool_aware.inference.generation import generate
from tool_aware.memory.architectures import architecture_from_config
from tool_aware.model.families import FAMILIES, Traits, refuse_unknown_family

SHARED = list(range(100, 140))
EXAMPLES = [EncodedExample(SHARED + [50 + n, 51 + n], [44, 45 + n, 2]) for n in range(3)]
EXAMPLES += [EncodedExample([7, 8, 9], [10, 11, 12])]


def exact(family: str, **settings: object):
    sizes = {"vocab_size": 1000, "hidden_size": 32, "attn_implementation": "sdpa", **settings}
    return tiny_model(family, **sizes).double().eval()


@pytest.mark.parametrize("packing", ["prefix", "block", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_examples_of_a_pack_are_read_as_the_model_alone_reads_them(family, packing):
    model = exact(family)
    packed = pack(EXAMPLES, packing)
    mask = attention_mask(packed, model.config, torch.float64)
    with torch.no_grad():
        with without_head(model) as head:
            inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
            states = model(**inputs, attention_mask=mask, use_cache=False).logits
            losses = label_losses(states[packed.label_rows, packed.label_columns], head, packed.labels)
        alone = []
        for number in packed.order:
            example = EXAMPLES[number]
            logits = model(torch.tensor([example.input_ids])).logits[0, len(example.prompt) - 1 : -1]
            wanted = torch.tensor(example.completion)
            alone.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
    torch.testing.assert_close(losses, torch.cat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_from_shared_keys_and_values_are_those_of_each_prompt_alone(family):
    model = exact(family, initializer_range=0.5)
    prompts = [example.prompt for example in EXAMPLES[:3]] + [SHARED + [9, 8, 7, 6]]
    found = {}
    for batch in generate(model, prompts, eos_id=2, max_new_tokens=8, batch_size=3):
        found |= {number: answer.ids for number, answer in batch}
    for number, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert found[number] == ids[len(prompt) :]


REFUSED = {
    "a mixture of experts": ({"model_type": "mixtral", "num_local_experts": 8}, "reach its experts"),
    "Llama 4": ({"model_type": "llama4", "text_config": {"num_local_experts": 16}}, "reach its experts"),
    "softcapped logits": ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "softcapped logits"),
    "Gemma 3 with images": ({"model_type": "gemma3", "text_config": {}}, "language part cannot be taken out"),
    "an unknown language part": ({"model_type": "mistral3", "text_config": {"model_type": "mamba"}}, "type 'mamba'"),
    "no language part": ({"model_type": "mistral3"}, "has no text_config"),
    "code of its own": ({"model_type": "other", "auto_map": {}}, "code of its own"),
    "anything else": ({"model_type": "bloom"}, "examples stay apart"),
}


@pytest.mark.parametrize(("settings", "reason"), REFUSED.values(), ids=REFUSED)
def test_other_families_are_refused_with_the_reason(settings, reason):
    with pytest.raises(UserError) as caught:
        refuse_unknown_family(settings, "config.json")
    assert reason in str(caught.value)
    assert "qwen3" in (caught.value.fix or "") or "again" in (caught.value.fix or "")


UNCOVERED = {
    "a family without a decoder": ({"model_type": "gemma"}, "models of type gemma"),
    "the window of Mistral v0.1": ({"model_type": "mistral"}, "a sliding window of 4096"),
    "queries that are scaled": ({"model_type": "ministral3"}, "scaled from position 16384"),
    "they are scaled early": (
        {"model_type": "ministral3", "rope_parameters": {"original_max_position_embeddings": 512}},
        "scaled from position 512",
    ),
    "another activation": ({"model_type": "llama", "hidden_act": "gelu"}, "gelu as activation"),
    "in several parts": ({"model_type": "mistral3", "text_config": {"sliding_window": 99}}, "a sliding window of 99"),
}


@pytest.mark.parametrize(("settings", "reason"), UNCOVERED.values(), ids=UNCOVERED)
def test_what_the_own_decoder_does_not_cover_is_known_from_config_json(settings, reason):
    assert reason in (Traits.of(settings).uncovered(20_000) or "")


def test_a_window_that_is_switched_off_is_none():
    off = {"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": False}
    assert Traits.of(off).uncovered(2048) is None
    assert "window of 128" in (Traits.of({**off, "use_sliding_window": True}).uncovered(2048) or "")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_traits_are_the_same_in_the_file_and_in_the_loaded_config(family):
    config = tiny_config(family)
    in_file, loaded = Traits.of(config.to_diff_dict()), Traits.of({**vars(config), "model_type": family})
    assert in_file.uncovered(1500) == loaded.uncovered(1500)
    assert FAMILIES[family].has_own_decoder == (loaded.uncovered(1000) is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_config_json_leaves_out_are_transformers_defaults(family):
    from transformers import AutoConfig

    bare = {"hidden_size": 4096, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 32}
    config = AutoConfig.for_model(family, **bare, vocab_size=1000, pad_token_id=0)
    found = architecture_from_config({"model_type": family, "vocab_size": 1000, **bare}, name=family)
    assert found.kv_heads == config.num_key_value_heads
    assert found.head_dim == (getattr(config, "head_dim", None) or 128)
    assert found.ties_embeddings == config.tie_word_embeddings


def test_layers_with_and_without_a_short_window_are_refused():
    gemma = {"model_type": "gemma3_text", "sliding_window": 512}
    Traits.of(gemma).refuse_short_window(512, "config.json")
    with pytest.raises(UserError, match="some of its layers see 512 tokens"):
        Traits.of(gemma).refuse_short_window(513, "config.json")
    Traits.of({"model_type": "mistral", "sliding_window": 512}).refuse_short_window(2048, "config.json")
