"""Each script, with odd characters around each secret, as libraries use them first: the value is never printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.repository import CASES, REPOSITORY
from tests.unit.test_database import free_port, running

SECRET = "hf_s3cretVALUE0987654321"
USES = {
    "train": ("train_tool_aware.py", "--dry-run", "--set", "model.name=someone/else"),
    "evaluate": ("evaluate.py", "--endpoint", "http://127.0.0.1:{port}/v1", "--served-model", "router"),
    "prepare": ("prepare_dataset.py", "--generator", "openai", "--set", "dataset.use_query_log=false",
                "--set", "dataset.synthetic_per_tool=25", "--set", "dataset.ambiguous=5",
                "--set", "dataset.follow_ups=0", "--set", "dataset.two_requests=0"),
    "read the log": ("prepare_dataset.py",),
    "check": ("monitor_gpu.py", "check"),
}  # fmt: skip
FIRST_USE = {"train": "Hugging Face", "evaluate": "web page", "prepare": "candidates passed", "read the log": "refused"}


def run_script(
    use: str, data: Path, folder: Path, port: int, program: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    script, *arguments = (part.format(port=port) for part in USES[use])
    data_folder = data if use in ("train", "evaluate") else folder / "data"
    places = [f"dataset.dir={data_folder}", f"evaluation.results_dir={folder}/results"]
    config = ["--config", str(REPOSITORY / "config.yaml"), *[word for place in places for word in ("--set", place)]]
    names = ("POSTGRES_", "OPENAI_", "HF_", "WANDB_", "PG")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return subprocess.run(
        [sys.executable, *program, str(REPOSITORY / script), *arguments, *config],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env={**environ, "NO_COLOR": "1", "HF_HOME": str(folder / "hf"), **variables},
    )  # fmt: skip


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", ["{}\n", "{}\n{}", "{}é"])
def test_no_script_prints_a_secret(use: str, form: str, toy_data_dir: Path, tmp_path: Path) -> None:
    value = form.format(SECRET, SECRET)
    with running(CASES / "secret_in_traceback/stub.py", "html") as (port, _):
        secrets = dict.fromkeys(("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "POSTGRES_PASSWORD"), value)
        result = run_script(
            use, toy_data_dir, tmp_path, port, **secrets, HF_ENDPOINT=f"http://127.0.0.1:{port}",
            OPENAI_BASE_URL=f"http://me:{SECRET}@127.0.0.1:{port}/v1", OPENAI_MODEL="router",
            POSTGRES_HOST="127.0.0.1", POSTGRES_PORT=str(free_port()),
        )  # fmt: skip
    assert result.returncode == (0 if use == "prepare" and form == "{}\n" else 2), result.stderr
    assert "Traceback" not in result.stderr
    assert SECRET not in result.stdout + result.stderr
    if form == "{}\n":
        assert FIRST_USE.get(use, "") in result.stderr
    else:
        assert "HF_TOKEN" in result.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


# A process that imports the libraries with this Hub's address, and a copy of it for each thing that the Hub answers.
ANSWERED = """
import os, runpy, sys, transformers.modeling_utils, transformers.models.auto.modeling_auto
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
import train_tool_aware
for answer in ANSWERS:
    with open("answer", "w") as file:
        file.write(answer)
    if os.fork() == 0:
        said = os.open(answer, os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1), os.dup2(said, 2)
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(answer, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_a_hub_that_answers_anything_is_one_message(toy_data_dir: Path, tmp_path: Path) -> None:
    answers = ["200", "302", "401", "403", "404", "500"]
    program = ("-c", ANSWERED.replace("ANSWERS", str(answers)))
    with running(CASES / "secret_in_traceback/hub.py", str(tmp_path / "answer")) as (port, _):
        token, address = f"{SECRET}\n", f"http://127.0.0.1:{port}"
        ended = run_script("train", toy_data_dir, tmp_path, port, program, HF_ENDPOINT=address, HF_TOKEN=token)
    assert ended.stdout.splitlines() == [f"{answer} 2" for answer in answers], ended.stderr
    for answer in answers:
        said = (tmp_path / answer).read_text()
        assert "model.name: someone/else" in said
        assert said.count("error:") == 1
        assert SECRET not in said


@pytest.mark.parametrize("use", USES)
def test_a_dotenv_file_in_another_encoding_ends_no_script_with_a_traceback(
    use: str, toy_data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_bytes(f"POSTGRES_PASSWORD={SECRET}é\n".encode("cp1252"))
    result = run_script(use, toy_data_dir, tmp_path, 1)
    assert result.returncode == 2
    assert ".env:1: is not UTF-8" in result.stderr
    assert "POSTGRES_PASSWORD" in result.stderr
    assert SECRET not in result.stdout + result.stderr
