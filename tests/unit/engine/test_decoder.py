"""The hand-written decoder computes what the library's modules compute, on every path it has."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from tests.fixtures.architectures import YARN, tiny_model, tiny_multimodal, with_exact_norms
from tests.fixtures.repository import REPOSITORY
from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import load_config
from tool_aware.engine.attention import attention_mask
from tool_aware.engine.backend import Backend
from tool_aware.engine.continuations import ContinuationScorer
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.loss import label_losses, without_head
from tool_aware.engine.packed_attention import BLOCK_QUERIES
from tool_aware.engine.packing import pack
from tool_aware.engine.side_stream import AtOnce
from tool_aware.engine.supported import broken_kernels, unsupported
from tool_aware.model.adapter import ALL_LINEARS, new_adapter, prepare_for_training
from tool_aware.model.base import load_base_model

CONFIG = REPOSITORY / "config.yaml"
PROMPT_A, PROMPT_B = list(range(100, 130)), list(range(200, 230))
EXAMPLES = [
    EncodedExample(PROMPT_A + [5, 6], [7, 8, 9]),
    EncodedExample(PROMPT_A + [5], [7, 2]),
    EncodedExample(PROMPT_B, [7, 8, 9]),
    EncodedExample(PROMPT_B + [4], [7, 8, 9]),
    EncodedExample([5, 6, 7], [7, 8, 9]),
    EncodedExample([], [7]),
]

LLAMA_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}  # fmt: skip


def model_with_adapter(targets: object = "all-linear", rank: int = 3, family: str = "mistral", **settings: object):
    """A float64 model whose adapter's update is not zero; the rank is no multiple of anything."""
    sizes = {"vocab_size": 1000, "hidden_size": 32, "tie_word_embeddings": True, **settings}
    base = with_exact_norms(tiny_model(family, **sizes))
    base.requires_grad_(False)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=5, target_modules=targets))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) * 0.1
    return model


@pytest.fixture(scope="module")
def model():
    return model_with_adapter()


