"""Damaged files of every kind that a stage reads: a result, or one message; never a bug, never a hang.

`FUZZ=3000 pytest tests/scripts/test_fuzz.py` tries that many of each kind; the suite tries what two seconds allow.
Several processes share the work with FUZZ_PART=0/16 to 15/16.
A file that ends otherwise is kept below .fuzz/: mend it, and copy it to tests/cases/hostile/ as KIND-NUMBER.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import pytest
import yaml

import evaluate
import monitor_gpu
import prepare_dataset
from tests.fixtures.in_process import Outcome, TooSlow, outcome
from tests.fixtures.mutations import Structural, mutate, mutated_json, mutated_json_lines, mutated_yaml
from tests.fixtures.repository import REPOSITORY
from tool_aware.config.environment import read_environment
from tool_aware.config.settings import Config, load_config
from tool_aware.console import Fallbacks
from tool_aware.dataset import logged
from tool_aware.dataset.synthesis.remote import paraphrase
from tool_aware.evaluation.answering.collect import collect_answers
from tool_aware.evaluation.answering.probe import ProbeItem
from tool_aware.evaluation.scoring.judgement import Prediction, judge
from tool_aware.files import hashes_in, read_as, sha256_of, write_json
from tool_aware.lineage import runs_behind
from tool_aware.manifest import write_manifest
from tool_aware.monitor.training_run import last_step
from tool_aware.prompt import encode_example
from tool_aware.rows import Row, load_rows, write_rows
from tool_aware.training.run.checkpoints import new_checkpoint
from tool_aware.training.run.curves import draw_curves
from tool_aware.training.run.output_folder import starting_point
from tool_aware.training.run.tracking import MetricsLog
from tool_aware.training.validation import Validations

LIMIT_S = 10
SECONDS_PER_KIND = 2.0
NUMBER = int(os.environ.get("FUZZ", "0"))
PART, PARTS = map(int, os.environ.get("FUZZ_PART", "0/1").split("/"))  # `3/16`: every 16th file from the third on
KEPT = REPOSITORY / ".fuzz"
HOSTILE = REPOSITORY / "tests" / "cases" / "hostile"
ALLOWED = (0, 2, 3)


@dataclass(frozen=True)
class Kind:
    """A kind of file: a whole one, how its structure is damaged, and what reads it."""

    path: Path
    content: bytes
    structural: Structural | None
    read: Callable[[], int]


@dataclass(frozen=True)
class World:
    """A folder with one good file of each kind."""

    folder: Path
    config: Config
    tokenizer: object
    rows: Sequence[Row]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def options(self, *words: object) -> list[str]:
        places = {
            "dataset.dir": self.data,
            "training.output_dir": self.output,
            "evaluation.results_dir": self.folder / "results",
        }
        places["model.name"] = self.folder / "base"
        return [*map(str, words), *(part for key, place in places.items() for part in ("--set", f"{key}={place}"))]


@pytest.fixture(scope="module")
def world(tmp_path_factory, config, tokenizer, tiny_model_dir, adapter, toy_rows) -> World:
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(tiny_model_dir, folder / "base")
    shutil.copytree(adapter, folder / "output" / "lora_adapters")
    settings = folder / "output" / "lora_adapters" / "adapter_config.json"
    settings.write_text(settings.read_text().replace(str(tiny_model_dir), str(folder / "base")))
    world = World(folder, config, tokenizer, toy_rows)
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


# ---- the kinds -----------------------------------------------------------------------------------------------


def rows_kind(world: World, split: str) -> Kind:
    path = world.data / f"{split}.json"

    def read() -> int:
        code = prepare_dataset.main(world.options("--check", world.data))
        for name in ("train", "val", "test"):  # what is well-formed can be used
            for number, row in enumerate(load_rows(world.data / f"{name}.json", world.config.toolbox).rows):
                encode_example(world.tokenizer, row.instruction, row.response)
                judge(Prediction(number, row.response), row, world.config.toolbox)
                json.dumps(dict(row.metadata), allow_nan=False).encode()
        return code

    return Kind(path, path.read_bytes(), mutated_json, read)


def dry_evaluation(world: World) -> int:
    return evaluate.main(world.options("--dry-run"))


def data_manifest(world: World) -> Kind:
    path = world.data / "manifest.json"

    def read() -> int:
        from tool_aware.dataset.outputs import refuse_foreign_files
        from tool_aware.training.data import read_data

        refuse_foreign_files(world.data, overwrite=False)
        read_data(load_config(REPOSITORY / "config.yaml", [f"dataset.dir={world.data}"]), Fallbacks())
        return dry_evaluation(world)

    return Kind(path, path.read_bytes(), mutated_json, read)


def output_manifest(world: World) -> Kind:
    path = world.output / "manifest.json"

    def read() -> int:
        runs_behind(world.output / "lora_adapters")
        return dry_evaluation(world)

    return Kind(path, path.read_bytes(), mutated_json, read)


def results_manifest(world: World) -> Kind:
    path = world.folder / "results" / "manifest.json"
    write_manifest(path.parent, stage="evaluate", config={}, seed=1, started_s=0, dataset_sha256=None, partial=[])
    return Kind(path, path.read_bytes(), mutated_json, lambda: dry_evaluation(world))


def adapter_config(world: World) -> Kind:
    path = world.output / "lora_adapters" / "adapter_config.json"

    def read() -> int:
        from tool_aware.model.adapter import with_lora_of

        with_lora_of(path.parent, load_config(REPOSITORY / "config.yaml", [f"model.name={world.folder / 'base'}"]))
        return dry_evaluation(world)

    return Kind(path, path.read_bytes(), mutated_json, read)


def adapter_weights(world: World) -> Kind:
    path = world.output / "lora_adapters" / "adapter_model.safetensors"
    return Kind(path, path.read_bytes(), None, lambda: dry_evaluation(world))


def base_config(world: World) -> Kind:
    path = world.folder / "base" / "config.json"
    arguments = world.options("estimate")
    return Kind(path, path.read_bytes(), mutated_json, lambda: monitor_gpu.main(arguments))


def answers(world: World) -> Kind:
    path = world.folder / "answers.jsonl"
    texts = [row.response for row in world.rows[32:38]]
    items = [texts[0], *({"row": number, "text": text} for number, text in enumerate(texts) if number)]
    completion = {"choices": [{"message": {"content": "a"}}]}
    items[-1] = {
        "custom_id": f"row-{len(texts) - 1}",
        "response": {"body": completion},
    }

    def read() -> int:
        job = evaluate.prepare(evaluate.parse_arguments(world.options("--predictions", path)))
        evaluate.assemble_results(job, collect_answers(job))
        return 0

    content = "".join(json.dumps(item) + "\n" for item in items).encode()
    return Kind(path, content, mutated_json_lines, read)


def log_of_answers(world: World, name: str) -> Kind:
    """A log of an earlier run, as a later one continues it."""
    job = evaluate.prepare(evaluate.parse_arguments(world.options()))
    task = next(task for task in job.tasks if task.name == name)
    log = job.log(task)
    scores = {tool: -float(number) for number, tool in enumerate(world.config.toolbox.names)}
    is_choice = task.kind == "choice"
    with log.appending() as append:
        append([
            Prediction(row, tool="web_search", scores=scores) if is_choice else Prediction(row, "Tool: a")
            for row in task.rows
        ])  # fmt: skip

    def read() -> int:
        job = evaluate.prepare(evaluate.parse_arguments(world.options()))
        log = job.log(task)
        if log.done.keys() >= task.rows.keys():
            found = {task.name: [log.done[index] for index in task.rows]}
            evaluate.assemble_results(job, found if not is_choice else {"finetuned_choice": found[task.name]})
        with log.appending() as append:
            append([Prediction(0, "Tool: a")])
        return 0

    return Kind(log.path, log.path.read_bytes(), mutated_json_lines, read)


def metrics(world: World) -> Kind:
    path = world.folder / "metrics.jsonl"
    step = {"steps": 24, "epoch": 0.4, "loss": 3.9, "lr": 0.01, "grad_norm": 0.7, "examples": 4, "tokens": 552,
            "seconds": 0.3, "examples_per_s": 13.65, "peak_gib": None, "eta_s": 6.7}  # fmt: skip
    val = {"steps": 24, "val_loss": 3.7, "val_tool_accuracy": 0.14, "val_examples": 7}
    lines = [{"step": number, **(val if number % 3 == 0 else step)} for number in range(1, 8)]

    def read() -> int:
        last_step(path)
        MetricsLog(path, resume_step=5).close()
        draw_curves(path, world.folder / "curves.png", title="t", exported_step=5)
        return 0

    return Kind(path, "".join(json.dumps(line) + "\n" for line in lines).encode(), mutated_json_lines, read)


def checkpoint(world: World) -> Kind:
    run = {"model.name": "base", "lora.r": 8, "training.learning_rate": 0.1, "data": ["a", "b"]}
    with new_checkpoint(world.folder / "run", 22, run) as part:
        write_json(part / "training_state.json", {"step": 22, "optimizer": {}, "scaler": {}})
    path = world.folder / "run" / "checkpoint-22" / "checkpoint.json"

    def read() -> int:
        try:
            starting_point(world.folder / "run", run, Fallbacks(), is_resumed=True)
        finally:
            damaged = path.parent.with_name("checkpoint-22.damaged")
            if damaged.is_dir():
                damaged.rename(path.parent)
        return 0

    return Kind(path, path.read_bytes(), mutated_json, read)


def validations(world: World) -> Kind:
    path = world.folder / "scored" / "validations.json"
    history = [{"step": 5, "loss": 1.0, "tool_accuracy": 0.5, "examples": 7}]
    write_json(path, {"best": None, "history": history})

    def read() -> int:
        Validations.load(path.parent)
        return 0

    return Kind(path, path.read_bytes(), mutated_json, read)


def gpu_log(world: World, ending: str) -> Kind:
    path = world.folder / f"gpu{ending}"
    head = {"index": 0, "name": "GPU", "memory_total_mib": 12288}
    gpu = {"index": 0, "memory_used_mib": 6050, "utilization_percent": 98, "temperature_c": 60, "power_w": 100.5}
    samples = [{"time": "noon", "seconds": float(number), "gpus": [gpu]} for number in range(4)]
    texts = {
        ".json": json.dumps({"gpus": [head], "samples": samples}),
        ".jsonl": "".join(json.dumps(line) + "\n" for line in ({"interval_s": 1, "gpus": [head]}, *samples)),
        ".csv": "time,seconds,index,memory_used_mib,utilization_percent,temperature_c,power_w,problem\n"
        + "noon,0.0,0,6050,98,60,100.5,\nnoon,1.0,0,6051,,,,GPU is lost\n",
    }
    structural = {".json": mutated_json, ".jsonl": mutated_json_lines}.get(ending)
    return Kind(path, texts[ending].encode(), structural, lambda: monitor_gpu.main(["plot", str(path)]))


def prepared_from(world: World, option: str, path: Path, *more: object) -> Callable[[], int]:
    """Run the whole first stage, with as little synthesis as there can be."""
    small = ("--set", "dataset.synthetic_per_tool=3", "--set", "dataset.ambiguous=0", "--set", "dataset.slices=[plain]")
    options = [option, path, "--set", f"dataset.dir={world.folder / 'made'}", "--overwrite", *small, *more]
    return lambda: prepare_dataset.main(list(map(str, options)))


def query_log(world: World, ending: str) -> Kind:
    path = world.folder / f"log{ending}"
    rows = [
        {"id": number, "query_text": f"what is number {number} of {ending}", "tool_used": "web_search", "success": True,
         "result_quality": 0.9, "timestamp": f"2026-03-0{number}T09:14:00", "session_id": f"s{number}",
         "error_message": None} for number in range(1, 6)
    ]  # fmt: skip
    read = read_log_of(world, path)
    if ending == ".jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return Kind(path, content, mutated_json_lines, read)
    if ending == ".csv":
        cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
        return Kind(path, "".join(",".join(line) + "\n" for line in [[*rows[0]], *cells]).encode(), None, read)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return Kind(path, path.read_bytes(), None, read)


def read_log_of(world: World, path: Path) -> Callable[[], int]:
    """Read and curate a log, without the synthesis that follows."""

    def read() -> int:
        curated = logged.read_log(world.config, read_environment({}), Fallbacks(), path)
        write_rows(world.folder / "logged.json", curated.rows if curated else [])
        return 0

    return read


QUERIES = (
    "will it rain in Oslo",
    "do I need an umbrella today",
    "how hot does Cairo get",
    "wind on the coast tomorrow",
    "snow in the Alps?",
    "is the sky clear tonight",
    "forecast for my trip to Lima",
    "frost warning for growers",
    "humidity right now",
    "could we have the picnic on Sunday",
    "storm coming?",
    "best day for drying laundry",
)
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"}, "days": {"type": "integer", "default": 1, "minimum": 1},
        "unit": {"enum": ["c", "f"]}, "more": {"type": ["array", "null"], "items": {"type": "number"}}}}}}  # fmt: skip


def imported_messages(world: World) -> Kind:
    path = world.folder / "messages.jsonl"
    items = [
        {"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": QUERIES[number]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function",
                 "function": {"name": "get_weather", "arguments": f'{{"city": "C{number}"}}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "cold"}],
         "tools": [WEATHER]} for number in range(12)
    ]  # fmt: skip
    content = "".join(json.dumps(item) + "\n" for item in items).encode()
    return Kind(path, content, mutated_json_lines, prepared_from(world, "--import", path))


def bfcl_questions(world: World, *, damages_answers: bool) -> Kind:
    folder = world.folder / ("bfcl_answers" if damages_answers else "bfcl_questions")
    parameters = {
        "type": "dict",
        "required": ["city"],
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    }
    function = {"name": "weather.get", "description": "Weather", "parameters": parameters}
    questions = [
        {"id": f"simple_{number}", "question": [[{"role": "user", "content": QUERIES[number]}]],
         "function": [function]} for number in range(12)
    ]  # fmt: skip
    truths = [
        {"id": f"simple_{number}", "ground_truth": [{"weather.get": {"city": [f"place {number}"], "days": ["", 1]}}]}
        for number in range(12)
    ]  # fmt: skip
    asked, answered = folder / "questions.json", folder / "possible_answer" / "questions.json"
    answered.parent.mkdir(parents=True, exist_ok=True)
    asked.write_text("".join(json.dumps(item) + "\n" for item in questions))
    answered.write_text("".join(json.dumps(item) + "\n" for item in truths))
    path = answered if damages_answers else asked
    return Kind(path, path.read_bytes(), mutated_json_lines, prepared_from(world, "--import", asked))


def config_file(world: World) -> Kind:
    path = world.folder / "config.yaml"
    arguments = ["--config", str(path), "--dry-run", "--set", "dataset.use_query_log=false"]
    return Kind(path, (REPOSITORY / "config.yaml").read_bytes(), mutated_yaml, lambda: prepare_dataset.main(arguments))


def small_config(world: World) -> Kind:
    """A config of which most is damaged, and all of it is used: the prompt, the schemas, the plan."""
    path = world.folder / "small.yaml"
    values = {
        "model": {"name": "mistral-7b-v0.2", "max_seq_length": 512},
        "tools": [{"name": "get_weather", "description": "Weather of a city",
                   "examples": [{"query": "is it cold in Oslo?", "parameters": {"city": "Oslo"}}],
                   "parameters": WEATHER["function"]["parameters"]},
                  {"name": "direct_chat", "description": "Talk"}],
    }  # fmt: skip

    def read() -> int:
        prepare_dataset.main(["--config", str(path), "--dry-run"])
        code = monitor_gpu.main(["estimate", "--config", str(path), "--vram", "12"])
        load_rows(world.data / "none.json", load_config(path).toolbox) if code == 1 else None
        return code

    return Kind(path, yaml.safe_dump(values, sort_keys=False).encode(), mutated_yaml, read)


def dotenv(world: World) -> Kind:
    path = world.folder / "cwd" / ".env"
    path.parent.mkdir(exist_ok=True)
    content = b"""POSTGRES_HOST=localhost
