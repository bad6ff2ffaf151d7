"""A stub libnvidia-ml.so.1, compiled here, behind the real nvidia-ml-py."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EMPTY_DATA = ("--set", "dataset.dir=/nonexistent")  # an estimate then does not depend on what data/ holds

TWO_GPUS = """\
gpus -1 2
name 0 NVIDIA GeForce RTX 4070 Ti
uuid 0 GPU-1a2b3c4d
capability 0 89
total 0 12282
used 0 6050
reserved 0 300
use 0 98
celsius 0 64
milliwatts 0 212345
limit 0 285000
clock 0 2610
clock_max 0 3105
throttle 0 4
compute 0 999999991 5300
graphics 0 999999992 310
name 1 NVIDIA H100 80GB HBM3
uuid 1 GPU-5e6f7a8b
capability 1 90
total 1 81559
used 1 1
"""


class StubDriver:
    """The scenario file that the stub library reads before each call."""

    def __init__(self, library: Path, scenario: Path) -> None:
        self.library, self.scenario = library, scenario
        self.set(TWO_GPUS)

    def set(self, *texts: str) -> None:
        """Replace the scenario; later lines win over earlier ones."""
        part = self.scenario.with_suffix(".part")
        part.write_text("\n".join(texts))
        os.replace(part, self.scenario)

    def add(self, *lines: str) -> None:
        """Change some values of two healthy GPUs."""
        self.set(TWO_GPUS, *lines)

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which a new process loads the stub instead of a driver."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.library.parent), "STUB_NVML": str(self.scenario)}


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stub, under the name that nvidia-ml-py loads."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to build a stand-in for the NVIDIA driver")
    library = tmp_path_factory.mktemp("stub") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("stub_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


@pytest.fixture
def stub(stub_library: Path, tmp_path: Path) -> StubDriver:
    """Two healthy GPUs for a new process."""
    return StubDriver(stub_library, tmp_path / "scenario.txt")


@pytest.fixture
def stub_here(stub: StubDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubDriver]:
    """Two healthy GPUs for this process: nvidia-ml-py is given the stub as the library it has loaded."""
    import pynvml

    monkeypatch.setenv("STUB_NVML", str(stub.scenario))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(stub.library)))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    yield stub
    pynvml._nvmlGetFunctionPointer_cache.clear()


class Script:
    """Runs monitor_gpu.py as a user does."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[str]:
        """Start it and return at once."""
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "monitor_gpu.py"), *arguments],
            cwd=REPOSITORY, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def cpu_seconds(self, *arguments: str) -> float:
        """Processor time of a run: what it would take on a machine that does nothing else. The best of three."""
        seconds = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.run(*arguments)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(seconds)


@pytest.fixture
def script(stub: StubDriver) -> Script:
    """monitor_gpu.py on a machine with two GPUs."""
    return Script(stub.environment)


@pytest.fixture
def script_without_driver() -> Script:
    """monitor_gpu.py on a machine without a driver, whatever the tests run on."""
    return Script({**os.environ, "LD_LIBRARY_PATH": ""})
