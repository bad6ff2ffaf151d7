"""The Triton kernels compile for the cards that people own and stay within what those have; no GPU needed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

from tests.fixtures.repository import REPOSITORY

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton, which a CPU build of torch lacks (.ci/run installs it)", allow_module_level=True)

CAPABILITIES = (75, 80, 86, 89, 90, 120)
CASES = [("mistral-7b", capability) for capability in CAPABILITIES]
CASES += [("smollm2-135m", 75), ("smollm2-135m", 120), ("qwen3-8b", 86), ("qwen3-8b", 120)]


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """benchmarks/triton_kernels.py, with an empty cache."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return importlib.import_module("triton_kernels")


@pytest.mark.parametrize(("model", "capability"), CASES)
def test_every_kernel_of_a_layer_fits_the_card_without_spilling_registers(kernels, model, capability):
    architecture, is_nested = kernels.MODELS[model]
    found = kernels.compiled(architecture, capability, is_nested=is_nested)
    assert {kernel.kernel: kernels.faults(kernel) for kernel in found if kernels.faults(kernel)} == {}
    assert not any(kernel.has_bf16 for kernel in found if kernel.capability == 75)
    rotations = {"norm_and_rotate", "norm_and_rotate_backward"} if model == "qwen3-8b" else {"rotate"}
    others = {"rms_norm", "rms_norm_backward", "swiglu", "swiglu_backward", "merge_attention", "add_copies"}
    others |= {"fill_matrix", "copy_all"}
    assert {kernel.kernel for kernel in found} == rotations | others


def test_a_kernel_that_wants_more_than_the_card_has_is_refused(kernels, monkeypatch):
    from triton.runtime.errors import OutOfResources

    unused = 87  # Triton asks a device for its memory once in a process
    monkeypatch.setitem(importlib.import_module("_pretended_gpu").SHARED_KIB, unused, 0)
    with pytest.raises(OutOfResources, match="shared memory"):
        kernels.compiled(kernels.MODELS["smollm2-135m"][0], unused)


def test_spilled_registers_too_many_of_them_and_bfloat16_on_turing_are_faults(kernels):
    good = importlib.import_module("_pretended_gpu").CompiledKernel("swiglu", 75, 4, 8192, 64, 0, has_bf16=False)
    assert not kernels.faults(good)
    for change in ({"spilled_bytes": 8}, {"registers": 255, "warps": 16}, {"has_bf16": True}, {"shared_bytes": 65_537}):
        assert len(kernels.faults(replace(good, **change))) == 1, change