POSTGRES_PORT=5432
POSTGRES_DB=agent
POSTGRES_USER="me"
POSTGRES_PASSWORD='p$a{b}c'
HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz
USE_WANDB=false
export OPENAI_BASE_URL=http://localhost:8000/v1
OPENAI_API_KEY=sk-1234567890
"""
    arguments = ["--config", str(REPOSITORY / "config.yaml"), "--dry-run"]

    def read() -> int:
        before, variables = Path.cwd(), dict(os.environ)
        os.chdir(path.parent)
        try:
            return prepare_dataset.main(arguments)
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(variables)

    return Kind(path, content, None, read)


def paraphrase_journal(world: World) -> Kind:
    path = world.folder / "paraphrases.jsonl"
    sources = world.rows[:3]
    lines = [
        {"source": row.query, "candidates": 3, "stopped": {"schema": 2}, "rows": [asdict(world.rows[20 + number])]}
        for number, row in enumerate(sources)
    ]

    def chat(_prompt: str) -> str:
        return "no list"

    def read() -> int:
        made = paraphrase(sources, [], world.config.toolbox, chat, path, wanted=5)
        write_rows(world.folder / "paraphrased.json", made.rows)
        return 0

    return Kind(path, "".join(json.dumps(line) + "\n" for line in lines).encode(), mutated_json_lines, read)


def probe(world: World) -> Kind:
    path = world.folder / "probe.json"
    items = [{"instruction": "i", "base": "Tool: a", "tuned": "Tool: b"}] * 4

    def read() -> int:
        for item in read_as(path, list[ProbeItem]) or ():
            (item.instruction + item.base + item.tuned).upper()
        return 0

    return Kind(path, json.dumps(items).encode(), mutated_json, read)


KINDS: dict[str, Callable[[World], Kind]] = {
    "train": lambda world: rows_kind(world, "train"),
    "val": lambda world: rows_kind(world, "val"),
    "test": lambda world: rows_kind(world, "test"),
    "data_manifest": data_manifest,
    "output_manifest": output_manifest,
    "results_manifest": results_manifest,
    "adapter_config": adapter_config,
    "adapter_weights": adapter_weights,
    "base_config": base_config,
    "answers": answers,
    "free_log": lambda world: log_of_answers(world, "finetuned"),
    "choice_log": lambda world: log_of_answers(world, "finetuned_choice"),
    "metrics": metrics,
    "checkpoint": checkpoint,
    "validations": validations,
    "gpu_json": lambda world: gpu_log(world, ".json"),
    "gpu_jsonl": lambda world: gpu_log(world, ".jsonl"),
    "gpu_csv": lambda world: gpu_log(world, ".csv"),
    "log_jsonl": lambda world: query_log(world, ".jsonl"),
    "log_csv": lambda world: query_log(world, ".csv"),
    "log_parquet": lambda world: query_log(world, ".parquet"),
    "messages": imported_messages,
    "bfcl_questions": lambda world: bfcl_questions(world, damages_answers=False),
    "bfcl_answers": lambda world: bfcl_questions(world, damages_answers=True),
    "config": config_file,
    "small_config": small_config,
    "dotenv": dotenv,
    "paraphrases": paraphrase_journal,
    "probe": probe,
}


# ---- the tests -------------------------------------------------------------------------------------------------


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
    begun_s, codes, faults = time.monotonic(), Counter[int](), {}
    for number in range(PART, NUMBER or 10_000, PARTS):
        if not NUMBER and time.monotonic() - begun_s > SECONDS_PER_KIND:
            break
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
