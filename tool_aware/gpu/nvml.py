"""Read NVIDIA GPUs through NVML, and keep answering when the driver does not.

Each GPU is read on its own thread: a driver call that hangs cannot be cancelled, but it then holds up one GPU only.
A field the card does not support is None, never 0. Nothing here runs at import; `open_driver` loads the library.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tool_aware.console import UserError
from tool_aware.gpu.readings import UNKNOWN_NAME, DriverInfo, GpuReading, MigInstance, Process, command_of

CALL_TIMEOUT_S = 5.0  # nvmlInit takes 1-3 s on hosts with eight cards and no persistence daemon

REOPEN_INTERVAL_S = 2.0  # between attempts to reach a driver that has lost all its GPUs

# What the clocks are held back by (nvml.h, nvmlClocksEventReasons), the most telling first. Idle clocks and clocks set
# by the user are no throttling.
_THROTTLE_REASONS = (
    (0x40, "hardware thermal"),
    (0x20, "thermal"),
    (0x80, "power brake"),
    (0x08, "hardware slowdown"),
    (0x04, "power cap"),
)

# Beyond these a value is no measurement but a driver's way to say that it has none.
_MOST_BYTES, _MOST_CELSIUS, _MOST_MILLIWATTS, _MOST_MHZ = 2**50, 200, 10**8, 10**5

# NVML status codes (nvml.h, nvmlReturn_t) after which no field of that GPU can be had until it comes back.
_UNINITIALIZED, _NO_PERMISSION, _DRIVER_NOT_LOADED = 1, 4, 9
_LIBRARY_NOT_FOUND, _GPU_IS_LOST, _RESET_REQUIRED, _VERSION_MISMATCH, _GPU_NOT_FOUND = 12, 15, 16, 18, 28
_WHOLE_GPU_FAILS = {
    _UNINITIALIZED: "driver was unloaded",
    _DRIVER_NOT_LOADED: "driver was unloaded",
    _GPU_IS_LOST: "GPU is lost (it has fallen off the bus)",
    _RESET_REQUIRED: "GPU needs a reset",
    _GPU_NOT_FOUND: "GPU not found",
}


class DriverUnavailable(UserError):
    """NVML cannot be used at all: what is missing, and the remedy."""


class Driver:
    """An open NVML session. `read()` returns within the timeout whatever the driver does."""

    def __init__(self, library: Any, info: DriverInfo, indices: Sequence[int]) -> None:
        self.info = info
        self._library = library
        self._readers = [_Reader(library, index) for index in indices]
        self._next_reopen_s = 0.0

    @property
    def indices(self) -> tuple[int, ...]:
        """Return the numbers of the GPUs that are read, as nvidia-smi counts them."""
        return tuple(reader.index for reader in self._readers)

    def read(self, timeout_s: float = CALL_TIMEOUT_S) -> list[GpuReading]:
        """Read every GPU at once. One that does not answer in time is reported with a `problem`; others continue."""
        if all(reader.is_lost for reader in self._readers):
            self._reopen()
        for reader in self._readers:
            reader.request()
        deadline_s = time.monotonic() + timeout_s
        return [reader.result(deadline_s) for reader in self._readers]

    def close(self) -> None:
        """End the session. Threads stuck in the driver are left to die with the process."""
        for reader in self._readers:
            reader.stop()
        if not any(reader.is_stuck for reader in self._readers):
            with contextlib.suppress(self._library.NVMLError):
                self._library.nvmlShutdown()

    def _reopen(self) -> None:
        """Start a fresh session: after a driver reload every handle is dead, and only a fresh one sees the cards."""
        if time.monotonic() < self._next_reopen_s:
            return
        self._next_reopen_s = time.monotonic() + REOPEN_INTERVAL_S
        for call in (self._library.nvmlShutdown, self._library.nvmlInit):
            with contextlib.suppress(self._library.NVMLError, TimeoutError):
                _within(REOPEN_INTERVAL_S, call)


def open_driver(gpus: Sequence[int] | None = None, timeout_s: float = CALL_TIMEOUT_S) -> Driver:
    """Start NVML and choose the GPUs to read: all of them, or those numbered in `gpus`.

    Raises DriverUnavailable if there is no driver, no GPU or no permission, and UserError for a number out of range.
    """
    import pynvml

    try:
        info, count = _within(timeout_s, lambda: _start(pynvml))
    except pynvml.NVMLError as error:
        raise _explain_failure(error.value, str(error)) from None
    except TimeoutError:
        raise DriverUnavailable(
            f"the NVIDIA driver has not answered for {timeout_s:.0f} s",
            fix="look for 'NVRM: Xid' in `dmesg`; if a GPU hangs, reboot or `sudo nvidia-smi --gpu-reset`",
        ) from None
    if count == 0:
        raise DriverUnavailable(
            f"driver {info.version or 'of unknown version'} is loaded but has no GPU",
            fix="see `nvidia-smi -L`; in a container start it with `--gpus all`",
        )
    missing = [index for index in gpus or () if not 0 <= index < count]
    if missing:
        raise UserError(f"there is no GPU {missing[0]}; this machine has 0 to {count - 1}", where="--gpu")
    return Driver(pynvml, info, gpus or range(count))


def _start(library: Any) -> tuple[DriverInfo, int]:
    library.nvmlInit()
    version = _optional(library, library.nvmlSystemGetDriverVersion)
    cuda = _optional(library, library.nvmlSystemGetCudaDriverVersion)
    info = DriverInfo(version, f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None)
    return info, library.nvmlDeviceGetCount()


def _within(timeout_s: float, call: Callable[[], Any]) -> Any:
    """Run `call` on a thread of its own; TimeoutError if it is not back in time, else its result or exception."""
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((True, call()))
        except Exception as error:
            outcome.put((False, error))

    threading.Thread(target=work, daemon=True, name="nvml-start").start()
    try:
        is_done, value = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if not is_done:
        raise value
    return value


# ---- why there is no driver ------------------------------------------------------------------------------


def _explain_failure(code: int, message: str) -> DriverUnavailable:
    if code == _LIBRARY_NOT_FOUND:
        cards = nvidia_cards_on_pci()
        if cards:
            return DriverUnavailable(
                f"no NVIDIA driver: libnvidia-ml.so.1 is missing, though {cards} NVIDIA card(s) sit on the PCI bus",
                fix="install the driver (https://www.nvidia.com/drivers); in a container start it with `--gpus all`",
            )
        return DriverUnavailable(
            "no NVIDIA driver and no NVIDIA card: libnvidia-ml.so.1 is missing and the PCI bus shows no NVIDIA device",
            fix="run this on a machine with an NVIDIA GPU; `estimate`, the demo and the tests need none",
        )
    if code == _DRIVER_NOT_LOADED:
        return DriverUnavailable(
            "the NVIDIA driver is installed but its kernel module is not loaded",
            fix="sudo modprobe nvidia (after a kernel update: reinstall the driver or reboot)",
        )
    if code == _VERSION_MISMATCH:
        return DriverUnavailable(
            "the driver's library and its kernel module are of different versions (an update without a reboot)",
            fix="reboot, or `sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia`",
        )
    if code == _NO_PERMISSION:
        return DriverUnavailable(
            "no permission to talk to the NVIDIA driver",
            fix="let your user read and write /dev/nvidia* (groups `video` or `render`), or allow it in the container",
        )
    return DriverUnavailable(f"the NVIDIA driver refused: {message} (code {code})", fix="compare with `nvidia-smi`")


def nvidia_cards_on_pci(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """Count display controllers (PCI class 03) of NVIDIA (vendor 10de) that the kernel sees."""
    count = 0
    for device in devices.glob("*"):
        with contextlib.suppress(OSError):
            is_nvidia = (device / "vendor").read_text().strip() == "0x10de"
            count += is_nvidia and (device / "class").read_text().startswith("0x03")
    return count


# ---- one GPU ---------------------------------------------------------------------------------------------


class _Reader:
    """Reads one GPU on a daemon thread and remembers since when the driver has been silent."""

    def __init__(self, library: Any, index: int) -> None:
        self.index = index
        self.is_lost = False
        self._library = library
        self._handle: Any = None
        self._identity: dict[str, Any] = {}
        self._asked_s: float | None = None  # monotonic time of the request that is still open
        self._is_late = False  # it has not answered in time, so it is not waited for until it does
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[GpuReading] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name=f"nvml-{index}").start()

    @property
    def is_stuck(self) -> bool:
        """Return whether a request has not been answered yet."""
        return self._asked_s is not None

    def request(self) -> None:
        """Request a reading, unless the last request is still open."""
        if self._asked_s is None:
            self._asked_s = time.monotonic()
            self._requests.put(True)

    def result(self, deadline_s: float) -> GpuReading:
        """Wait for the answer until `deadline_s`; a GPU already known to hang is not waited for again."""
        wait_s = 0.001 if self._is_late else max(0.001, deadline_s - time.monotonic())
        try:
            reading = self._results.get(timeout=wait_s)
        except queue.Empty:
            self._is_late = True
            silent_s = time.monotonic() - (self._asked_s or time.monotonic())
            return GpuReading(self.index, **self._identity, problem=f"no answer from the driver for {silent_s:.0f} s")
        self._asked_s, self._is_late = None, False
        self.is_lost = reading.problem is not None
        return reading

    def stop(self) -> None:
        """End the thread once it is free."""
        self._requests.put(False)

    def _work(self) -> None:
        while self._requests.get():
            try:
                self._results.put(self._read())
            except self._library.NVMLError as error:
                self._handle = None  # after a reset the old handle is dead: look the card up again next time
                problem = _WHOLE_GPU_FAILS.get(error.value) or f"driver says: {error}"
                if error.value == _NO_PERMISSION:
                    problem = "no permission to read this GPU"
                self._results.put(GpuReading(self.index, **self._identity, problem=problem))
            except Exception as error:  # a reply that cannot be decoded must not end the thread: it would look hung
                problem = f"cannot be read: {type(error).__name__}: {error}"
                self._results.put(GpuReading(self.index, **self._identity, problem=problem))

    def _read(self) -> GpuReading:
        library = self._library
        if self._handle is None:
            self._handle = library.nvmlDeviceGetHandleByIndex(self.index)
            self._identity = dict(_identity(library, self._handle))
        handle = self._handle
        is_mig = (_optional(library, library.nvmlDeviceGetMigMode, handle) or (0, 0))[0] == 1
        utilization = _optional(library, library.nvmlDeviceGetUtilizationRates, handle)
        power_mw = _possible(_optional(library, library.nvmlDeviceGetPowerUsage, handle), _MOST_MILLIWATTS)
        limit_mw = _possible(_optional(library, library.nvmlDeviceGetEnforcedPowerLimit, handle), _MOST_MILLIWATTS)
        temperature_c = _optional(library, library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU)
        clock_mhz = _optional(library, library.nvmlDeviceGetClockInfo, handle, library.NVML_CLOCK_SM)
        return GpuReading(
            index=self.index,
            **self._identity,
            **_memory(library, handle),
            utilization_percent=_possible(utilization.gpu, 100) if utilization else None,
            temperature_c=_possible(temperature_c, _MOST_CELSIUS),
            power_w=power_mw / 1000 if power_mw is not None else None,
            power_limit_w=limit_mw / 1000 if limit_mw is not None else None,
            sm_clock_mhz=_possible(clock_mhz, _MOST_MHZ),
            throttled_by=_throttle_reason(library, handle),
            processes=_processes(library, handle),
            is_mig=is_mig,
            instances=tuple(_instances(library, handle)) if is_mig else (),
        )


def _optional(library: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call NVML for one field: None where the card does not have it, an exception only if the whole GPU is gone."""
    try:
        return call(*arguments)
    except library.NVMLError as error:
        if error.value in _WHOLE_GPU_FAILS:
            raise
        return None


