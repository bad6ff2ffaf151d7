"""A driver for Triton that pretends to be a card: kernels are compiled for it and held to its limits, never run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Compute capability -> KiB of shared memory that one block may have (CUDA C++ Programming Guide, "Compute
# Capabilities": maximum shared memory per thread block).
SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
REGISTERS = 65_536  # of a multiprocessor, on all of these: a block that wants more cannot start
THREADS = 1024  # of a block, on all of these
WARP = 32


@dataclass(frozen=True)
class CompiledKernel:
    """What ptxas made of one kernel for one card."""

    kernel: str
    capability: int
    warps: int
    shared_bytes: int  # of a block
    registers: int  # of a thread
    spilled_bytes: int  # of a thread, in local memory
    has_bf16: bool  # whether an instruction names bfloat16


class PretendedGpu:
    """What Triton asks of a driver, with the limits of a card of this compute capability (8.6 is 86)."""

    def __init__(self, capability: int) -> None:
        self._capability = capability
        self.compiled: list[CompiledKernel] = []
        self.utils = self

    def get_current_device(self) -> int:
        """Return a number of its own: Triton keeps what it compiled by device."""
        return self._capability

    def get_current_stream(self, _device: int) -> int:
        """Return the default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return GPUTarget("cuda", self._capability, WARP)

    def get_device_properties(self, _device: int) -> dict[str, int]:
        """Return the limit that Triton holds a kernel to; it raises OutOfResources above it."""
        return {"max_shared_mem": SHARED_KIB[self._capability] * 1024}

    def launcher_cls(self, _source: Any, _metadata: Any) -> Any:
        """Return what is called instead of a launch."""
        return lambda *_arguments, **_options: None

    def load_binary(self, name: str, _cubin: bytes, _shared: int, _device: int) -> tuple[Any, Any, int, int, int]:
        """Return module, function, registers and spills, which nobody reads, and the threads that a block may have."""
        return name, name, 0, 0, THREADS

    def record(self, _module: Any, _function: Any, name: str, files: Mapping[str, str], _hash: str) -> None:
        """Record a kernel that was loaded, from the files that its compilation left."""
        paths = {Path(path).suffix: Path(path) for path in files.values()}
        metadata = json.loads(paths[".json"].read_text())
        registers, spilled = resources(paths[".cubin"])
        self.compiled.append(
            CompiledKernel(
                kernel=name.strip("_"),
                capability=self._capability,
                warps=metadata["num_warps"],
                shared_bytes=metadata["shared"],
                registers=registers,
                spilled_bytes=spilled,
                has_bf16="bf16" in paths[".ptx"].read_text(),
            )
        )


@contextmanager
def pretended_gpu(capability: int) -> Iterator[PretendedGpu]:
    """Let Triton compile for a card that is not there, and collect the kernels."""
    from tool_aware.engine import triton_attention, triton_ops

    before, gpu = driver._active, PretendedGpu(capability)
    driver.set_active(gpu)
    knobs.runtime.kernel_load_end_hook.add(gpu.record)
    try:
        yield gpu
    finally:
        knobs.runtime.kernel_load_end_hook.remove(gpu.record)
        driver._active = before
        for function in (vars(triton_ops) | vars(triton_attention)).values():
            if isinstance(function, triton.JITFunction):
                function.device_caches.pop(capability, None)


def resources(cubin: Path) -> tuple[int, int]:
    """Return registers and spilled bytes of a thread. The kernels have no arrays: their stack holds spills alone."""
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", cubin]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    return int(registers), int(stack) + int(local)
