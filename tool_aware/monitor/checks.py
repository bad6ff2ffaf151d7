"""Answer "can I train here?" line by line, each ok, warning or problem with its remedy. Imports neither torch nor CUDA.

What a package was built for is read from its files: importing torch takes seconds and would itself take GPU memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tool_aware.config.environment import Environment
from tool_aware.config.settings import Config
from tool_aware.console import UserError, warn
from tool_aware.database import DatabaseUnreachable, connect_to_database
from tool_aware.gpu.device_facts import OLDEST_CAPABILITY, DeviceFacts
from tool_aware.gpu.nvml import DriverUnavailable, open_driver
from tool_aware.gpu.published_cards import published_card
from tool_aware.gpu.readings import DriverInfo, GpuReading, MigInstance
from tool_aware.gpu.visible import chosen_gpus
from tool_aware.memory.architectures import Architecture, cached_snapshot, find_architecture, hub_cache
from tool_aware.memory.budget import allowed_by
from tool_aware.memory.estimate import MemoryEstimate, estimate_training
from tool_aware.memory.fit import fit_card
from tool_aware.memory.plan import open_choices, plan_of
from tool_aware.memory.spec import TrainingSpec
from tool_aware.memory.workload import spec_of_data
from tool_aware.units import GIB

Status = Literal["ok", "warning", "problem"]
STATUSES: tuple[Status, ...] = get_args(Status)

CHECKPOINT_BYTES_PER_PARAMETER = 16  # adapter 4, optimizer state and masters 12


@dataclass(frozen=True)
class CheckLine:
    """One line of the answer."""

    status: Status
    name: str
    finding: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for --json."""
        return asdict(self)


def check_machine(
    config: Config, environment: Environment, spec: TrainingSpec | None, *, is_deep: bool = False
) -> tuple[list[GpuReading], list[CheckLine]]:
    """Read the GPUs and make all checks; `is_deep` also computes on the GPU, which imports torch.

    Without a spec, because the model is not known, memory and disk are not judged.
    """
    gpus: list[GpuReading] = []
    info: DriverInfo | None = None
    try:
        driver = open_driver()
        gpus, info = driver.read(), driver.info
        driver.close()
        lines = [check_driver(info)]
    except DriverUnavailable as error:
        lines = [CheckLine("problem", "driver", error.what, error.fix)]
    lines += [check_torch(info), check_bitsandbytes()]
    lines += [CheckLine("problem", f"GPU {gpu.index}", gpu.problem, "see `nvidia-smi`") for gpu in gpus if gpu.problem]
    lines += check_visible(gpus)
    visible, chosen = visible_gpu(gpus), gpu_for_training(gpus)
    if visible is not None and chosen is not None:
        lines += [check_precision(chosen), *check_mig(visible)]
        if spec:
            spec = spec.on(DeviceFacts("cuda", chosen.compute_capability))
            plan = plan_of(config, spec, [chosen])
            lines.append(check_memory(chosen, estimate_training(plan.spec), memory_remedies(spec, chosen, config)))
    if is_deep:
        lines.append(check_computing())
    if spec:
        lines += check_disk(config, spec.architecture)
    return gpus, [*lines, check_token(config, environment), *check_database(config, environment)]


def spec_or_problem(config: Config) -> tuple[TrainingSpec | None, list[CheckLine]]:
    """Return the spec of the configured training, or None and the line that says what is wrong."""
    part = "model"
    try:
        architecture = find_architecture(config.model.name)
        part = "data"
        spec = spec_of_data(config, architecture)[0]
        part = "adapter"
        architecture.adapter_parameters(spec.lora_r, spec.targets)
    except UserError as error:
        return None, [CheckLine("problem", part, f"{error.where}: {error.what}", error.fix)]
    return spec, []


def gpu_here() -> tuple[GpuReading | None, list[CheckLine]]:
    """Return the GPU or slice that a run here would take; none without a driver, or where the lines say why not."""
    try:
        driver = open_driver()
    except DriverUnavailable:
        return None, []
    gpus = driver.read()
    driver.close()
    return gpu_for_training(gpus), list(check_visible(gpus))


