"""The GPUs that CUDA_VISIBLE_DEVICES leaves to a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tool_aware.gpu.readings import GpuReading, MigInstance
from tool_aware.gpu.visible import chosen_gpus, visible_gpus
from tool_aware.memory.budget import MARGIN_BYTES, budget_of
from tool_aware.units import GIB

CARD = GpuReading(0, "RTX 4070 Ti", uuid="GPU-1a2b", total_bytes=int(12 * GIB), used_bytes=int(1 * GIB))


def test_only_cards_that_cuda_may_see_count():
    other = replace(CARD, index=1, uuid="GPU-5e6f")
    assert chosen_gpus([CARD, other], {}) == [CARD, other]
    assert chosen_gpus([CARD, other], {"CUDA_VISIBLE_DEVICES": "1,0"}) == [other, CARD]
    assert chosen_gpus([CARD, other], {"CUDA_VISIBLE_DEVICES": "GPU-5e"}) == [other]
    assert chosen_gpus([CARD, other], {"CUDA_VISIBLE_DEVICES": ""}) == []
    assert chosen_gpus([CARD, other], {"CUDA_VISIBLE_DEVICES": "1,7,0"}) == [other]


@pytest.mark.parametrize("name", ["MIG-bbbb", "MIG-b", "GPU-bbbb"])
def test_a_slice_that_is_named_has_its_own_memory(config, name):
    slices = (MigInstance("MIG-aaaa", 0, 5 * GIB), MigInstance("MIG-bbbb", GIB, 20 * GIB))
    sliced = replace(CARD, is_mig=True, instances=slices)
    (found,) = chosen_gpus([CARD, replace(sliced, index=1, uuid="GPU-5e6f")], {"CUDA_VISIBLE_DEVICES": name})
    assert (found.index, found.instances, found.free_bytes) == (1, slices[1:], 19 * GIB)
    assert budget_of(config, [found]).limit_bytes == pytest.approx(19 * GIB - MARGIN_BYTES)


def test_without_a_driver_there_are_no_cards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus([]) == []
