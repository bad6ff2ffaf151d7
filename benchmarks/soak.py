"""Run the four scripts again and again while they are killed, the disk is full, two run at once, or files change.

    make soak                                     # ten minutes; SOAK_MINUTES=30 make soak
    python benchmarks/soak.py --minutes 5 --seed 7

The world is a tmpfs that is made smaller for a full disk where this is root, else files are limited (RLIMIT_FSIZE).

Reads   config.demo.yaml
Writes  benchmarks/results/soak.json; its data, runs and results lie in a temporary folder
Exit    0 nothing lost, no mixed set, no exit 0 of a failed run, never exit 1; 3 otherwise, with each case
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY))

from tool_aware.config.settings import load_config  # noqa: E402
from tool_aware.console import GateFailed, UserError, run, say, table  # noqa: E402
from tool_aware.demo.toy_model import build_base_model  # noqa: E402
from tool_aware.files import sha256_of, write_json  # noqa: E402
from tool_aware.manifest import one_set  # noqa: E402
from tool_aware.rows import load_rows  # noqa: E402

RESULT = _REPOSITORY / "benchmarks" / "results" / "soak.json"
FAULTS = ("none", "kill -9", "TERM", "full disk", "two at once", "changed file")
SCRIPTS = ("prepare_dataset.py", "train_tool_aware.py", "evaluate.py", "monitor_gpu.py")
STOPPED = (-signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP, -signal.SIGTERM)
WORLD_MIB = 400
SLOWEST_S = 120.0


@dataclass
class World:
    """Folders of the runs below one folder, and whether that is a file system of its own."""

    folder: Path
    is_tmpfs: bool
    random: Random
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SCRIPTS, 5.0))  # of the last whole run

    def folder_of(self, script: str) -> Path | None:
        """Return the folder that a script writes."""
        names = {"prepare_dataset.py": "data", "train_tool_aware.py": "output", "evaluate.py": "results"}
        return self.folder / names[script] if script in names else None

    def command(self, script: str) -> list[str]:
        """Return a command line of a script, with a seed of its own."""
        seed = self.random.randrange(10**6)
        settings = {
            "model.name": self.folder / "base",
            "dataset.dir": self.folder / "data",
            "dataset.synthetic_per_tool": 10,
            "dataset.follow_ups": 0,
            "dataset.two_requests": 0,
            "dataset.seed": seed,
            "training.output_dir": self.folder / "output",
            "training.max_steps": 4,
            "training.save_steps": 2,
            "training.seed": seed,
            "logging.tensorboard": "false",
            "evaluation.results_dir": self.folder / "results",
        }
        options = {
            "prepare_dataset.py": ["--overwrite"],
            "train_tool_aware.py": ["--overwrite"],
            "evaluate.py": ["--overwrite", "--choice-only", "--no-robustness"],
            "monitor_gpu.py": ["estimate", "--vram", "12", "--write", str(self.folder / "fitting.yaml")],
        }[script]
        words = [sys.executable, str(_REPOSITORY / script), *options, "--config", "config.demo.yaml"]
        return words + [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def main(argv: Sequence[str] | None = None) -> int:
    """Mix faults over the scripts for some minutes and count what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "10")))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with a_world(Random(options.seed)) as world:
        set_up(world)
        ends_s = time.monotonic() + 60 * options.minutes
        while time.monotonic() < ends_s:
            one_round(world)
        is_tmpfs = world.is_tmpfs
    report = {"minutes": options.minutes, "seed": options.seed, "full disk": "tmpfs" if is_tmpfs else "RLIMIT_FSIZE"}
    write_json(RESULT, {**report, "counts": dict(sorted(world.counts.items())), "problems": world.problems})
    print(table(("what", "times"), sorted(world.counts.items())))
    if world.problems:
        raise GateFailed("\n  ".join([f"{len(world.problems)} times a promise was broken:", *world.problems]))
    print("\nnothing lost, no mixed set, no exit 0 of a failed run, never exit 1")
    return 0