def _first_answer(library: Any, calls: Sequence[Callable[..., Any]], handle: Any) -> Any:
    answers = (_optional(library, call, handle) for call in calls)
    return next((answer for answer in answers if answer is not None), None)


def _identity(library: Any, handle: Any) -> Iterator[tuple[str, Any]]:
    """Yield what does not change while a card is in the machine; read once per handle."""
    yield "name", _optional(library, library.nvmlDeviceGetName, handle) or UNKNOWN_NAME
    yield "uuid", _optional(library, library.nvmlDeviceGetUUID, handle)
    yield "compute_capability", _optional(library, library.nvmlDeviceGetCudaComputeCapability, handle)
    yield "sm_clock_max_mhz", _optional(library, library.nvmlDeviceGetMaxClockInfo, handle, library.NVML_CLOCK_SM)


def _memory(library: Any, handle: Any) -> dict[str, Any]:
    """Return total, used and reserved bytes as nvidia-smi shows them.

    Version 2 of the call tells the driver's own reserve apart; version 1, for older drivers, counts it as used.
    """
    memory = _optional(library, library.nvmlDeviceGetMemoryInfo, handle, library.nvmlMemory_v2)
    if memory:
        return _possible_memory(memory.total, memory.used, memory.reserved)
    memory = _optional(library, library.nvmlDeviceGetMemoryInfo, handle)
    return _possible_memory(memory.total, memory.used, None) if memory else {}