def card_of(card: str | None, vram_gib: float | None) -> tuple[str | None, float | None, DeviceFacts]:
    """Return name, memory and facts of the card to fit: as named, else the GPU or slice that a run here would take."""
    named = published_card(card) if card else None
    if vram_gib is not None:
        return card, vram_gib * GIB, DeviceFacts("cuda", named.capability if named else None)
    gpu, lines = gpu_here()
    for line in lines:
        warn(line.finding)
    name = gpu.name if gpu and not gpu.is_mig else None  # a slice is slower than its card
    capability = named.capability if named else gpu.compute_capability if gpu else None
    return card or name, gpu.total_bytes if gpu else None, DeviceFacts("cuda", capability)


def visible_gpu(gpus: Sequence[GpuReading], environ: Mapping[str, str] = os.environ) -> GpuReading | None:
    """Return the first GPU that CUDA_VISIBLE_DEVICES leaves and that answers; None if torch will see none."""
    return next((gpu for gpu in chosen_gpus(gpus, environ) if not gpu.problem), None)


def gpu_for_training(gpus: Sequence[GpuReading], environ: Mapping[str, str] = os.environ) -> GpuReading | None:
    """Return the GPU that torch will call cuda:0; of a sliced card without a named slice, the roomiest slice."""
    gpu = visible_gpu(gpus, environ)
    return gpu.of_slice(roomiest(gpu.instances)) if gpu and gpu.instances else gpu


def roomiest(slices: Sequence[MigInstance]) -> MigInstance:
    """Return the slice with most free memory."""
    return max(slices, key=lambda part: -1 if part.free_bytes is None else part.free_bytes)


def check_visible(gpus: Sequence[GpuReading], environ: Mapping[str, str] = os.environ) -> Iterator[CheckLine]:
    """Yield a problem if CUDA_VISIBLE_DEVICES hides all GPUs."""
    if gpus and not chosen_gpus(gpus, environ):
        finding = f"CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']} names no GPU; torch will see none"
        yield CheckLine("problem", "GPU", finding, f"export CUDA_VISIBLE_DEVICES={gpus[0].index}, or unset it")


def memory_remedies(spec: TrainingSpec, gpu: GpuReading, config: Config) -> list[str]:
    """Return the edits of config.yaml with which training would fit the memory that is free now."""
    if gpu.free_bytes is None:
        return []
    answer = fit_card(spec, gpu.free_bytes, open_choices(config), allowed_by(config))
    return [f"{key}: {json.dumps(value).strip(chr(34))}" for key, value in answer.keys.items()]