def by_autograd(model, packed, weight):
    """Loss and gradients of the same pack by transformers, peft and autograd."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    base = model.get_base_model()
    with without_head(base) as head:
        mask = attention_mask(packed, base.config, base.dtype)
        states = model(input_ids=packed.input_ids, position_ids=packed.position_ids, attention_mask=mask).logits
        losses = label_losses(states[0, packed.label_columns], head, packed.labels)
        loss = (losses * packed.label_weights).sum() * weight
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return loss.detach(), filled


def by_decoder(model, packed, weight, **options):
    for parameter in model.parameters():
        parameter.grad = None
    loss = PackedDecoder(model, **options).add_gradient(packed, weight)
    return loss, [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


# Each family that is covered, with what some of its models have and others have not.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA_ROPE, "tie_word_embeddings": False}),
    "mistral, untied": ("mistral", {"tie_word_embeddings": False}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2, tied": ("qwen2", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3, tied": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "qwen3, one key head": ("qwen3", {"num_key_value_heads": 1, "num_attention_heads": 3}),
    "ministral3": ("ministral3", {"tie_word_embeddings": False}),
    "ministral3, tied": ("ministral3", {}),
    "rotations of another length than 1": ("ministral3", {"rope_parameters": {**YARN, "mscale_all_dim": 0.5}}),
}


@pytest.mark.parametrize("kept_layers", [0, 1, 2])
@pytest.mark.parametrize("packing", ["prefix", "block"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_of_every_family_are_autograds(name, packing, kept_layers):
    family, settings = FAMILIES[name]
    adapted = model_with_adapter(family=family, **settings)
    assert unsupported(adapted, longest=1024) is None
    packed = pack([*EXAMPLES[1:], replace(EXAMPLES[0], heavy=(1, 3), weight=4.0)], packing, multiple_of=16)
    expected_loss, expected = by_autograd(adapted, packed, 0.25)
    loss, gradients = by_decoder(adapted, packed, 0.25, kept_layers=kept_layers)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kept_layers", [0, 1, 2])
@pytest.mark.parametrize("packing", ["prefix", "block"])
def test_loss_and_gradients_are_autograds(model, packing, kept_layers):
    packed = pack(EXAMPLES, packing, multiple_of=16)
    expected_loss, expected = by_autograd(model, packed, 0.25)
    loss, gradients = by_decoder(model, packed, 0.25, kept_layers=kept_layers)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("packing", ["prefix", "block"])
def test_segments_longer_than_a_block_of_queries_attend_to_what_autograd_says(model, packing):
    long_prompt = [100 + number % 800 for number in range(BLOCK_QUERIES + 30)]
    long_answer = [200 + number % 700 for number in range(2 * BLOCK_QUERIES + 1)]
    examples = [EncodedExample([*long_prompt, 5], long_answer), EncodedExample([*long_prompt, 6], [7, 2])]
    packed = pack(examples, packing)
    expected_loss, expected = by_autograd(model, packed, 0.25)
    loss, gradients = by_decoder(model, packed, 0.25)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(st.sets(st.sampled_from(ALL_LINEARS), min_size=1), st.integers(1, 9))
def test_any_choice_of_adapted_layers_and_any_rank_will_do(targets, rank):
    adapted = model_with_adapter(sorted(targets), rank)
    packed = pack(EXAMPLES, "prefix")
    expected_loss, expected = by_autograd(adapted, packed, 1.0)
    loss, gradients = by_decoder(adapted, packed, 1.0)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-13)


def test_gradients_are_added_to_what_is_there(model):
    packed = pack(EXAMPLES)
    _, once = by_decoder(model, packed, 1.0)
    once = [gradient.clone() for gradient in once]
    PackedDecoder(model).add_gradient(packed, 1.0)
    twice = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    torch.testing.assert_close(twice, [2 * gradient for gradient in once], rtol=1e-12, atol=1e-15)


def test_the_states_of_validation_are_the_models(model):
    packed = pack(EXAMPLES)
    with torch.no_grad(), without_head(model.get_base_model()):
        inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
        expected = model(**inputs, attention_mask=packed.visible()).logits[0, packed.label_columns]
    torch.testing.assert_close(PackedDecoder(model).hidden(packed), expected, rtol=1e-10, atol=1e-13)


@pytest.fixture(scope="module")
def family_dirs(tmp_path_factory, tiny_model_dir):
    """A folder with a tiny model of each family that has something of its own, and one of several parts."""
    folders = {"mistral": tiny_model_dir}
    for family in ("qwen2", "qwen3", "ministral3"):
        folders[family] = tmp_path_factory.mktemp(family)
        tiny_model(family, initializer_range=0.1).save_pretrained(folders[family])
    folders["mistral3"] = tmp_path_factory.mktemp("mistral3")
    tiny_multimodal().save_pretrained(folders["mistral3"])
    return folders


@pytest.mark.parametrize("cached_layers", [0, 1])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "ministral3", "mistral3"])
def test_four_bit_weights_give_the_librarys_gradients(family_dirs, family, cached_layers):
    settings = load_config(CONFIG, [f"model.name={family_dirs[family]}", "model.max_seq_length=1024"]).settled()
    adapted = new_adapter(load_base_model(settings.model, settings.quantization), settings)
    prepare_for_training(adapted, settings)
    assert unsupported(adapted, settings.model.max_seq_length) is None
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    packed = pack(EXAMPLES)
    expected_loss, expected = by_autograd(adapted, packed, 1.0)
    loss, gradients = by_decoder(adapted, packed, 1.0, cached_layers=cached_layers)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    for found, wanted in zip(gradients, expected, strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.fixture
def in_four_bits(tiny_model_dir):
    """A quantised model whose adapter's update is not zero."""
    settings = load_config(CONFIG, [f"model.name={tiny_model_dir}"]).settled()
    adapted = new_adapter(load_base_model(settings.model, settings.quantization), settings)
    prepare_for_training(adapted, settings)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    return adapted


class Counting:
    """Writes each matrix when it is begun, and counts."""

    def __init__(self) -> None:
        self.begun = 0

    def run(self, work):
        self.begun += 1
        return AtOnce.run(work)


@pytest.mark.parametrize("options", [{}, {"kept_layers": 1}, {"kept_layers": 2}, {"cached_layers": 1}])
def test_weights_that_are_written_ahead_or_held_give_the_same_bits(in_four_bits, options):
    packed, beside = pack(EXAMPLES), Counting()
    ahead = replace(Backend.of(torch.device("cpu")), beside=beside)
    loss, late = by_decoder(in_four_bits, packed, 1.0, offload=True, **options)  # each where it is used
    held_loss, held = by_decoder(in_four_bits, packed, 1.0, **options)
    ahead_loss, found = by_decoder(in_four_bits, packed, 1.0, backend=ahead, **options)
    assert loss == held_loss == ahead_loss
    for one, other, another in zip(late, held, found, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, another)
    assert beside.begun > 5 * (2 - options.get("cached_layers", 0))