@contextlib.contextmanager
def a_world(random: Random) -> Iterator[World]:
    """Yield an empty world, on a file system of its own where that is possible."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={WORLD_MIB}m", "tmpfs", str(folder)]
    is_tmpfs = os.getuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield World(folder, is_tmpfs, random)
    finally:
        if is_tmpfs:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def set_up(world: World) -> None:
    """Make data, a base model, a run and results that are whole."""
    finish(world, "prepare_dataset.py")
    say("building the tiny base model")
    config = load_config(_REPOSITORY / "config.demo.yaml", [])
    rows = load_rows(world.folder / "data/train.json", config.toolbox).rows
    build_base_model(world.folder / "base", rows, steps=10)
    finish(world, "train_tool_aware.py")
    finish(world, "evaluate.py")


def finish(world: World, script: str) -> None:
    """Run a script without a fault. Raises UserError if it fails."""
    process = start(world, script)
    code = wait(process)
    if code != 0:
        raise UserError(f"{script} exited with {code} without a fault:\n{said(process)[-2000:]}")


def start(world: World, script: str, largest_bytes: int | None = None) -> subprocess.Popen[bytes]:
    """Start a script; its messages go to a file outside the world."""

    def limit() -> None:
        if largest_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes))

    output = tempfile.TemporaryFile()  # noqa: SIM115  # read after the end
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "USE_WANDB": "false"}
    process = subprocess.Popen(
        world.command(script),
        cwd=_REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        preexec_fn=limit,  # noqa: PLW1509  # this process has no threads
        start_new_session=True,
    )
    process.output = output  # type: ignore[attr-defined]
    return process


def wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code; -1000 for a process that hangs."""
    try:
        return process.wait(SLOWEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -1000


def said(process: subprocess.Popen[bytes]) -> str:
    """Return what a process has printed."""
    output = process.output  # type: ignore[attr-defined]
    output.seek(0)
    return str(output.read().decode(errors="replace"))


def one_round(world: World) -> None:
    """Run one script under one fault, check what it left, and mend what the fault itself has changed."""
    random = world.random
    script = random.choice(SCRIPTS)
    fault = random.choice(FAULTS)
    folder = world.folder_of(script)
    name = f"{script}, {fault}"
    before = state(folder)
    (world.folder / "fitting.yaml").unlink(missing_ok=True)  # monitor_gpu.py replaces no config
    limit = shrink(world) if fault == "full disk" else None
    begun_s = time.monotonic()
    processes = [start(world, script, limit) for _ in range(2 if fault == "two at once" else 1)]
    changed = disturb(world, fault, processes, world.random.uniform(0.0, 1.05) * world.seconds[script])
    codes = [wait(process) for process in processes]
    if fault == "none":
        world.seconds[script] = time.monotonic() - begun_s
    if fault == "full disk":
        grow(world)
    for process, code in zip(processes, codes, strict=True):
        judge_code(world, name, fault, process, code)
    if folder and changed is None:
        judge_folder(world, name, folder, before, codes)
    world.counts[f"{name}: exit {' and '.join(map(str, sorted(codes)))}"] += 1
    say(f"{name}: {codes}")
    if changed:
        changed.undo()
    mend(world, script)


def judge_code(world: World, name: str, fault: str, process: subprocess.Popen[bytes], code: int) -> None:
    """Note an exit code that no script may have."""
    expected = {0, 2, 3, *(STOPPED if fault in ("kill -9", "TERM") else ())}
    if code not in expected or (fault == "none" and code != 0) or "Traceback" in said(process):
        text = said(process)
        at = text.find("Traceback")
        world.problems.append(f"{name}: exit {code}: {text[max(0, at - 200) : at + 1500] if at >= 0 else text[-600:]}")


def state(folder: Path | None) -> dict[str, object] | None:
    """Return the manifest of a folder's set; None without one. Puts an interrupted set in place first."""
    if folder is None:
        return None
    with one_set(folder) as manifest:
        return manifest


def judge_folder(world: World, name: str, folder: Path, before: dict[str, object] | None, codes: Sequence[int]) -> None:
    """Note a set that is mixed, an old set that is lost, and an exit 0 that left nothing."""
    try:
        after = state(folder)
    except UserError as error:
        world.problems.append(f"{name}: the folder cannot be read: {error}")
        return
    if after is None:
        if 0 in codes:
            world.problems.append(f"{name}: exit 0 without a manifest")
        elif before is not None and "train" not in name:  # --overwrite deletes a run first, as it says
            world.problems.append(f"{name}: the set before is lost, and there is no other")
        return
    outputs: dict[str, str] = after["outputs"]  # type: ignore[assignment]
    wrong = [each for each, sha in outputs.items() if not (folder / each).is_file() or sha256_of(folder / each) != sha]
    if "output" in folder.name:
        wrong = [each for each in wrong if not each.endswith("README.md")]  # evaluate.py adds figures to the card
    if wrong:
        world.problems.append(f"{name}: a manifest whose files are others: {', '.join(wrong[:5])}")
    if 0 in codes and before is not None and after["finished_at"] == before["finished_at"]:
        world.problems.append(f"{name}: exit 0, and nothing was written")


def shrink(world: World) -> int | None:
    """Leave little room on the disk; return the limit of files instead where it cannot be made small."""
    room = world.random.choice((0, 4096, 16_384, 65_536, 200_000))
    if not world.is_tmpfs:
        return max(room, 1024)
    used = shutil.disk_usage(world.folder).used
    subprocess.run(["mount", "-o", f"remount,size={used + room}", str(world.folder)], check=True)
    return None


def grow(world: World) -> None:
    """Make room again."""
    if world.is_tmpfs:
        subprocess.run(["mount", "-o", f"remount,size={WORLD_MIB}m", str(world.folder)], check=True)


def disturb(world: World, fault: str, processes: Sequence[subprocess.Popen[bytes]], after_s: float) -> Change | None:
    """Kill the process after a while, or change a file that is being read or written; return what was changed."""
    if fault in ("kill -9", "TERM", "changed file"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(after_s)
    if fault in ("kill -9", "TERM"):
        processes[0].send_signal(signal.SIGKILL if fault == "kill -9" else signal.SIGTERM)
    if fault != "changed file":
        return None
    files = [path for path in world.folder.rglob("*") if path.is_file() and "base" not in path.parts]
    path = world.random.choice(sorted(files))
    try:
        before = path.read_bytes()
        after = bytearray(before)
        for _ in range(8):
            after[world.random.randrange(len(after))] = world.random.randrange(256)
        with path.open("r+b") as file:
            file.write(after)
    except (OSError, ValueError):  # it has just been deleted, or is empty
        return None
    return Change(path, before, bytes(after))


@dataclass(frozen=True)
class Change:
    """A file with what it held before and after a change."""

    path: Path
    before: bytes
    after: bytes

    def undo(self) -> None:
        """Write what the file held before, unless a run has replaced it."""
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self.after:
                self.path.write_bytes(self.before)


def mend(world: World, script: str) -> None:
    """Without a set, make one: the script has to be able to, whatever the fault has left."""
    folder = world.folder_of(script)
    if folder is None or state(folder):
        return
    process = start(world, script)
    code = wait(process)
    world.counts[f"{script}, afterwards: exit {code}"] += 1
    if code != 0:
        world.problems.append(f"{script} afterwards: exit {code}: {said(process)[-600:]}")
        for name in ("data", "output", "results"):
            shutil.rmtree(world.folder / name, ignore_errors=True)
        set_up(world)


if __name__ == "__main__":
    run(main)
