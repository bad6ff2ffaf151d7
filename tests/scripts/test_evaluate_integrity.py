"""What evaluate.py reads is what its manifest says; its results are of one run; programs are isolated or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
import threading
from pathlib import Path

import pytest

import evaluate as script
from tests.fixtures.evaluate_script import REPOSITORY, command, command_line, copy_of
from tests.fixtures.in_process import outcome
from tests.fixtures.warm_start import warm_python
from tool_aware import sandboxed
from tool_aware.evaluation.preflight import RESULT_NAMES
from tool_aware.files import sha256_of
from tool_aware.manifest import write_manifest
from tool_aware.sandbox import WarmInterpreter, run_program
from tool_aware.transaction import is_interrupted, locked


@pytest.fixture
def run(tiny_model_dir, adapter, evaluation_data_dir, capsys):
    """Run evaluate.main with a command line."""

    def call(results_dir, *options, data_dir=evaluation_data_dir):
        words = command_line(tiny_model_dir, adapter, data_dir, results_dir, *options)
        return outcome(script.main, words[1:], capsys)

    return call


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def is_whole(folder: Path) -> bool:
    return {name: sha256_of(folder / name) for name in manifest_of(folder)["outputs"]} == manifest_of(folder)["outputs"]


# ---- programs -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_sandbox(monkeypatch, tmp_path):
    """A machine for whose processor there is no filter of system calls."""
    child = tmp_path / "child.py"
    source = Path(sandboxed.__file__).read_text()
    child.write_text(source.replace('"x86_64": (', '"other": (').replace('"aarch64": (', '"another": ('))
    monkeypatch.setattr("tool_aware.sandbox._CHILD", child)


def test_run_code_is_refused_at_the_start_where_programs_cannot_be_isolated(run, gold_answers, tmp_path, no_sandbox):
    result = run(tmp_path / "r", "--predictions", gold_answers, "--run-code")
    assert result.code == 2
    assert "--run-code: programs cannot be isolated on this machine: no filter of system calls" in result.stderr
    assert "--run-unisolated" in result.stderr
    assert "test rows" not in result.stderr
    assert not (tmp_path / "r").exists()


def test_where_they_cannot_be_isolated_none_is_run_and_the_report_says_so(run, gold_answers, tmp_path, no_sandbox):
    result = run(tmp_path / "r", "--predictions", gold_answers)
    assert result.code == 0, result.stderr
    said = "answered programs are not run (programs cannot be isolated on this machine"
    assert said in result.stderr
    assert any(said in fallback for fallback in manifest_of(tmp_path / "r")["fallbacks"])
    assert said in (tmp_path / "r/report.md").read_text().replace("\\", "")


def test_running_them_all_the_same_is_said_everywhere(run, gold_answers, tmp_path, no_sandbox):
    result = run(tmp_path / "r", "--predictions", gold_answers, "--run-unisolated")
    assert result.code == 0, result.stderr
    said = "they are run with this user's rights to files, network and secrets"
    assert said in result.stderr.partition("finetuned")[0]
    assert any(said in fallback for fallback in manifest_of(tmp_path / "r")["fallbacks"])
    assert said in (tmp_path / "r/report.md").read_text()
    assert "with this user&#x27;s rights to files" in (tmp_path / "r/report.html").read_text()


def test_where_they_can_be_isolated_they_are_and_nothing_is_said(run, gold_answers, tmp_path, monkeypatch):
    isolated, others = [], []

    class Counted(WarmInterpreter):
        def run(self, code):
            isolated.append(code)
            return super().run(code)

    def counted(*arguments, is_isolated=True):
        (isolated if is_isolated else others).append(arguments)
        return run_program(*arguments, is_isolated=is_isolated)

    monkeypatch.setattr("tool_aware.evaluation.scoring.program_output.run_program", counted)
    monkeypatch.setattr("tool_aware.evaluation.scoring.program_output.WarmInterpreter", Counted)
    answers = json.loads(gold_answers.read_text())
    gold_answers.write_text(json.dumps([answer.replace("print(", "print(0 or ") for answer in answers]))
    result = run(tmp_path / "r", "--predictions", gold_answers, "--run-unisolated")
    assert result.code == 0, result.stderr
    assert isolated
    assert not others
    assert "rights to files" not in result.stderr + (tmp_path / "r/report.md").read_text()


# ---- what was read ------------------------------------------------------------------------------------------


def test_the_manifest_has_the_hashes_of_the_bytes_that_were_read(
    run, evaluation_data_dir, gold_answers, tmp_path, monkeypatch
):
    """All files are replaced while the answers are judged."""
    data = copy_of(evaluation_data_dir, tmp_path)
    answers = tmp_path / "answers.json"
    shutil.copy(gold_answers, answers)
    files = [*(data / f"{split}.json" for split in ("train", "val", "test")), answers]
    before = {str(path): sha256_of(path) for path in files}
    assemble = script.assemble_results

    def change_first(*arguments):
        for path in files:
            path.write_text("[]")
        return assemble(*arguments)

    monkeypatch.setattr(script, "assemble_results", change_first)
    result = run(tmp_path / "r", "--predictions", answers, data_dir=data)
    assert result.code == 0, result.stderr
    assert manifest_of(tmp_path / "r")["inputs"] == before


def test_weights_that_are_replaced_while_they_are_loaded_are_noticed(run, adapter, tmp_path, monkeypatch):
    other = tmp_path / "output/lora_adapters"
    shutil.copytree(adapter, other)
    from tool_aware.evaluation.answering import collect

    attach = collect.attach_adapter

    def change_first(*arguments, **named):
        attached = attach(*arguments, **named)
        with (other / "adapter_model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\x00\x00\x80\x3f")
        return attached

    monkeypatch.setattr(collect, "attach_adapter", change_first)
    result = run(tmp_path / "r", "--adapter", other, "--choice-only", "--no-robustness")
    assert result.code == 2
    assert "adapter_model.safetensors: was replaced while it was being read" in result.stderr


def test_rows_changed_since_the_data_was_made_are_told(run, evaluation_data_dir, gold_answers, tmp_path):
    data = copy_of(evaluation_data_dir, tmp_path)
    outputs = {f"{split}.json": sha256_of(data / f"{split}.json") for split in ("train", "val")} | {"test.json": "0"}
    (data / "manifest.json").write_text(json.dumps({"stage": "prepare_dataset", "outputs": outputs}))
    result = run(tmp_path / "r", "--predictions", gold_answers, data_dir=data)
    assert result.code == 0, result.stderr
    assert "test.json changed since" in result.stderr
    assert any("test.json changed since" in fallback for fallback in manifest_of(tmp_path / "r")["fallbacks"])


# ---- one run's results --------------------------------------------------------------------------------------


def test_a_second_evaluation_of_the_same_folder_is_told_who_holds_it(run, gold_answers, tmp_path):
    with locked(tmp_path / "r"):
        result = run(tmp_path / "r", "--predictions", gold_answers)
    assert result.code == 2
    assert "another run is writing here" in result.stderr
    assert not list((tmp_path / "r").glob("*.json"))
    assert run(tmp_path / "r", "--predictions", gold_answers).code == 0


def test_two_at_once_leave_the_results_of_one(tiny_model_dir, adapter, evaluation_data_dir, gold_answers, tmp_path):
    """Several pairs: whichever comes second is refused, or waits for nothing because the first has ended."""
    folder = tmp_path / "r"
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(["Tool: direct_chat\nParameters: {}\nReasoning: x."] * 16))
    codes = []

    def start(answers):
        words = command(tiny_model_dir, adapter, evaluation_data_dir, folder, "--predictions", answers)
        codes.append(subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=False).returncode)

    threads = [threading.Thread(target=start, args=[answers]) for answers in (gold_answers, wrong)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes)[0] == 0
    assert set(codes) <= {0, 2}
    assert is_whole(folder)
    answers = {row["response"] for row in json.loads((folder / "finetuned_model_results.json").read_text())}
    read = next(
        name for name in manifest_of(folder)["inputs"] if "answers" in name or name in map(str, (wrong, gold_answers))
    )
    assert answers == set(json.loads(Path(read).read_text()))


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_a_kill_while_results_are_replaced_leaves_one_set(
    run, gold_answers, tmp_path, at, adapter, tiny_model_dir, evaluation_data_dir
):
    folder = tmp_path / "r"
    assert run(folder, "--predictions", gold_answers).code == 0
    first = manifest_of(folder)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(["Tool: direct_chat\nParameters: {}\nReasoning: x."] * 16))
    words = command_line(tiny_model_dir, adapter, evaluation_data_dir, folder, "--predictions", wrong)
    program = f"""
        import os, signal, sys
        import evaluate
        from tool_aware import transaction
        left = [{at}]
        def dies(call):
            def counted(*arguments):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments)
            return counted
        finish = transaction.FileSet.commit
        def commit(*arguments):
            os.rename, os.replace = dies(os.rename), dies(os.replace)
            finish(*arguments)
        transaction.FileSet.commit = commit
        evaluate.main({words[1:]!r})
    """
    ended = subprocess.run(
        [*warm_python(), "-c", textwrap.dedent(program)], cwd=REPOSITORY, check=False, capture_output=True
    )
    assert ended.returncode == -9, ended.stderr
    assert is_interrupted(folder) == (at > 1)
    assert run(folder, "--predictions", wrong, "--dry-run").code == 0  # puts the rest in place, or finds the old set
    assert is_whole(folder)
    assert (manifest_of(folder)["outputs"] == first["outputs"]) == (at == 1)
    assert run(folder, "--predictions", gold_answers).code == 0
    assert manifest_of(folder)["outputs"].keys() == first["outputs"].keys()


def test_the_names_that_are_refused_in_a_foreign_folder_are_those_that_are_written(finished):
    assert manifest_of(finished[0])["outputs"].keys() == RESULT_NAMES


@pytest.mark.parametrize("name", ["report.md", "comparison.json"])
def test_files_that_no_evaluation_lists_are_not_replaced_unless_asked(run, gold_answers, tmp_path, name):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text("mine")
    result = run(tmp_path / "r", "--predictions", gold_answers)
    assert result.code == 2
    assert f"has files that no finished evaluation lists: {name}" in result.stderr
    assert (tmp_path / "r" / name).read_text() == "mine"
    assert run(tmp_path / "r", "--predictions", gold_answers, "--overwrite").code == 0


def test_the_folder_of_another_stage_is_refused_even_to_overwrite(run, gold_answers, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    written = '{"stage": "prepare_dataset"}'
    (tmp_path / "data/manifest.json").write_text(written)
    result = run(tmp_path / "data", "--predictions", gold_answers, "--overwrite")
    assert result.code == 2
    assert "holds what prepare_dataset wrote" in result.stderr
    assert (tmp_path / "data/manifest.json").read_text() == written
    for folder in (".", Path.home(), "/"):
        refused = run(folder, "--predictions", gold_answers, "--overwrite")
        assert refused.code == 2
        assert "a stage needs a folder of its own" in refused.stderr


def test_an_outdated_list_of_outputs_deletes_nothing_else(run, gold_answers, tmp_path):
    assert run(tmp_path / "r", "--predictions", gold_answers).code == 0
    manifest = manifest_of(tmp_path / "r")
    manifest["outputs"] |= {"../mine.txt": "0", "notes.txt": "0", "base_model_metrics.json": "0"}
    (tmp_path / "r/manifest.json").write_text(json.dumps(manifest))
    for name in ("mine.txt", "r/notes.txt", "r/base_model_metrics.json"):
        (tmp_path / name).write_text("mine")
    assert run(tmp_path / "r", "--predictions", gold_answers).code == 0
    assert (tmp_path / "mine.txt").exists()
    assert (tmp_path / "r/notes.txt").exists()
    assert not (tmp_path / "r/base_model_metrics.json").exists()


# ---- beside the adapter -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "is_warned"),
    [
        ("---\nlicense: mit\n---\n# Mine\n", False),
        ("no metadata", True),
        ("---\n[unclosed\n---\n", True),
        ("---\n- a list\n---\n", True),
        ("---\n" + "[" * 3000 + "\n---\n", True),
        (b"---\n\xff\xfe\n---\n", True),
    ],
)
def test_a_card_that_is_none_is_left_alone(finished, adapter, tmp_path, run, card, is_warned):
    shutil.copytree(finished[0] / "predictions", tmp_path / "r/predictions")
    other = tmp_path / "output/lora_adapters"
    shutil.copytree(adapter, other)
    content = card if isinstance(card, bytes) else card.encode()
    (other / "README.md").write_bytes(content)
    result = run(tmp_path / "r", "--adapter", other)
    assert result.code == 0, result.stderr
    assert ("no thresholds, probe or figures left" in result.stderr) == is_warned
    assert ((other / "README.md").read_bytes() == content) == is_warned


def test_an_adapter_that_has_changed_gets_no_figures_of_another(finished, adapter, tmp_path, run, monkeypatch):
    shutil.copytree(finished[0] / "predictions", tmp_path / "r/predictions")
    other = tmp_path / "output/lora_adapters"
    shutil.copytree(adapter, other)
    (other / "README.md").write_text("---\nlicense: mit\n---\n")
    before = {path: path.read_bytes() for path in other.iterdir()}
    write = script.write_results

    def and_train(*arguments, **named):
        with (other / "adapter_model.safetensors").open("ab") as file:
            file.write(b"\0")
        return write(*arguments, **named)

    monkeypatch.setattr(script, "write_results", and_train)
    result = run(tmp_path / "r", "--adapter", other)
    assert result.code == 0, result.stderr
    assert "holds other weights than those that were evaluated" in result.stderr
    changed = {path.name for path in other.iterdir() if before.get(path) != path.read_bytes()}
    assert changed == {"adapter_model.safetensors"}


def test_an_adapter_whose_run_is_being_written_gets_no_figures(finished, adapter, tmp_path, run, config):
    shutil.copytree(finished[0] / "predictions", tmp_path / "r/predictions")
    other = tmp_path / "output/lora_adapters"
    shutil.copytree(adapter, other)
    settings = config.as_dict()
    write_manifest(tmp_path / "output", stage="train", config=settings, seed=1, started_s=0.0)
    before = {path: path.read_bytes() for path in other.iterdir()}
    with locked(tmp_path / "output"):
        result = run(tmp_path / "r", "--adapter", other)
    assert result.code == 0, result.stderr
    assert "left beside the adapter: " in result.stderr
    assert {path: path.read_bytes() for path in other.iterdir()} == before