def test_no_matrix_outlives_its_pass_and_what_an_interrupted_one_began_is_dropped(in_four_bits):
    ahead = replace(Backend.of(torch.device("cpu")), beside=AtOnce())
    decoder, packed = PackedDecoder(in_four_bits, backend=ahead), pack(EXAMPLES)
    groups = [group for layer in decoder._layers for group in layer._groups]
    decoder.add_gradient(packed, 1.0)
    decoder.hidden(packed)
    assert all(group._ahead is None for group in groups)

    def interrupt():  # as if memory had run out, and a step of the optimizer had followed
        with torch.no_grad():
            for group in groups:
                group.begin()
        for parameter in decoder.trained:
            parameter.data += 0.01
            parameter.grad = None

    interrupt()
    decoder.add_gradient(packed, 1.0)
    found = [parameter.grad for parameter in decoder.trained]
    late = PackedDecoder(in_four_bits)
    _, expected = by_decoder(in_four_bits, packed, 1.0)
    assert all(map(torch.equal, found, expected))
    interrupt()
    assert torch.equal(decoder.hidden(packed), late.hidden(packed))
    interrupt()
    names, prompt = [[3, 4, 13], [3, 5]], [*range(9, 20)]
    scores = [ContinuationScorer(one, prompt[:6], names).scores([prompt, prompt[:8]]) for one in (decoder, late)]
    assert scores[0] == scores[1]
    assert all(group._ahead is None for group in groups)


def test_short_of_memory_weights_are_written_one_at_a_time(in_four_bits):
    ahead = replace(Backend.of(torch.device("cpu")), beside=AtOnce())
    decoder = PackedDecoder(in_four_bits, backend=ahead, kept_layers=1)
    said = [decoder.reduce_memory() for _ in range(3)]
    assert said == ["all activations are computed again", "weights are dequantised where they are used", None]
    decoder._layers[0]._gate.begin()
    assert decoder._layers[0]._gate._ahead is None


def test_cached_weights_follow_the_adapter(tiny_model_dir):
    settings = load_config(CONFIG, [f"model.name={tiny_model_dir}"]).settled()
    adapted = new_adapter(load_base_model(settings.model, settings.quantization), settings)
    prepare_for_training(adapted, settings)
    cached, packed = PackedDecoder(adapted, cached_layers=2), pack(EXAMPLES)
    cached.hidden(packed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01
    torch.testing.assert_close(cached.hidden(packed), PackedDecoder(adapted).hidden(packed))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda shape, _: setattr(shape, "model_type", "gemma"), "models of type gemma"),
        (lambda shape, _: setattr(shape, "hidden_act", "gelu"), "gelu as activation"),
        (lambda shape, _: setattr(shape, "sliding_window", 99), "a sliding window of 99 tokens"),
        (lambda _, lora: setattr(lora, "lora_dropout", 0.1), "dropout"),
        (lambda _, lora: setattr(lora, "use_dora", True), "variants of LoRA"),
    ],
)
def test_what_it_does_not_cover_is_named_and_left_to_the_library(change, reason):
    adapted = model_with_adapter()
    assert unsupported(adapted, longest=100) is None
    change(adapted.get_base_model().config, adapted.peft_config["default"])
    decoder, why = PackedDecoder.of(adapted, load_config(CONFIG, ["model.max_seq_length=100"]))
    assert decoder is None
    assert f"does not cover {reason}" in why


def test_precisions_that_differ_are_not_covered():
    adapted = model_with_adapter()
    first = next(parameter for parameter in adapted.parameters() if parameter.requires_grad)
    first.data = first.data.float()
    assert unsupported(adapted, 100) == "an adapter in another precision than its base"


def test_kernels_that_cannot_run_are_found_before_training():
    assert broken_kernels(torch.device("cpu")) is None
    assert "as Triton does not work" in broken_kernels(torch.device("cuda"))


def test_the_library_takes_over_on_request(model):
    config = load_config(CONFIG, ["optimization.decoder=transformers"])
    assert PackedDecoder.of(SimpleNamespace(), config) == (None, None)
