"""The GPUs that a run may use: those that CUDA_VISIBLE_DEVICES leaves, read through the driver."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tool_aware.console import UserError
from tool_aware.gpu.nvml import open_driver
from tool_aware.gpu.readings import GpuReading


def visible_gpus(uuids: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[GpuReading]:
    """Read the GPUs of these UUIDs, in order, else those that CUDA_VISIBLE_DEVICES leaves; none without a driver."""
    try:
        driver = open_driver()
    except UserError:
        return []
    gpus = [gpu for gpu in driver.read() if not gpu.problem]
    driver.close()
    visible = chosen_gpus(gpus, environ)
    return chosen_gpus(visible or gpus, {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}) or visible


def chosen_gpus(gpus: Sequence[GpuReading], environ: Mapping[str, str]) -> list[GpuReading]:
    """Return those of `gpus` that CUDA_VISIBLE_DEVICES names by number or beginning of a UUID; all if it is unset.

    A MIG slice is named by its UUID; its card is returned with the slice's memory and without other slices. As in CUDA
    the first name that fits nothing ends the list.
    """
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return list(gpus)
    found = []
    for name in environ["CUDA_VISIBLE_DEVICES"].split(","):
        gpu = _called(gpus, name.strip())
        if gpu is None:
            break
        found.append(gpu)
    return found


def _called(gpus: Sequence[GpuReading], name: str) -> GpuReading | None:
    for gpu in gpus if name else ():
        if name == str(gpu.index) or (gpu.uuid or "").startswith(name):
            return gpu
        for part in gpu.instances:  # torch calls a slice GPU-..., the driver MIG-...
            if part.uuid and part.uuid.startswith((name, name.replace("GPU-", "MIG-", 1))):
                return gpu.of_slice(part)
    return None
