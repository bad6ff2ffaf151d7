"""What is chosen on GPUs of every compute capability, none of which is here: torch is made to say that it is."""

from __future__ import annotations

import pytest
import torch

from tool_aware.engine.supported import unsupported_gpu
from tool_aware.gpu.device_facts import DeviceFacts
from tool_aware.gpu.readings import GpuReading
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.budget import Budget, KnownBudget
from tool_aware.memory.plan import plan_of
from tool_aware.memory.spec import TrainingSpec, decoder_text, why_not_own
from tool_aware.model.base import compute_dtype, device, in_training_precision
from tool_aware.monitor.checks import check_precision
from tool_aware.training.gpu_plan import free_host_budget, on_the_cpu
from tool_aware.training.loop import gradient_scaler
from tool_aware.units import GIB

OLD = [(6, 1), (7, 0), (7, 5)]
NEW = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
MISTRAL = PRESETS["mistral-7b-v0.2"]


@pytest.fixture
def pretend(monkeypatch):
    """Let torch see one GPU of a compute capability; nothing can be computed on it."""

    def see(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
        return device()

    return see


@pytest.mark.parametrize("capability", OLD)
def test_without_bfloat16_it_is_transformers_pass_in_float16_with_scaled_gradients(pretend, config, capability):
    gpu, dtype = pretend(capability), compute_dtype()
    assert dtype == torch.float16
    assert gradient_scaler(gpu, dtype).is_enabled()
    reason = unsupported_gpu(gpu, dtype)
    assert reason == "GPUs without bfloat16"
    spec = TrainingSpec.from_config(config, architecture=MISTRAL).on(DeviceFacts.of(gpu))
    assert (spec.resolved.decoder, spec.resolved.attention) == ("transformers", "sdpa")
    assert (spec.resolved.offload, spec.resolved.cached_layers) == (False, 0)
    assert decoder_text(config, spec, of_device=reason).endswith("does not cover GPUs without bfloat16")
    line = check_precision(GpuReading(0, compute_capability=capability))
    assert line.status == "warning"
    assert "float16 and transformers' slower pass" in line.finding


@pytest.mark.parametrize("capability", NEW)
def test_from_ampere_on_it_is_the_own_decoder_in_bfloat16_if_its_kernels_run(pretend, config, capability):
    gpu, dtype = pretend(capability), compute_dtype()
    assert dtype == torch.bfloat16
    assert not gradient_scaler(gpu, dtype).is_enabled()
    spec = TrainingSpec.from_config(config, architecture=MISTRAL).on(DeviceFacts.of(gpu))
    assert spec.resolved.decoder == "own"
    assert decoder_text(config, spec) == "the toolkit's own"
    assert check_precision(GpuReading(0, compute_capability=capability)).status == "ok"
    reason = unsupported_gpu(gpu, dtype)  # there is no such GPU here: a kernel was tried, and failed
    assert "as Triton does not work" in reason
    fallback = spec.with_fields({"decoder": "transformers"})
    assert reason in decoder_text(config, fallback, of_device=reason)


def test_what_the_config_names_is_computed_in_and_the_plan_says_what_runs_then(pretend, config):
    gpu = pretend((8, 6))
    half, full = (
        config.with_settings({"quantization.bnb_4bit_compute_dtype": name}) for name in ("float16", "float32")
    )
    assert why_not_own(half, MISTRAL) == "float16"
    assert not TrainingSpec.from_config(half, architecture=MISTRAL).has_own_decoder
    assert gradient_scaler(gpu, compute_dtype("float16")).is_enabled()
    assert unsupported_gpu(gpu, compute_dtype(full.quantization.bnb_4bit_compute_dtype)) == "float32 on a GPU"


# Processors as torch describes them, and what they train in.
PROCESSORS = [
    ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
    ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
    ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
    ({"architecture": "aarch64", "sve": True, "bf16": True}, "float32"),  # other names, not measured
    ({}, "float32"),
]


@pytest.mark.parametrize(("capabilities", "trains_in"), PROCESSORS)
def test_a_cpu_trains_in_bfloat16_if_it_multiplies_it_and_answers_in_float32(
    monkeypatch, config, capabilities, trains_in
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert in_training_precision(config).quantization.bnb_4bit_compute_dtype == trains_in
    assert compute_dtype() == torch.float32
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert in_training_precision(config).quantization.bnb_4bit_compute_dtype == "float32"


def test_a_torch_that_cannot_tell_trains_in_float32(monkeypatch, config):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert in_training_precision(config).quantization.bnb_4bit_compute_dtype == "float32"


def test_a_precision_that_is_named_is_trained_in(monkeypatch, config):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: PROCESSORS[0][0], raising=False)
    for name in ("bfloat16", "float16", "float32"):
        named = config.with_settings({"quantization.bnb_4bit_compute_dtype": name})
        assert in_training_precision(named) == named


def test_a_gpu_trains_in_what_it_answers_in(pretend, config):
    for capability, expected in (((7, 5), "float16"), ((8, 0), "bfloat16")):
        pretend(capability)
        assert in_training_precision(config).quantization.bnb_4bit_compute_dtype == expected


def test_a_cpu_computes_with_the_own_decoder(config):
    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        assert unsupported_gpu(cpu, dtype) is None
    assert not gradient_scaler(cpu, torch.float16).is_enabled()
    assert TrainingSpec.from_config(config, architecture=MISTRAL).on(DeviceFacts.of(cpu)).has_own_decoder


def test_a_card_that_does_not_tell_is_taken_for_a_new_one():
    assert DeviceFacts("cuda").why_not_own_decoder is None


def test_on_a_cpu_nothing_is_computed_or_dequantised_twice_if_the_host_has_room(config):
    spec = TrainingSpec.from_config(config, architecture=MISTRAL)
    without = plan_of(config, spec, [])
    plenty = on_the_cpu(config, without, KnownBudget(200 * GIB, "no GPU"))
    assert (plenty.spec.checkpointing, plenty.spec.cached_layers) == (False, MISTRAL.layers)
    assert (plenty.spec.batch_size, plenty.spec.accumulation) == (spec.batch_size, spec.accumulation)
    assert on_the_cpu(config, without, KnownBudget(GIB, "no GPU")) == without
    assert on_the_cpu(config, without, Budget(None, "no GPU")) == without


def test_what_config_yaml_settles_is_kept_on_a_cpu(config):
    settled = config.with_settings({"optimization.gradient_checkpointing": True, "optimization.cached_layers": 3})
    without = plan_of(settled, TrainingSpec.from_config(settled, architecture=MISTRAL), [])
    found = on_the_cpu(settled, without, KnownBudget(200 * GIB, "no GPU"))
    assert (found.spec.checkpointing, found.spec.cached_layers) == (True, 3)


def test_processes_share_the_memory_of_the_host():
    one, two = free_host_budget(1).limit_bytes, free_host_budget(2).limit_bytes
    assert one is not None
    assert two == pytest.approx(one / 2, rel=0.2)  # other programs run
