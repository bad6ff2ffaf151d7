"""What only a GPU can show: Triton kernels against plain torch, FlashAttention against a dense mask, host memory."""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING

import bitsandbytes
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU, and -m gpu", allow_module_level=True)  # triton may be missing

from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from tests.fixtures.architectures import YARN
from tool_aware.chat_format import EncodedExample
from tool_aware.engine import torch_ops, triton_ops
from tool_aware.engine.continuations import ContinuationScorer
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.loss import label_losses, without_head
from tool_aware.engine.packed_attention import FlashAttention, Segments
from tool_aware.engine.packing import pack

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

pytestmark = pytest.mark.gpu
HIDDEN, INTERMEDIATE = 512, 1408
PROMPT_A, PROMPT_B = list(range(100, 360)), list(range(500, 570))
EXAMPLES = [EncodedExample(PROMPT_A + [5, 6 + i], list(range(600, 640 + 3 * i))) for i in range(9)]
EXAMPLES += [EncodedExample(PROMPT_B + [i], list(range(700 + i, 760))) for i in range(3)]
EXAMPLES += [EncodedExample([5, 6, 7], [7, 8, 9])]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)


def assert_alike(function, *outputs):
    """Run `function(operations, *outputs)` with kernels and with plain torch; what it changes must be the same."""
    found, expected = ([output.clone() for output in outputs] for _ in range(2))
    function(triton_ops, *found)
    function(torch_ops, *expected)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b.float()).norm() <= 1e-3 * b.float().norm()


def test_kernels_compute_what_plain_torch_does():
    eps, wide = 1e-5, random(37, 528)
    x, weight = random(37, 520)[:, :512], random(512)
    gradient, residual = random(37, 512, seed=1), random(37, 512, seed=2)
    assert_alike(lambda ops, out: ops.rms_norm(x, weight, eps, out[:, :512]), wide)
    assert_alike(lambda ops, out: ops.rms_norm_backward(x, weight, eps, gradient, residual, out[:, :512]), wide)
    assert_alike(lambda ops, out: ops.rms_norm_backward(x, weight, eps, gradient, None, out), random(37, 512))
    heads, cos, sin = random(37, 6, 64), random(37, 32, seed=3), random(37, 32, seed=4)
    assert_alike(lambda ops, out: ops.rotate(out[:, :5], cos, sin, out[:, :5]), heads)
    assert_alike(lambda ops, out: ops.rotate(heads, cos, -sin, out, add=heads), torch.zeros_like(heads))
    normed, weights, weight = random(37, 20 * 64, seed=7).unflatten(1, (20, 64)), random(20, 64, seed=8), random(6, 64)
    assert_alike(
        lambda ops, out: ops.norm_and_rotate(normed[:, 1:], weights[1:], eps, cos, sin, out[:, 1:]),
        torch.zeros_like(normed),
    )
    back, rotation = random(37, 6, 64, seed=9), (cos, sin)
    for add in (None, random(37, 6, 64, seed=10)):
        assert_alike(
            lambda ops, out, add=add: ops.norm_and_rotate_backward(heads, weight, eps, *rotation, back, out, add=add),
            torch.zeros_like(heads),
        )
    gate, up, hidden = random(37, 1416), random(37, 1408, seed=5), random(37, 1408, seed=6)
    assert_alike(lambda ops, out: ops.swiglu(gate[:, :1408], up, out), torch.zeros_like(hidden))
    assert_alike(lambda ops, g, u, h: ops.swiglu_backward_(g[:, :1408], u, h), gate, up, hidden)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_updates_are_copied_to_their_places_wherever_an_optimizer_has_put_them(precision):
    shapes = [(5000, 8), (8, 1536), (300, 16), (16, 576)]
    updates = [torch.nn.Parameter(random(*shape, seed=seed).to(precision)) for seed, shape in enumerate(shapes)]
    places = [random(rows, columns + 24, seed=9)[:, 8 : 8 + columns] for rows, columns in shapes]
    around = [place._base[:, :8].clone() for place in places]
    copy = triton_ops.copier(list(zip(places, updates, strict=True)))
    for factor in (1, 2):
        for update in updates:
            update.data = update.data * factor  # somewhere else
        copy()
        assert all(torch.equal(place, update.bfloat16()) for place, update in zip(places, updates, strict=True))
    assert all(torch.equal(place._base[:, :8], before) for place, before in zip(places, around, strict=True))


