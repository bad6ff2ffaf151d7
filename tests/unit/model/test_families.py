"""Of every family in the table: examples of a pack stay apart, and answers from shared keys and values are its own."""

from __future__ import annotations

import pytest
import torch

from tests.fixtures.architectures import tiny_model
from tool_aware.engine.attention import attention_mask
from tool_aware.engine.loss import label_losses, without_head
from tool_aware.engine.packing import pack
from tool_aware.inference.generation import generate
from tool_aware.model.families import FAMILIES
from tool_aware.prompt import EncodedExample

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
