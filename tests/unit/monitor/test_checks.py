"""Each line of `check`: when it is ok, a warning or a problem, and that a problem has its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.settings import Config, load_config
from tool_aware.gpu.readings import DriverInfo, GpuReading, MigInstance, Process
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.estimate import estimate_training
from tool_aware.memory.plan import plan_of
from tool_aware.memory.spec import TrainingSpec
from tool_aware.monitor import checks
from tool_aware.monitor.printout import check_text, verdict
from tool_aware.units import GIB

SPEC = TrainingSpec(PRESETS["mistral-7b-v0.2"], batch_size=8, seq_length=400, packing="prefix", prefix_tokens=260)
ESTIMATE = estimate_training(SPEC)
NEEDED_GIB = ESTIMATE.total_bytes / GIB


def gpu(free_gib: float, total_gib: float = 12.0, **fields: object) -> GpuReading:
    used_bytes = int((total_gib - free_gib) * GIB)
    return GpuReading(0, "RTX", total_bytes=int(total_gib * GIB), used_bytes=used_bytes, **fields)


def test_enough_free_memory_is_ok_and_barely_enough_is_a_warning():
    assert checks.check_memory(gpu(NEEDED_GIB + 1), ESTIMATE).status == "ok"
    assert checks.check_memory(gpu(NEEDED_GIB + 0.05), ESTIMATE).status == "warning"


def test_too_little_memory_names_who_holds_the_rest_and_what_would_fit():
    pinned = load_config(REPOSITORY / "config.yaml", ["optimization.offload=false", "optimization.micro_batch=fixed"])
    busy = gpu(NEEDED_GIB - 0.05, processes=(Process(4711, "vllm", 5 * GIB),))
    line = checks.check_memory(busy, ESTIMATE, checks.memory_remedies(SPEC, busy, pinned))
    assert line.status == "problem"
    assert "close vllm (4711)" in line.remedy
    assert "optimization.offload: true" in line.remedy


def test_a_run_that_may_choose_takes_what_is_free_and_is_ok(config):
    for free in (6.0, 9.0, 11.5):
        plan = plan_of(config, SPEC, [gpu(free)])
        assert checks.check_memory(gpu(free), estimate_training(plan.spec)).status == "ok"


def test_closing_programs_is_no_advice_on_a_card_that_is_too_small():
    line = checks.check_memory(gpu(3, 4, processes=(Process(4711, "vllm", GIB),)), ESTIMATE)
    assert line.status == "problem"
    assert line.remedy is None


def test_in_mig_mode_the_largest_slice_counts():
    slices = (MigInstance("MIG-a", 0, 5 * GIB), MigInstance("MIG-b", GIB, 20 * GIB), MigInstance(None, None, GIB))
    sliced = gpu(70, 80, is_mig=True, instances=slices)
    largest = checks.gpu_for_training([sliced], {})
    assert "19.0 GiB are free on slice MIG-b of GPU 0" in checks.check_memory(largest, ESTIMATE).finding
    (line,) = checks.check_mig(sliced)
    assert (line.status, "export CUDA_VISIBLE_DEVICES=MIG-b" in line.remedy) == ("warning", True)
    assert [line.status for line in checks.check_mig(gpu(70, 80, is_mig=True))] == ["problem"]
    assert list(checks.check_mig(gpu(9))) == []


def test_memory_that_is_not_told_is_a_warning_and_not_a_zero():
    line = checks.check_memory(GpuReading(0), ESTIMATE)
    assert (line.status, "not known" in line.finding) == ("warning", True)


@pytest.mark.parametrize(
    ("capability", "status"), [((8, 9), "ok"), ((7, 5), "warning"), ((5, 2), "problem"), (None, "warning")]
)
def test_precision_follows_the_generation_of_the_card(capability, status):
    assert checks.check_precision(GpuReading(0, compute_capability=capability)).status == status


def write_torch(folder: Path, version: str, cuda: str | None) -> Path:
    folder.mkdir()
    (folder / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\nhip = None\n")
    return folder


@pytest.mark.parametrize(
    ("cuda", "driver_cuda", "status"),
    [("13.0", "12.8", "problem"), ("12.8", "12.4", "ok"), ("12.8", None, "ok"), (None, "12.8", "problem")],
)
def test_torch_is_held_against_the_driver(tmp_path, monkeypatch, cuda, driver_cuda, status):
    folder = write_torch(tmp_path / "torch", "2.13.0", cuda)
    monkeypatch.setattr(checks, "_package_folder", lambda name: folder)
    assert checks.check_torch(DriverInfo("570", driver_cuda)).status == status


def test_a_cpu_build_is_fine_where_there_is_no_driver_either(tmp_path, monkeypatch):
    folder = write_torch(tmp_path / "torch", "2.13.0+cpu", None)
    monkeypatch.setattr(checks, "_package_folder", lambda name: folder)
    assert checks.check_torch(None).status == "ok"


def test_the_installed_torch_is_read_without_importing_it():
    import torch

    assert checks.torch_build() == (torch.__version__, torch.version.cuda)


@pytest.mark.parametrize(("cuda", "status"), [("13.0", "ok"), ("12.5", "ok"), ("11.8", "ok"), ("14.0", "problem")])
def test_bitsandbytes_needs_a_library_of_torchs_cuda_generation(monkeypatch, cuda, status):
    monkeypatch.setattr(checks, "torch_build", lambda: ("2.13.0", cuda))
    assert checks.check_bitsandbytes().status == status


def test_a_disk_that_is_too_small_is_a_problem(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    architecture = PRESETS["mistral-7b-v0.2"]
    assert {line.status for line in checks.check_disk(config, architecture)} <= {"ok", "problem"}
    usage = checks.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage._replace(free=GIB))
    lines = list(checks.check_disk(config, architecture))
    assert [line.status for line in lines] == ["problem", "problem"]  # the merged model, and the download
    assert "13.5 GiB for the model download" in lines[1].finding


def test_the_token_is_reported_and_never_shown(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    secret = "hf_abcdefghijklmnop"
    line = checks.check_token(config, Environment(hf_token=secret))
    assert line.status == "ok"
    assert secret not in str(line)
    assert checks.check_token(config, Environment()).status == "warning"


def test_a_local_model_needs_no_token(tiny_model_dir):
    config = load_config(REPOSITORY / "config.yaml", [f"model.name={tiny_model_dir}"])
    assert checks.check_token(config, Environment()).status == "ok"


def test_a_database_that_does_not_answer_is_a_warning_without_the_password(config):
    environment = Environment(postgres_host="127.0.0.1", postgres_port=1, postgres_password="hunter2hunter2")
    (line,) = checks.check_database(config, environment)
    assert line.status == "warning"
    assert "refused" in line.finding
    assert "hunter2" not in str(line)


def test_no_database_is_asked_for_where_none_is_used():
    config = load_config(REPOSITORY / "config.yaml", ["dataset.use_query_log=false"])
    assert list(checks.check_database(config, Environment())) == []


@pytest.mark.parametrize(("visible", "index"), [(None, 0), ("1", 1), ("1,0", 1), ("GPU-b", 1)])
def test_the_gpu_for_training_is_the_one_torch_will_take(visible, index):
    gpus = [GpuReading(0, uuid="GPU-a"), GpuReading(1, uuid="GPU-b")]
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert checks.gpu_for_training(gpus, environ).index == index
    assert list(checks.check_visible(gpus, environ)) == []
    assert checks.gpu_for_training([], environ) is None


@pytest.mark.parametrize("visible", ["", "-1", "7", "MIG-x"])
def test_where_torch_will_see_no_gpu_none_is_judged(visible):
    gpus, environ = [GpuReading(0, uuid="GPU-a")], {"CUDA_VISIBLE_DEVICES": visible}
    assert checks.gpu_for_training(gpus, environ) is None
    (line,) = checks.check_visible(gpus, environ)
    assert line.status == "problem"
    assert f"CUDA_VISIBLE_DEVICES={visible} names no GPU; torch will see none" in line.finding


def test_the_slice_that_is_named_is_the_one_that_is_judged():
    slices = (MigInstance("MIG-a", 0, 20 * GIB), MigInstance("MIG-b", 0, 5 * GIB))
    sliced, environ = gpu(70, 80, is_mig=True, instances=slices), {"CUDA_VISIBLE_DEVICES": "MIG-b"}
    chosen = checks.gpu_for_training([gpu(9), sliced], environ)
    assert "5.0 GiB are free on slice MIG-b" in checks.check_memory(chosen, ESTIMATE).finding
    assert [line.status for line in checks.check_mig(checks.visible_gpu([sliced], environ))] == ["ok"]


def test_text_is_wrapped_at_the_width_and_keeps_its_columns():
    lines = [
        checks.CheckLine("ok", "driver", "570"),
        checks.CheckLine("problem", "memory", "word " * 30, "remedy " * 20),
    ]
    texts = [text for _, text in check_text(lines, width=60)]
    assert max(map(len, texts)) <= 60
    assert all(text.startswith(" " * 17) for text in texts[2:])
    assert verdict(lines) == "not ready: 1 to fix"
    assert verdict(lines[:1]) == "ready to train"


def test_a_real_database_is_reached(config: Config, new_database):
    environment = read_environment(new_database("cipher_analytics", "cipher"))
    (line,) = checks.check_database(config, environment)
    assert line.status == "ok"