@pytest.mark.parametrize("copies", [1, 2, 5])
@pytest.mark.parametrize("heads", [(9, 3, 64), (32, 8, 128)])
def test_copies_of_a_prefix_change_no_gradient(copies, heads):
    attention_heads, key_heads, size = heads
    prefixes = [[1] * 200, [2] * 40, []]
    examples = [EncodedExample(prefixes[n % 3] + [100 + n] * (20 + n), [5] * 30) for n in range(20)]
    packed = pack(examples, "prefix", multiple_of=32)
    segments = Segments.of(packed)
    tokens = packed.input_ids.shape[1]
    query, gradient = random(tokens, attention_heads, size), random(tokens, attention_heads, size, seed=1)
    key, value = random(tokens, key_heads, size, seed=2), random(tokens, key_heads, size, seed=3)
    found = []
    for attention in (FlashAttention(segments.copied(n).to(query.device)) for n in (1, copies)):
        out = torch.empty_like(query)
        lse = attention.forward(query, key, value, out)
        grad_query, more, grad_key, grad_value = attention.backward(gradient, query, key, value, out, lse)
        assert more is not None
        found.append((out, lse, grad_query.float() + more.float(), grad_key, grad_value))
    (out, lse, *_), (same_out, same_lse, *_) = found
    assert torch.equal(out, same_out)
    assert torch.equal(lse, same_lse)
    for one, other in zip(*(gradients for _, _, *gradients in found), strict=True):
        assert (one.float() - other.float()).norm() <= 4e-3 * other.float().norm()


# What each family has of its own: a bias, norms of heads, rotations that are longer than 1, a tied output head.
FAMILIES = {
    "mistral": {"head_dim": 64, "sliding_window": None},
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 128},
    "ministral3": {"head_dim": 64, "rope_parameters": YARN},
}


def quantised(family: str, double: bool, kind: str) -> tuple[PreTrainedConfig, BitsAndBytesConfig]:
    shape = AutoConfig.for_model(
        family,
        **FAMILIES[family],
        vocab_size=1000,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return shape, settings


def load(parent, double=True, kind="nf4", targets="all-linear", family="mistral"):
    folder = parent / family
    shape, settings = quantised(family, double, kind)
    if not (folder / "config.json").exists():
        model = AutoModelForCausalLM.from_config(shape)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases away from what they begin with
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.bfloat16().save_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=settings, device_map={"": 0}
    )
    base.requires_grad_(False)
    model = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=targets), autocast_adapter_dtype=False
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn_like(parameter, dtype=torch.float32) * 0.05).bfloat16()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@torch.no_grad()
def test_weights_are_dequantised_to_the_last_bit(folder, double, kind):
    decoder = PackedDecoder(load(folder, double, kind))
    for group in (decoder._layers[0]._query_key_value, decoder._layers[1]._down):
        matrix = group._new_matrix()
        by_hand = torch.zeros_like(matrix)
        for layer in group._layers:
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            by_hand[layer.in_rows, : group.inputs] = weight
        group._write_updates(by_hand)
        filled = matrix.clone()
        filled[group.outputs :, group.inputs :] = 0  # the corner that nobody reads
        assert torch.equal(filled, by_hand)


def by_autograd(model, examples, dtype):
    """Each pack by transformers with a dense mask, computed in `dtype` on the dequantised weights."""
    packed = pack(examples).to("cuda")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    base = model.get_base_model()
    with without_head(base) as head:
        inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
        states = model(**inputs, attention_mask=packed.visible()).logits[0, packed.label_columns]
        loss = label_losses(states, head, packed.labels).sum() / len(packed.labels)
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).to(dtype)


def by_decoder(model, examples, **options):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    packed = pack(examples)
    loss = PackedDecoder(model, **options).add_gradient(packed, 1 / len(packed.labels))
    return loss, torch.cat([parameter.grad.flatten() for parameter in parameters]).double()


def in_float32(model):
    """The same model with dequantised weights in float32."""
    for module in list(model.modules()):
        base = getattr(module, "base_layer", None)
        if base is not None:
            weight = bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state).float()
            linear = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="cuda")
            linear.weight, linear.bias = torch.nn.Parameter(weight, requires_grad=False), base.bias
            module.base_layer = linear
    return model.float()


def redraw_adapter(model, seed):
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            drawn = (torch.randn(parameter.shape, device="cuda") * 0.05).bfloat16()
            parameter.data.copy_(drawn)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES[:9], EXAMPLES[8:], EXAMPLES[-1:]])
def test_gradients_are_as_close_to_float32_as_the_librarys(folder, examples, family):
    models = [load(folder, family=family) for _ in range(2)] + [in_float32(load(folder, family=family))]
    errors, usual = [], []
    for seed in range(6):  # of one adapter, rounding makes either error up to a third larger than the other
        for model in models:
            redraw_adapter(model, seed)
        loss, found = by_decoder(models[0], examples)
        _, library = by_autograd(models[1], examples, torch.float64)
        exact_loss, exact = by_autograd(models[2], examples, torch.float64)
        errors.append(((found - exact).norm() / exact.norm()).item())
        usual.append(((library - exact).norm() / exact.norm()).item())
        assert abs(loss - exact_loss) < 0.01
    print("error", *(f"{error:.4f}" for error in errors), "transformers'", *(f"{error:.4f}" for error in usual))
    assert statistics.mean(errors) < 1.1 * statistics.mean(usual)