def _possible_memory(total: int, used: int, reserved: int | None) -> dict[str, Any]:
    """Return bytes as a card can have them. Some virtual and integrated GPUs report a total of 0, which is unknown."""
    if total <= 0:
        return {"used_bytes": used} if 0 < used < _MOST_BYTES else {}
    return {
        "total_bytes": total,
        "used_bytes": used if 0 <= used <= total else None,
        "reserved_bytes": reserved if reserved is not None and 0 <= reserved <= total else None,
    }


def _possible(value: float | None, most: float) -> Any:
    """Return a value that a card can have; None for the 4294967295 and the like of a card that cannot tell."""
    return value if value is not None and 0 <= value <= most else None


def _throttle_reason(library: Any, handle: Any) -> str | None:
    mask = _optional(library, library.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return next((reason for bit, reason in _THROTTLE_REASONS if mask and mask & bit), None)


def _processes(library: Any, handle: Any) -> tuple[Process, ...]:
    """Compute and graphics processes, the largest first; one that does both is listed once."""
    found: dict[int, int | None] = {}
    for kind in ("Graphics", "Compute"):
        # Drivers before 510 have version 2 of the call only, and the two differ in their struct.
        calls = [getattr(library, f"nvmlDeviceGet{kind}RunningProcesses_v{version}") for version in (3, 2)]
        listed = _first_answer(library, calls, handle) or ()
        found |= {process.pid: process.usedGpuMemory for process in listed}
    largest_first = sorted(found.items(), key=lambda item: (-(item[1] or 0), item[0]))
    return tuple(Process(pid, command_of(pid), used_bytes) for pid, used_bytes in largest_first)


def _instances(library: Any, handle: Any) -> Iterator[MigInstance]:
    for number in range(_optional(library, library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _optional(library, library.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if instance is not None:
            uuid = _optional(library, library.nvmlDeviceGetUUID, instance)
            yield MigInstance(uuid, **_memory(library, instance))
