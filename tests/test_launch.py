"""The files of launch/: scripts are valid, start torchrun with the place of their node, and agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.repository import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SCRIPTS = [LAUNCH / "train.sh", LAUNCH / "slurm.sbatch"]
MANIFESTS = sorted((LAUNCH / "kubernetes").glob("*.yaml"))
OLDEST_KUBERNETES = "1.31"  # that the files name


def resources(*, kind: str) -> dict[str, dict[str, Any]]:
    """Resources of a kind by the name of their file."""
    documents = [(path.name, document) for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
    return {name: document for name, document in documents if document["kind"] == kind}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["containers"], *pod.get("initContainers", [])]


def variables(container: dict[str, Any]) -> dict[str, str | None]:
    return {item["name"]: item.get("value") for item in container.get("env", [])}


def save_seconds() -> int:
    """Seconds that launch/train.sh gives a run to save before torchrun kills it."""
    return int(re.search(r"SAVE_SECONDS:-(\d+)", SCRIPTS[0].read_text())[1])


# ---- scripts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_and_can_be_started(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def torchrun_arguments(tmp_path):
    """Run launch/train.sh in an empty folder with a torchrun that only prints; return what it was given."""
    program = tmp_path / "bin" / "torchrun"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)

    def start(*arguments: str, **environment: str) -> list[str]:
        path = f"{program.parent}:{os.environ['PATH']}"
        command = [SCRIPTS[0], *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PATH": path, **environment}, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    return start


def test_one_machine_uses_all_of_its_gpus(torchrun_arguments):
    given = " ".join(torchrun_arguments("--set", "lora.r=16"))
    assert "--nnodes 1 --node-rank 0 --nproc-per-node gpu" in given
    assert given.endswith("train_tool_aware.py --output_dir output --set lora.r=16")


@pytest.mark.parametrize("says", ["NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX"])
def test_the_rank_of_a_node_is_what_its_scheduler_says(torchrun_arguments, says):
    given = " ".join(torchrun_arguments(NODES="2", GPUS="8", MASTER_ADDR="first", **{says: "1"}))
    assert "--nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr first" in given


def test_a_job_that_is_started_again_resumes_where_there_is_a_checkpoint(torchrun_arguments, tmp_path):
    assert "--resume" not in torchrun_arguments(OUTPUT_DIR="run")
    (tmp_path / "run" / "checkpoint-8").mkdir(parents=True)
    assert torchrun_arguments(OUTPUT_DIR="run")[-1] == "--resume"


def test_slurm_gives_a_run_longer_to_save_than_torchrun_does():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.+))?$", SCRIPTS[1].read_text(), re.MULTILINE))
    assert int(options["signal"].removeprefix("B:USR1@")) > save_seconds()
    assert options["ntasks-per-node"] == "1"
    assert "requeue" in options


# ---- Kubernetes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_knows_every_key(path):
    validator = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all(path.read_text()):
        validator.validate(document, OLDEST_KUBERNETES, strict=True)


def test_jobs_have_one_image_one_volume_and_one_secret():
    jobs = resources(kind="Job")
    (claim,) = resources(kind="PersistentVolumeClaim").values()
    pods = [pod_of(job) for job in jobs.values()]
    assert len(pods) == 4
    assert len({container["image"] for pod in pods for container in containers(pod)}) == 1
    claims = [v["persistentVolumeClaim"] for pod in pods for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": claim["metadata"]["name"]}] * 4
    text = "\n".join(path.read_text() for path in MANIFESTS)
    assert set(re.findall(r"create secret generic (\S+)|secret(?:Key)?Ref: \{name: ([\w-]+)", text)) == {
        ("tool-aware", ""),
        ("", "tool-aware"),
    }
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]} <= volumes
        assert not pod["enableServiceLinks"]  # POSTGRES_PORT


@pytest.mark.parametrize("name", ["train_one_node.yaml", "train_two_nodes.yaml"])
def test_training_has_a_process_for_each_gpu_and_time_to_save(name):
    pod = pod_of(resources(kind="Job")[name])
    (train,) = pod["containers"]
    assert variables(train)["GPUS"] == train["resources"]["limits"]["nvidia.com/gpu"]
    assert pod["terminationGracePeriodSeconds"] > save_seconds()
    assert "/dev/shm" in {mount["mountPath"] for mount in train["volumeMounts"]}


def test_the_pods_of_several_nodes_meet_at_the_first():
    job = resources(kind="Job")["train_two_nodes.yaml"]
    (service,) = resources(kind="Service").values()
    pod, name = pod_of(job), service["metadata"]["name"]
    (train,) = pod["containers"]
    assert variables(train)["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{name}"
    assert pod["subdomain"] == name
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["publishNotReadyAddresses"]  # a pod is not ready before it has met the others
    nodes = int(variables(train)["NODES"])
    assert nodes == job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert job["spec"]["completionMode"] == "Indexed"


def test_the_image_has_what_the_jobs_start_and_no_secrets():
    copied = [
        source
        for line in re.findall(r"^COPY (.+)$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert all((REPOSITORY / source).exists() for source in copied)
    started = {word for job in resources(kind="Job").values() for c in containers(pod_of(job)) for word in c["command"]}
    assert {word for word in started if word.endswith((".py", ".sh"))} <= set(copied)
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert {f"*{Path(source).suffix}" if source.endswith(".py") else source.rstrip("/") for source in copied} <= kept
    assert ".env" not in copied
