"""A pack is laid out as documented, and its loss and gradients are those of separate rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from tool_aware.chat_format import EncodedExample
from tool_aware.demo.toy_model import new_model
from tool_aware.engine.attention import attention_mask
from tool_aware.engine.loss import label_losses, without_head
from tool_aware.engine.packing import MIN_SHARED_TOKENS, PREFIX, pack, packed_tokens
from tool_aware.text import common_prefix_length

PROMPT_A = list(range(100, 130))
PROMPT_B = list(range(200, 230))


@pytest.fixture(scope="module")
def model():
    """A float64 Mistral with a LoRA adapter whose update is not zero."""
    base = new_model(hidden_size=32, seed=3).double()
    for parent in [base.model, *base.model.layers]:  # Mistral's own norm rounds to float32 on the way
        for name, child in parent.named_children():
            if type(child).__name__ == "MistralRMSNorm":
                setattr(parent, name, torch.nn.RMSNorm(32, eps=child.variance_epsilon, dtype=torch.float64))
    base.requires_grad_(False)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) * 0.1
    return adapted


def losses_and_gradients(model, packs):
    model.zero_grad()
    losses = []
    for packed in packs:
        with without_head(model.get_base_model()) as weight:
            output = model(
                input_ids=packed.input_ids, position_ids=packed.position_ids, attention_mask=packed.visible()
            )
            hidden = output.logits[packed.label_rows, packed.label_columns]
            loss = label_losses(hidden, weight, packed.labels)
        loss.sum().backward()
        losses.append(loss.detach())
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat(losses), gradients


def one_by_one_by_hand(model, examples):
    """The definition, without any of the code under test: each row alone, causal mask, labels shifted."""
    model.zero_grad()
    total = 0.0
    for example in examples:
        ids = torch.tensor([example.input_ids])
        if ids.shape[1] < 2:
            continue
        logits = model(input_ids=ids).logits[0, :-1]
        labels = torch.tensor(example.labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    if isinstance(total, torch.Tensor):
        total.backward()
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters() if p.requires_grad
    ]
    return float(torch.as_tensor(total).detach()), gradients


tokens = st.lists(st.integers(3, 999), max_size=12)
completions = st.lists(st.integers(3, 999), min_size=1, max_size=6)


@st.composite
def micro_batches(draw):
    """Examples of up to two groups with a long common prefix, some identical, some of a single token."""
    prefixes = [draw(st.sampled_from([[], PROMPT_A, PROMPT_B, PROMPT_A[:20]])) for _ in range(2)]
    examples = [
        EncodedExample(draw(st.sampled_from(prefixes)) + draw(tokens), draw(completions))
        for _ in range(draw(st.integers(1, 5)))
    ]
    if draw(st.booleans()):
        examples.append(examples[0])
    return examples


@settings(max_examples=60, deadline=None)
@given(micro_batches(), st.sampled_from(["prefix", "block", "none"]), st.sampled_from([1, 16]))
def test_loss_and_every_gradient_equal_those_of_separate_rows(model, examples, packing, multiple_of):
    expected_loss, expected_gradients = one_by_one_by_hand(model, examples)
    packed = pack(examples, packing, multiple_of=multiple_of)
    if len(packed.labels) == 0:
        assert expected_loss == 0
        return
    losses, gradients = losses_and_gradients(model, [packed])
    assert losses.sum().item() == pytest.approx(expected_loss, rel=1e-10)
    # Where attention sees identical tokens only, the gradients of q and k are zero but for rounding.
    scale = max(expected.abs().max().item() for expected in expected_gradients)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert (gradient - expected).abs().max().item() <= 1e-10 * scale


def test_in_float32_the_difference_stays_below_1e_5(model):
    examples = [EncodedExample(PROMPT_A + [i], [40 + i, 50 + i, 2]) for i in range(6)]
    single = model.float()
    try:
        loss, gradients = losses_and_gradients(single, [pack(examples, "prefix")])
        loss_apart, gradients_apart = losses_and_gradients(single, [pack([e], "none") for e in examples])
    finally:
        model.double()
    assert loss.sum().item() == pytest.approx(loss_apart.sum().item(), rel=1e-5)
    whole = torch.cat([g.flatten() for g in gradients])
    apart = torch.cat([g.flatten() for g in gradients_apart])
    assert ((whole - apart).norm() / apart.norm()).item() < 1e-5


def test_a_pack_holds_the_common_prefix_once():
    examples = [EncodedExample(PROMPT_A + [7, 8], [9, 2]), EncodedExample(PROMPT_A + [5], [6, 2])]
    packed = pack(examples)
    assert packed.input_ids.tolist() == [[*PROMPT_A, 5, 6, 2, 7, 8, 9, 2]]
    assert packed.position_ids.tolist() == [[*range(30), 30, 31, 32, 30, 31, 32, 33]]
    assert packed.example_ids.tolist() == [[PREFIX] * 30 + [0] * 3 + [1] * 4]
    assert packed.labels.tolist() == [6, 2, 9, 2]
    assert packed.label_columns.tolist() == [30, 31, 34, 35]
    assert packed_tokens(examples) == 37


def test_the_first_label_is_predicted_by_the_prefix_when_the_prompt_is_all_prefix():
    packed = pack([EncodedExample(PROMPT_A, [5, 2]), EncodedExample(PROMPT_A, [6, 2])])
    assert packed.labels.tolist() == [5, 2, 6, 2]
    assert packed.label_columns.tolist() == [29, 30, 29, 32]


def test_examples_with_different_prefixes_form_groups():
    examples = [EncodedExample(prompt + [i], [9, 2]) for i in range(3) for prompt in (PROMPT_A, PROMPT_B)]
    packed = pack(examples)
    assert packed.input_ids.shape[1] == 2 * 30 + 6 * 3
    assert set(packed.group_ids.flatten().tolist()) == {0, 1}


def test_a_short_common_beginning_is_not_worth_a_prefix():
    examples = [EncodedExample([1, 5, i], [9, 2]) for i in range(3)]
    assert not (pack(examples).example_ids == PREFIX).any()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=7))
def test_no_other_grouping_of_neighbours_takes_fewer_tokens(shapes):
    examples = [EncodedExample([1] * a + [2] * b + [3], [4] * c) for a, b, c in shapes]
    ordered = sorted(examples, key=lambda example: example.prompt)

    def tokens(start, end):
        shared = common_prefix_length([example.prompt for example in ordered[start:end]])
        if end - start > 1 and shared < MIN_SHARED_TOKENS:
            return float("inf")
        return sum(map(len, ordered[start:end])) - (end - start - 1) * shared

    def fewest(end):
        return min((fewest(start) + tokens(start, end) for start in range(end)), default=0)

    assert packed_tokens(examples) == pack(examples).input_ids.numel() == fewest(len(ordered))


def test_padding_sees_and_is_seen_by_no_example():
    packed = pack([EncodedExample(PROMPT_A + [4], [9, 2])], multiple_of=64)
    assert packed.input_ids.shape[1] == 64
    visible = packed.visible()[0, 0]
    assert not visible[:33, 33:].any()
    assert not visible[33:, :33].any()
    assert visible.diagonal().all(), "a row of the mask without a single True gives NaN"


@pytest.mark.parametrize("packing", ["prefix", "block", "none"])
def test_with_a_sliding_window_examples_are_read_as_the_model_alone_reads_them(packing):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=24, attn_implementation="sdpa",
    )  # fmt: skip
    windowed = MistralForCausalLM(config).double().eval()
    shared = list(range(3, 43))
    examples = [EncodedExample([*shared, 50 + n, 51 + n], [44, 45 + n, 2]) for n in range(3)]
    packed = pack(examples, packing)
    mask = attention_mask(packed, config, torch.float64)
    with torch.no_grad():
        states = windowed.model(packed.input_ids, attention_mask=mask, position_ids=packed.position_ids)
        alone = [
            windowed.model(torch.tensor([examples[n].input_ids])).last_hidden_state[0, 41:-1] for n in packed.order
        ]
    labelled = states.last_hidden_state[packed.label_rows, packed.label_columns]
    torch.testing.assert_close(labelled, torch.cat(alone), rtol=1e-9, atol=1e-10)


def test_examples_never_see_each_other():
    examples = [EncodedExample(PROMPT_A + [i] * 3, [9, 2]) for i in range(4)]
    packed = pack(examples)
    visible, example = packed.visible()[0, 0], packed.example_ids[0]
    for query in range(30, packed.input_ids.shape[1]):
        seen = set(example[visible[query]].tolist())
        assert seen <= {PREFIX, example[query].item()}


def test_more_than_one_chunk_of_labels_gives_the_same_loss(monkeypatch):
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16, requires_grad=True), torch.randn(100, 16)
    labels = torch.randint(0, 100, (50,))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected.sum().backward()
    expected_gradient, hidden.grad = hidden.grad, None
    monkeypatch.setattr("tool_aware.engine.loss.CHUNK_LABELS", 7)
    losses = label_losses(hidden, weight, labels)
    losses.sum().backward()
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(hidden.grad, expected_gradient)


def test_labels_keep_their_weights_wherever_an_example_stands():
    examples = [EncodedExample([5] * 20 + [n], [n, 7, 8, n], heavy=(1, 3), weight=float(n)) for n in (2, 3)]
    for packing in ("prefix", "block", "none"):
        packed = pack(examples, packing)
        of_each = {2: [1, 2, 2, 1], 3: [1, 3, 3, 1]}
        expected = [weight for index in packed.order for weight in of_each[index + 2]]
        assert packed.label_weights.tolist() == expected
    without_prompt = pack([EncodedExample([], [1, 7, 8], heavy=(1, 2), weight=9.0)], "block")
    assert without_prompt.label_weights.tolist() == [9, 1]
