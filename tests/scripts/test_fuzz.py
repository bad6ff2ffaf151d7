"""Damaged files of every kind that a stage reads: a result, or one message; never a bug, never a hang.

`FUZZ=3000 pytest tests/scripts/test_fuzz.py` tries that many of each kind; the suite tries six.
Several processes share the work with FUZZ_PART=0/16 to 15/16.
A file that ends otherwise is kept below .fuzz/: mend it, and copy it to tests/cases/hostile/ as KIND-NUMBER.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from tests.fixtures.fuzz_kinds import KINDS
from tests.fixtures.fuzz_world import Kind, World
from tests.fixtures.in_process import Outcome, TooSlow, outcome
from tests.fixtures.mutations import mutate
from tests.fixtures.repository import REPOSITORY
from tool_aware.files import hashes_in, sha256_of
from tool_aware.manifest import write_manifest
from tool_aware.rows import write_rows

LIMIT_S = 10
FILES_PER_KIND = 6
NUMBER = int(os.environ.get("FUZZ", "0"))
PART, PARTS = map(int, os.environ.get("FUZZ_PART", "0/1").split("/"))  # `3/16`: every 16th file from the third on
KEPT = REPOSITORY / ".fuzz"
HOSTILE = REPOSITORY / "tests" / "cases" / "hostile"
ALLOWED = (0, 2, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory, config, tiny_tokenizer, tiny_model_dir, adapter, toy_rows) -> World:
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(tiny_model_dir, folder / "base")
    shutil.copytree(adapter, folder / "output" / "lora_adapters")
    settings = folder / "output" / "lora_adapters" / "adapter_config.json"
    settings.write_text(settings.read_text().replace(str(tiny_model_dir), str(folder / "base")))
    world = World(folder, config, tiny_tokenizer, toy_rows)
    for split, part in (("train", toy_rows[:12]), ("val", toy_rows[28:32]), ("test", toy_rows[32:38])):
        write_rows(world.data / f"{split}.json", part)
    tools = {"tools": config.as_dict()["tools"]}
    files = [world.data / f"{split}.json" for split in ("train", "val", "test")]
    common = {"config": tools, "seed": 1, "started_s": 0}
    write_manifest(world.data, stage="prepare_dataset", outputs=hashes_in(world.data, files), **common)
    earlier = {"adapter": "a", "sha256": None, "train": "gone.json", "train_sha256": "0"}
    inputs = {str(path): sha256_of(path) for path in files[:2]}
    outputs = hashes_in(world.output, [world.output / "lora_adapters" / "adapter_config.json"])
    write_manifest(world.output, stage="train", inputs=inputs, outputs=outputs, lineage=[earlier], **common)
    return world


@pytest.fixture
def restored(world) -> Iterator[None]:
    """Whole files again after a test, however it ends."""
    before = {path: path.read_bytes() for path in world.folder.rglob("*") if path.is_file()}
    yield
    for path in world.folder.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def fault_of(kind: Kind, content: bytes, capsys: pytest.CaptureFixture[str]) -> tuple[str | None, int, str]:
    """Return what a run on a file did that it must not, and its exit code."""
    kind.path.write_bytes(content)
    try:
        result: Outcome = outcome(lambda _: kind.read(), [], capsys, limit_s=LIMIT_S)
    except TooSlow:
        return f"took more than {LIMIT_S} s", -1, ""
    if result.code not in ALLOWED:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        bug = next((at for at, line in enumerate(lines) if line.startswith("Traceback")), 0)
        places = [line.strip() for line in lines[bug:] if "/tool_aware/" in line]
        told = [line for line in lines[bug:] if not line.startswith(" ")]
        return f"exit code {result.code}: {' | '.join([*places[-2:], *told[1:2]])[:600]}", result.code, result.stderr
    if f"\n{result.stderr}".count("\nerror: ") > 1:
        return "more than one message", result.code, result.stderr
    return None, result.code, result.stderr


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_ends_in_a_result_or_in_one_message(name, world, capsys, restored):
    warnings.simplefilter("ignore")
    kind = KINDS[name](world)
    fault, code, said = fault_of(kind, kind.content, capsys)
    assert (fault, code in (0, 3)) == (None, True), f"the whole file is not read: {fault or said}"
    codes, faults = Counter[int](), {}
    for number in range(PART, NUMBER or FILES_PER_KIND, PARTS):
        content = mutate(kind.content, Random(f"{name}/{number}"), kind.structural)
        fault, code, _ = fault_of(kind, content, capsys)
        codes[code] += 1
        if fault and fault not in faults:
            faults[fault] = f"{name}-{number}"
            KEPT.mkdir(exist_ok=True)
            (KEPT / f"{name}-{number}").write_bytes(content)
    if NUMBER:
        with capsys.disabled():
            print(f"\n{name}: {sum(codes.values())} files, exit codes {dict(codes)}, {len(faults)} faults", flush=True)
    assert not faults, "\n" + "\n".join(f"{kept}: {fault}" for fault, kept in faults.items())


def hostile_files() -> list[str]:
    return sorted(path.name for path in HOSTILE.glob("*-*"))


@pytest.mark.parametrize("name", hostile_files())
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_once_ended_in_a_bug_no_longer_does(name, world, capsys, restored):
    fault, *_ = fault_of(KINDS[name.rpartition("-")[0]](world), (HOSTILE / name).read_bytes(), capsys)
    assert fault is None