def check_computing() -> CheckLine:
    """Multiply by an NF4 matrix on the GPU, forward and backward: the whole stack, for a second."""
    import torch

    if not torch.cuda.is_available():
        return CheckLine("problem", "computing", "torch sees no CUDA device", "see the lines about driver and torch")
    from bitsandbytes.nn.modules import Linear4bit

    try:
        layer = Linear4bit(256, 256, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16).to("cuda")
        inputs = torch.ones(4, 256, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        layer(inputs).float().pow(2).sum().backward()
        gradient = inputs.grad
        is_sound = gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.abs().sum() > 0)
    except RuntimeError as error:
        return CheckLine(
            "problem", "computing", f"NF4 on the GPU fails: {str(error).splitlines()[0]}", "reinstall torch"
        )
    if not is_sound:
        return CheckLine("problem", "computing", "NF4 on the GPU gives no finite gradient", "reinstall bitsandbytes")
    free, total = torch.cuda.mem_get_info()
    return CheckLine(
        "ok", "computing", f"NF4 forward and backward; torch sees {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    )


def check_driver(info: DriverInfo) -> CheckLine:
    """Name the driver and the newest CUDA it serves."""
    version = info.version or "version unknown"
    return CheckLine("ok", "driver", f"{version}, serves CUDA up to {info.cuda or 'an unknown version'}")


def check_torch(info: DriverInfo | None) -> CheckLine:
    """Compare the CUDA version that torch was built for with the driver's."""
    built = torch_build()
    if built is None:
        return CheckLine("problem", "torch", "not installed", "pip install -r requirements.txt")
    version, cuda = built
    if cuda is None:
        if info is None:
            return CheckLine("ok", "torch", f"{version}, a CPU build: enough for the demo")
        remedy = "install a build for your CUDA: https://pytorch.org/get-started/locally"
        return CheckLine("problem", "torch", f"{version} is a CPU build: it cannot use a GPU", remedy)
    # A driver serves every CUDA runtime of its own major version (CUDA minor version compatibility).
    if info and info.cuda and _numbers(cuda)[0] > _numbers(info.cuda)[0]:
        remedy = f"update the driver, or install a torch built for CUDA {info.cuda}"
        return CheckLine("problem", "torch", f"{version} needs CUDA {cuda}, the driver serves {info.cuda}", remedy)
    return CheckLine("ok", "torch", f"{version}, built for CUDA {cuda}")


def torch_build(package: Path | None = None) -> tuple[str, str | None] | None:
    """Read (version, CUDA version or None) from torch/version.py; None if torch is not installed."""
    folder = package or _package_folder("torch")
    if folder is None or not (folder / "version.py").is_file():
        return None
    text = (folder / "version.py").read_text(encoding="utf-8")
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", text, re.MULTILINE)
    return (version[1] if version else "version unknown"), (cuda[1] if cuda else None)


def check_bitsandbytes() -> CheckLine:
    """Find the compiled library of bitsandbytes that fits torch's CUDA, as its own loader chooses it."""
    from importlib import metadata

    folder, built = _package_folder("bitsandbytes"), torch_build()
    if folder is None:
        return CheckLine("problem", "bitsandbytes", "not installed", "pip install -r requirements.txt")
    version = metadata.version("bitsandbytes")
    if built is None or built[1] is None:
        return CheckLine("ok", "bitsandbytes", f"{version}, CPU backend")
    major = built[1].partition(".")[0]
    names = [path.stem.removeprefix("libbitsandbytes_cuda") for path in folder.glob("libbitsandbytes_cuda*.so")]
    if not any(name.startswith(major) for name in names):
        remedy = "pip install --upgrade bitsandbytes"
        return CheckLine("problem", "bitsandbytes", f"{version} has no library for CUDA {built[1]}", remedy)
    return CheckLine("ok", "bitsandbytes", f"{version}, CUDA {major} backend")


def check_precision(gpu: GpuReading) -> CheckLine:
    """Check whether the card computes in bfloat16."""
    if gpu.compute_capability is None:
        return CheckLine("warning", "precision", f"GPU {gpu.index} does not tell its compute capability")
    capability = tuple(gpu.compute_capability)
    shown = ".".join(map(str, capability))
    if capability < OLDEST_CAPABILITY:
        remedy = "use a card of the Pascal generation (2016) or newer"
        return CheckLine("problem", "precision", f"compute capability {shown} is too old for bitsandbytes", remedy)
    if not DeviceFacts("cuda", gpu.compute_capability).has_bf16:
        return CheckLine(
            "warning",
            "precision",
            f"compute capability {shown}: no bfloat16, so float16 and transformers' slower pass",
        )
    return CheckLine("ok", "precision", f"bfloat16 (compute capability {shown})")


def check_memory(gpu: GpuReading, estimate: MemoryEstimate, remedies: Sequence[str] = ()) -> CheckLine:
    """Hold the estimate against the free memory; name what holds the rest, then `remedies` (edits that would fit)."""
    needed_gib = estimate.total_bytes / GIB
    free_bytes = gpu.free_bytes
    if free_bytes is None:
        return CheckLine("warning", "memory", f"training takes about {needed_gib:.1f} GiB; free memory is not known")
    where = f"slice {gpu.uuid} of GPU {gpu.index}" if gpu.instances else f"GPU {gpu.index}"
    finding = f"training would take about {needed_gib:.1f} GiB, {free_bytes / GIB:.1f} GiB are free on {where}"
    if estimate.total_bytes * (1 + estimate.calibration.error_percent / 100) <= free_bytes:
        return CheckLine("ok", "memory", finding)
    if estimate.total_bytes <= free_bytes:
        return CheckLine("warning", "memory", f"{finding}: within the estimate's error", _first(remedies))
    holders = [f"{process.command or 'process'} ({process.pid})" for process in gpu.processes[:3]]
    would_fit = gpu.total_bytes is not None and estimate.total_bytes <= gpu.total_bytes
    close = f"close {', '.join(holders)}" if holders and would_fit else None
    return CheckLine("problem", "memory", finding, " or ".join(filter(None, (close, _first(remedies)))) or None)


def _first(remedies: Sequence[str]) -> str | None:
    return f"set {', '.join(remedies)}" if remedies else None


def check_mig(gpu: GpuReading) -> Iterator[CheckLine]:
    """Check that a card in MIG mode has a slice to use: one at a time, the named one if there are several."""
    if not gpu.is_mig:
        return
    if not gpu.instances:
        remedy = "sudo nvidia-smi mig -cgi 0 -C, or switch MIG off: sudo nvidia-smi -mig 0"
        yield CheckLine("problem", "MIG", f"GPU {gpu.index} is in MIG mode and has no instance", remedy)
        return
    uuids = ", ".join(part.uuid or "?" for part in gpu.instances)
    if len(gpu.instances) == 1:
        yield CheckLine("ok", "MIG", f"GPU {gpu.index} is sliced; a run uses {uuids}")
        return
    best = roomiest(gpu.instances)
    choice = f"export CUDA_VISIBLE_DEVICES={best.uuid}, which has most free memory" if best.uuid else None
    yield CheckLine("warning", "MIG", f"GPU {gpu.index} is sliced; a run uses one of {uuids}", choice)


def check_disk(config: Config, architecture: Architecture) -> Iterator[CheckLine]:
    """Compare free disk space with what the model, the checkpoints and the merged model will take."""
    weights = architecture.parameters * 2
    targets = config.lora.target_modules
    adapter = architecture.adapter_parameters(config.lora.r, targets if isinstance(targets, str) else tuple(targets))
    written = weights + adapter * CHECKPOINT_BYTES_PER_PARAMETER * (config.training.save_total_limit + 1)
    needs = {config.training.output_dir: ("merged model and checkpoints", written)}
    if not has_model(config.model.name):
        needs[hub_cache()] = ("model download", weights)
    for path, (what, needed) in needs.items():
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        finding = f"{needed / GIB:.1f} GiB for the {what}, {free / GIB:.0f} GiB are free at {existing}"
        if free < needed:
            yield CheckLine("problem", "disk", finding, "free some space, or set training.output_dir / HF_HOME")
        else:
            yield CheckLine("ok", "disk", finding)


def has_model(name: str) -> bool:
    """Return whether the weights are on this machine: a local folder, or a finished download."""
    if Path(name).is_dir():
        return True
    snapshot = cached_snapshot(name)
    return snapshot is not None and any(snapshot.glob("*.safetensors"))


def check_token(config: Config, environment: Environment) -> CheckLine:
    """Check whether the model can be fetched; the token itself is never shown."""
    name = config.model.name
    if Path(name).is_dir():
        return CheckLine("ok", "model", f"local folder {name}")
    if has_model(name):
        return CheckLine("ok", "model", f"{name} is downloaded")
    if environment.hf_token:
        return CheckLine("ok", "model", f"{name} will be downloaded with HF_TOKEN (set, not shown)")
    remedy = "export HF_TOKEN=... (https://huggingface.co/settings/tokens)"
    return CheckLine("warning", "model", f"{name} is not downloaded and HF_TOKEN is not set", remedy)


def check_database(config: Config, environment: Environment) -> Iterator[CheckLine]:
    """Connect to the query log's database, if it is to be used. Never a problem: training does not need it."""
    if not config.dataset.use_query_log:
        return
    place = f"{environment.postgres_db} at {environment.postgres_host}:{environment.postgres_port}"
    try:
        connect_to_database(config.database, environment).close()
    except UserError as error:
        is_left_out = isinstance(error, DatabaseUnreachable) and not environment.names_a_database
        effect = "only synthetic rows without it" if is_left_out else "prepare_dataset.py would stop there"
        yield CheckLine("warning", "database", f"{place}: {error.what}; {effect}", error.fix)
        return
    yield CheckLine("ok", "database", f"{place} answers")


# ---- small things ----------------------------------------------------------------------------------------


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _package_folder(name: str) -> Path | None:
    found = importlib.util.find_spec(name)  # looks the package up without running it
    return Path(found.origin).parent if found and found.origin else None