def test_layers_without_an_update_take_part(folder):
    targets = ["q_proj", "v_proj", "down_proj"]
    loss, found = by_decoder(load(folder, targets=targets), EXAMPLES)
    exact_loss, exact = by_autograd(in_float32(load(folder, targets=targets)), EXAMPLES, torch.float64)
    assert (found - exact).norm() < 0.05 * exact.norm()
    assert abs(loss - exact_loss) < 0.01


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("options", [{"offload": True}, {"kept_layers": 2}, {"cached_layers": 3}])
def test_where_things_wait_does_not_matter(folder, options, family):
    model = load(folder, family=family)
    expected = by_decoder(model, EXAMPLES)
    for _ in range(2):  # host buffers are used again
        require_same(by_decoder(model, EXAMPLES, **options), expected)


def of_lengths(*lengths):
    """Packs of examples like EXAMPLES whose rests have other lengths."""
    return [pack([EncodedExample(PROMPT_A + [5], list(range(600, 600 + n))) for n in lengths], multiple_of=32)]


def gradient_in_place(decoder, packed):
    """Return loss and gradient of a pack; gradients stay where they are, as recorded passes need it."""
    for parameter in decoder.trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.zero_()
    loss = decoder.add_gradient(packed, torch.tensor(0.01, device="cuda")).clone()
    return loss, torch.cat([parameter.grad.flatten() for parameter in decoder.trained]).double()


def require_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=0)
    assert (found[1] - expected[1]).norm() <= 0.01 * expected[1].norm()


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"kept_layers": 3}, {"cached_layers": 3}])
def test_recorded_passes_compute_the_same(folder, options, family):
    model = load(folder, family=family)
    decoder = PackedDecoder(model, **options)
    gradient = functools.partial(gradient_in_place, decoder)
    packs = [
        *(pack(EXAMPLES), pack(EXAMPLES, "block"), pack(EXAMPLES[8:])),
        *of_lengths(40, 41, 50, 33),
        *of_lengths(44, 40, 47, 30),
        *of_lengths(39),
    ]
    launched = [gradient(packed) for packed in packs]
    assert decoder.can_record()
    decoder.record()
    for _ in range(4):  # as they are, recorded, replayed
        for packed, expected in zip(packs, launched, strict=True):
            require_same(gradient(packed), expected)
    assert decoder._recorded.recorded >= len(packs) - 2
    scored = decoder.hidden(packs[0])
    decoder.stop_recording()
    assert torch.equal(scored, decoder.hidden(packs[0]))


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [([64] * 9, ([60] * 9, [63] * 8 + [20], [64] * 8 + [2])), ([66] * 48, ([70] * 44, [78] * 40, [105] * 30))],
    ids=["", "copies of a prefix"],
)
def test_packs_that_take_the_recorded_pass_of_larger_ones_are_computed_as_by_their_own(folder, longest, lengths):
    decoder = PackedDecoder(load(folder))
    gradient = functools.partial(gradient_in_place, decoder)
    (largest,) = of_lengths(*longest)
    packs = [packed for rows in lengths for packed in of_lengths(*rows)]
    launched = [gradient(packed) for packed in packs]
    decoder.record()
    for _ in range(3):
        gradient(largest)
    for packed, expected in zip(packs, launched, strict=True):
        require_same(gradient(packed), expected)
    assert len(decoder._recorded._by_size) == 1


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])  # peft loads an adapter in float32
def test_recorded_scores_of_continuations_are_those_of_plain_passes(folder, family, precision):
    model, names = load(folder, family=family), [[3, 4, 5, 13], [3, 4, 6, 13], [7, 13]]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(precision)
    scorer = ContinuationScorer(PackedDecoder(model), PROMPT_A, names)
    for lengths in [(20,), (5, 40, 9), (30, 1, 1, 60, 7, 12)]:
        prompts = [[*PROMPT_A, *range(300, 300 + length)] for length in lengths]
        expected = [[plain_score(model, prompt, ids) for ids in names] for prompt in prompts]
        for _ in range(4):  # as it is, recorded, replayed
            found = torch.tensor(scorer.scores(prompts))
            torch.testing.assert_close(found, torch.tensor(expected), rtol=0.01, atol=0.05)
    assert scorer._recorded.recorded == 3


def plain_score(model, prompt, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids], device="cuda")).logits[0]
    log_p = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
    return sum(log_p[place, token].item() for place, token in enumerate(ids))


def test_recorded_passes_take_the_memory_of_one(folder):
    model = load(folder)
    decoder = PackedDecoder(model)
    for parameter in decoder.trained:
        parameter.grad = torch.zeros_like(parameter)
    packs = [pack([example for _ in range(n) for example in EXAMPLES], multiple_of=32) for n in range(14, 8, -1)]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    decoder.add_gradient(packs[0], 1.0)
    torch.cuda.synchronize()
    launched = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    decoder.record()
    for _ in range(3):
        for packed in packs:
            decoder.add_gradient(packed, 1.0)
    torch.cuda.synchronize()
    assert decoder._recorded.recorded > 3
    recorded = torch.cuda.max_memory_reserved() - before
    print(f"launched {launched >> 20} MiB, recorded {recorded >> 20} MiB")
    assert recorded < 1.3 * launched + (64 << 20)
