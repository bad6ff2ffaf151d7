"""Shards that are written tensor by tensor."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tool_aware.training.export import transfers
from tool_aware.training.export.weights import WeightFiles, shard_header, write_shard

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture
def tensors():
    """More than is fetched from a GPU at once, and no whole number of pieces of it."""
    torch.manual_seed(3)
    return {
        "a": torch.randn(5, 7, dtype=torch.bfloat16),
        "b": torch.randn(4099, 8192, dtype=torch.bfloat16),
        "c": torch.randn(3000, 1001, dtype=torch.bfloat16).T,  # not contiguous
        "d": torch.randn((), dtype=torch.bfloat16),
    }


@pytest.fixture
def stored(tensors, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    return file


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_shard_is_written_to_the_byte_whatever_reaches_the_disk_meanwhile(
    tensors, stored, tmp_path, monkeypatch, device
):
    synced = []
    monkeypatch.setattr(transfers, "_SYNCED_BYTES", 2**20)
    monkeypatch.setattr(os, "fsync", lambda handle, sync=os.fsync: (synced.append(handle), sync(handle)))
    write_shard(tmp_path / "written", shard_header(stored), lambda name: tensors[name].to(device))
    written = load_file(tmp_path / "written")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert len(synced) > 1


def test_a_disk_that_fails_behind_the_writing_is_told(tensors, stored, tmp_path, monkeypatch):
    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfers, "_SYNCED_BYTES", 2**20)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_shard(tmp_path / "written", shard_header(stored), tensors.__getitem__)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_tensors_are_read_as_they_are_stored(tensors, stored, device):
    files = WeightFiles(stored.parent, torch.device(device))
    for name, tensor in tensors.items():
        assert files[name].device.type == device
        assert torch.equal(files[name].cpu(), tensor)
    with files.kept():
        assert files["b"] is files["b"]
    assert files["b"] is not files["b"]


@pytest.mark.gpu
def test_a_file_that_was_cut_since_it_was_opened_is_told(stored):
    files = WeightFiles(stored.parent, torch.device("cuda"))
    os.truncate(stored, stored.stat().st_size // 2)
    with pytest.raises(OSError, match="ends before"):
        files["b"].cpu(), files["c"].cpu()


@pytest.mark.gpu
def test_a_gpu_converts_weights_as_a_processor_does():
    """All 65,536 values of bfloat16, those beyond float16 and below its normal numbers among them."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    ours, theirs = every.cuda().half().cpu(), every.half()
    assert torch.equal(ours.isnan(), theirs.isnan())
    kept = ~theirs.isnan()
    assert torch.equal(ours[kept].view(torch.int16), theirs[kept].view(torch.int16))
