"""prepare_dataset.py as a user runs it: commands in, files, messages and exit codes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.imports import heavy_among, modules_imported
from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import warm_python
from tool_aware.config.settings import Config, load_config
from tool_aware.console import GateFailed
from tool_aware.database import is_listening
from tool_aware.dataset.split_check import check_split
from tool_aware.dataset.splitting import Leak, Split
from tool_aware.demo.sample_log import fill_query_log
from tool_aware.files import sha256_of
from tool_aware.manifest import read_manifest
from tool_aware.rows import SPLITS, Row, load_rows

SMALL = tuple(
    f"--set=dataset.{value}" for value in ("synthetic_per_tool=40", "ambiguous=8", "follow_ups=40", "two_requests=24")
)
NONE = tuple(f"--set=dataset.{key}=0" for key in ("synthetic_per_tool", "ambiguous", "follow_ups", "two_requests"))
NO_LOG = ("--set", "dataset.use_query_log=false")
FILES = {
    "train.json",
    "val.json",
    "test.json",
    "sample_raw.json",
    "split_report.json",
    "dataset_report.html",
    "README.md",
}


def prepare(*arguments: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [
        *warm_python(),
        str(REPOSITORY / "prepare_dataset.py"),
        "--config",
        str(REPOSITORY / "config.yaml"),
        *arguments,
    ]
    if folder is not None:
        command += ["--set", f"dataset.dir={folder}"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("POSTGRES_", "OPENAI_"))}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=REPOSITORY,
        env={**environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **variables},
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    result = prepare(*SMALL, *NO_LOG, folder=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_all_files_are_written_and_the_manifest_matches_them(prepared: Path, config: Config) -> None:
    manifest = read_manifest(prepared)
    assert {path.name for path in prepared.iterdir()} == {*FILES, "manifest.json"}
    assert manifest["outputs"] == {name: sha256_of(prepared / name) for name in FILES}
    loaded = {name: load_rows(prepared / f"{name}.json", config.toolbox).rows for name in SPLITS}
    assert manifest["counts"]["rows"] == {name: len(rows) for name, rows in loaded.items()}
    assert sum(map(len, loaded.values())) == 6 * 40 + 8 + 40 + 24


def test_the_same_command_writes_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    assert prepare(*SMALL, *NO_LOG, folder=tmp_path).returncode == 0
    assert all((tmp_path / name).read_bytes() == (prepared / name).read_bytes() for name in FILES)


def test_counts_per_source_tool_and_split_are_the_result_on_stdout(tmp_path: Path) -> None:
    result = prepare(*SMALL, *NO_LOG, folder=tmp_path)
    assert result.stdout.splitlines()[0].split() == ["rows", "train", "val", "test", "all"]
    assert "from synthetic" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Next: python train_tool_aware.py")
    assert "Synthesising" in result.stderr
    assert "next:" not in result.stderr


def test_the_default_test_split_is_large_enough_to_mean_something(config: Config) -> None:
    dataset = config.dataset
    rows = sum([*config.synthetic_by_tool.values(), *config.synthetic_kinds.values()])
    assert rows * dataset.splits[2] >= 120


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    result = prepare("--dry-run", folder=tmp_path / "new")
    assert result.returncode == 0
    assert "synthetic rows" in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_dry_run_imports_nothing_heavy(tmp_path: Path) -> None:
    command = ["prepare_dataset.py", "--dry-run", "--set", f"dataset.dir={tmp_path}"]
    assert not heavy_among(modules_imported(*command, folder=REPOSITORY))


# ---- the query log --------------------------------------------------------------------------------------


@pytest.mark.skipif(is_listening("localhost", 5432, 1.0), reason="a server answers at the default address")
def test_without_a_database_the_stage_says_so_in_one_line_and_goes_on(tmp_path: Path) -> None:
    result = prepare(*SMALL, folder=tmp_path, POSTGRES_PASSWORD="your_password", PGHOST="db.example.internal")
    assert "PGHOST is set but not read" in result.stderr
    assert result.returncode == 0
    assert len([line for line in result.stderr.splitlines() if "no query log" in line]) == 1
    assert any("no query log" in fallback for fallback in read_manifest(tmp_path)["fallbacks"])


@pytest.mark.parametrize("options", [(), ("--require-database",)])
def test_a_database_that_was_named_and_does_not_answer_ends_the_stage(tmp_path: Path, options: tuple[str]) -> None:
    result = prepare(*options, folder=tmp_path, POSTGRES_HOST="127.0.0.1", POSTGRES_PORT="1")
    assert "dataset.use_query_log=false" in result.stderr
    assert result.returncode == 2
    assert "127.0.0.1:1" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_logged_rows_are_used_counted_and_free_of_personal_data(tmp_path: Path, new_database) -> None:
    variables = new_database("cipher_analytics", "cipher")
    fill_query_log(variables, count=400)
    result = prepare(*SMALL, "--require-database", folder=tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    counts = read_manifest(tmp_path)["counts"]
    assert counts["source"]["query_log"] > 50
    assert counts["redacted"]["email"] >= 1
    written = "".join(path.read_text() for path in tmp_path.iterdir()) + result.stdout + result.stderr
    assert "@example.com" not in written
    assert "4111 1111" not in written
    assert "hunter" not in written


def test_an_export_is_read_instead_of_the_database(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [
        {"query_text": f"where is our {topic} folder", "tool_used": "rag_retrieval"}
        for topic in ("tax", "rent", "team")
    ]
    log.write_text("\n".join(map(json.dumps, rows)))
    result = prepare(*SMALL, "--logs", str(log), folder=tmp_path / "data")
    assert result.returncode == 0, result.stderr
    assert "3 logged queries read, 3 kept" in result.stderr
    assert str(log) in read_manifest(tmp_path / "data")["inputs"]


def test_logged_rows_added_for_a_second_stage_keep_the_splits_of_the_first(prepared: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"query_text": f"where is our {word} folder", "tool_used": "rag_retrieval"} for word in ("tax", "rent")]
    log.write_text("\n".join(map(json.dumps, rows)))
    data = tmp_path / "data"
    result = prepare(*SMALL, "--logs", str(log), "--set", f"dataset.splits_from={prepared}", folder=data)
    assert result.returncode == 0, result.stderr
    for name in SPLITS:
        first, second = (
            {r["instruction"] for r in json.loads((d / f"{name}.json").read_text())} for d in (prepared, data)
        )
        assert first <= second
    kept = read_manifest(data)["earlier_splits"]
    assert kept["rows"] == read_manifest(prepared)["counts"]["rows"]
    assert kept["sha256"]["train.json"] == sha256_of(prepared / "train.json")


# ---- tools ----------------------------------------------------------------------------------------------


def test_a_fifth_tool_with_examples_gets_rows_in_every_split(tmp_path: Path) -> None:
    values = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    sql = {"type": "object", "properties": {"statement": {"type": "string"}}, "required": ["statement"]}
    wishes = ("orders of May", "customers in Rome", "unpaid invoices", "stock below ten", "top sellers", "new users")
    examples = [
        {"query": f"query the warehouse for {wish}", "parameters": {"statement": f"SELECT -- {wish}"}}
        for wish in wishes
    ]
    values["tools"].append(
        {"name": "sql_query", "description": "Query the warehouse", "parameters": sql, "examples": examples}
    )
    values["tools"] = [tool for tool in values["tools"] if tool["name"] != "web_search"]
    path = tmp_path / "five.yaml"
    path.write_text(yaml.safe_dump(values))
    result = prepare("--config", str(path), *SMALL, *NO_LOG, folder=tmp_path / "data")
    assert result.returncode == 0, result.stderr
    for name in SPLITS:
        tools = {item["metadata"]["tool"] for item in json.loads((tmp_path / f"data/{name}.json").read_text())}
        assert tools == {"rag_retrieval", "code_execution", "direct_chat", "sql_query"}


def config_with_calendar(folder: Path, examples: int | None = None) -> Path:
    """Return a config with the tool that docs/HOWTO.md adds, with the first of its examples or all of them."""
    section = (REPOSITORY / "docs/HOWTO.md").read_text().partition("### Add a tool")[2]
    (tool,) = yaml.safe_load(section.partition("```yaml")[2].partition("```")[0])
    tool["examples"] = tool["examples"][:examples]
    values = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    path = folder / "five.yaml"
    path.write_text(yaml.safe_dump({**values, "tools": [*values["tools"], tool]}))
    return path


@pytest.mark.parametrize("examples", [3, 5, None])
def test_the_tool_that_the_documentation_adds_has_rows_in_every_split(examples: int | None, tmp_path: Path) -> None:
    path = config_with_calendar(tmp_path, examples)
    rows = (*SMALL, "--set=dataset.synthetic_per_tool=200")
    result = prepare("--config", str(path), *rows, *NO_LOG, folder=tmp_path / "d")
    assert result.returncode == 0, result.stderr
    counts = next(line for line in result.stdout.splitlines() if line.startswith("calendar")).split()[1:]
    assert min(map(int, counts)) >= 10


def test_a_tool_with_fewer_examples_than_splits_is_refused_with_the_number_needed(tmp_path: Path) -> None:
    path = config_with_calendar(tmp_path, 2)
    result = prepare("--config", str(path), *SMALL, *NO_LOG, folder=tmp_path / "data")
    assert result.returncode == 2
    assert "tools: calendar: 2 example queries" in result.stderr
    assert "3 are needed" in result.stderr
    assert not (tmp_path / "data/train.json").exists()


def test_a_tool_of_fewer_rows_than_splits_is_refused(tmp_path: Path) -> None:
    path = config_with_calendar(tmp_path)
    few = tuple(
        f"--set=dataset.{value}" for value in ("synthetic_per_tool=2", "ambiguous=40", "follow_ups=0", "two_requests=0")
    )
    result = prepare("--config", str(path), *few, *NO_LOG, folder=tmp_path / "data")
    assert result.returncode == 2
    assert "tools: calendar: no row in" in result.stderr
    assert "its 2 rows come from 2 of its `examples`" in result.stderr


# ---- bad input ------------------------------------------------------------------------------------------


def test_data_of_someone_else_is_not_replaced_without_being_asked(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("[]")
    result = prepare(*SMALL, *NO_LOG, folder=tmp_path)
    assert result.returncode == 2
    assert "--overwrite" in result.stderr
    assert (tmp_path / "train.json").read_text() == "[]"
    assert prepare(*SMALL, *NO_LOG, "--overwrite", folder=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "dataset.slices=[plian]"), "unknown slice plian"),
        (("--set", "dataset.splits=[0.5, 0.2, 0.2]"), "sum to 1"),
        (("--set", "dataset.synthetic_per_tol=3"), "did you mean synthetic_per_tool"),
        (("--logs", "/nowhere/log.csv"), "/nowhere/log.csv: not found"),
        (("--generator", "openai"), "OPENAI_BASE_URL"),
        (NONE, "leave none for"),
        (("--check", "/nowhere"), "/nowhere: not found"),
        (("--set", "dataset.splits_from=/nowhere"), "no train.json in /nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = prepare(*NO_LOG, *SMALL, *arguments, folder=tmp_path / "data")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data/train.json").exists()


def test_a_folder_that_cannot_be_made_is_named() -> None:
    result = prepare(*SMALL, *NO_LOG, folder=Path("/proc/data"))
    assert result.returncode == 2
    assert "/proc/data" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_leak_fails_the_gate_with_exit_code_3_and_shows_the_pair(config: Config, toy_rows: list[Row]) -> None:
    leak = Leak("test", "where is the plan", "where is the plans", 0.93)
    split = Split({"train": toy_rows, "val": toy_rows[:1], "test": toy_rows[:1]}, [leak])
    with pytest.raises(GateFailed, match=r"0\.93.*where is the plans") as caught:
        check_split(split, config)
    assert caught.value.exit_code == 3


def test_ctrl_c_leaves_no_half_written_file(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "prepare_dataset.py",
        *NO_LOG,
        "--set",
        "dataset.synthetic_per_tool=8000",
        "--set",
        f"dataset.dir={tmp_path}",
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while "Synthesising" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "stopped by SIGINT" in stderr
    assert list(tmp_path.iterdir()) == []


# ---- check and import -----------------------------------------------------------------------------------


def test_check_accepts_what_the_stage_wrote_and_describes_it(prepared: Path) -> None:
    result = prepare("--check", str(prepared))
    assert result.returncode == 0
    assert "tokens" in result.stdout
    assert "312 rows, all well-formed" in result.stderr


def test_check_leaves_memory_and_time_to_the_estimate(prepared: Path) -> None:
    result = prepare("--check", str(prepared))
    assert "passes over" not in result.stdout + result.stderr
    assert "4070" not in result.stdout + result.stderr
    assert "Next:" not in result.stderr
    command = result.stdout.rpartition("Next: ")[2].split()
    assert command[:3] == ["python", "monitor_gpu.py", "estimate"]
    estimated = subprocess.run(
        [sys.executable, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
    )
    assert estimated.returncode == 0, estimated.stderr


def test_check_names_the_splits_that_a_folder_lacks(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_bytes((prepared / "train.json").read_bytes())
    result = prepare("--check", str(tmp_path))
    assert result.returncode == 2
    assert "no val.json: training needs train.json and val.json" in result.stderr
    assert "no test.json: it can be trained on, but evaluate.py needs one" in result.stderr
    (tmp_path / "val.json").write_bytes((prepared / "val.json").read_bytes())
    result = prepare("--check", str(tmp_path))
    assert result.returncode == 0
    assert "no test.json" in result.stderr
    assert prepare("--check", str(tmp_path / "train.json")).returncode == 0


def test_check_shows_every_bad_row(tmp_path: Path) -> None:
    bad = [{"instruction": "x", "response": "Tool: web_search\nParameters: {oops}\nReasoning: y"}, {"response": "z"}]
    (tmp_path / "mine.json").write_text(json.dumps(bad))
    result = prepare("--check", str(tmp_path / "mine.json"))
    assert result.returncode == 2
    assert "row 1: response: parameters are not JSON" in result.stderr
    assert "row 2: instruction" in result.stderr


def weather_call(query: str, city: str) -> dict[str, Any]:
    """One line of an export: a question and the call of a tool that config.yaml does not know."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    call = {"function": {"name": "get_weather", "arguments": json.dumps({"city": city})}}
    return {
        "messages": [{"role": "user", "content": query}, {"role": "assistant", "tool_calls": [call]}],
        "tools": [
            {
                "type": "function",
                "function": {"name": "get_weather", "description": "Weather", "parameters": schema},
            }
        ],
    }


def test_imported_messages_can_be_trained_with_the_config_written_beside_them(tmp_path: Path) -> None:
    subjects = ("umbrella", "coat", "sledge", "kite", "boat", "picnic", "barbecue", "harvest", "match", "parade")
    subjects += ("market", "tower")
    items = []
    for number, subject in enumerate(subjects * 3):
        query = (
            f"{('shall I plan for the', 'what about my', 'good day for a')[number // 12]} {subject} in City{number * 7}"
        )
        items.append(weather_call(query, f"City{number * 7}"))
    source = tmp_path / "calls.jsonl"
    source.write_text("\n".join(map(json.dumps, items)))
    data = tmp_path / "data"
    result = prepare("--import", str(source), folder=data)
    assert result.returncode == 0, result.stderr
    following = f"Next: python train_tool_aware.py --config {data / 'imported.yaml'} --set dataset.dir={data}"
    assert following in result.stdout.splitlines()
    tools = load_config(data / "imported.yaml").as_dict()["tools"]
    assert read_manifest(data)["config"]["tools"] == tools  # which training and evaluation compare theirs with
    again = prepare("--config", str(data / "imported.yaml"), "--check", str(data))
    assert again.returncode == 0, again.stderr
    assert "imported.yaml" in read_manifest(data)["outputs"]


def test_what_an_import_leaves_out_is_named_and_in_the_manifest(tmp_path: Path) -> None:
    things = ("umbrella", "coat", "sledge", "kite", "boat", "picnic", "barbecue", "harvest", "match", "parade")
    days = ("is today the day for", "what about tomorrow and", "how windy will Sunday be for")
    queries = [f"{day} my {thing}, number {at * 37}" for day in days for at, thing in enumerate(things)]
    lines = [json.dumps(weather_call(query, f"City{at}")) for at, query in enumerate(queries)]
    lines += ["{oops", '{"messages": null}', '{"a": 1}']
    source = tmp_path / "calls.jsonl"
    source.write_text("\n".join(lines))
    data = tmp_path / "data"
    result = prepare("--import", str(source), folder=data)
    assert result.returncode == 0, result.stderr
    assert "30 rows taken over, 3 left out" in result.stderr
    assert "line 31: is not JSON" in result.stderr
    assert "line 32: messages" in result.stderr
    counts = read_manifest(data)["counts"]
    assert sum(counts["log_rejected"].values()) == 3
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("\n".join(lines[30:]))
    result = prepare("--import", str(nothing), folder=tmp_path / "other")
    assert result.returncode == 2
    assert "no row could be taken over" in result.stderr
    assert not list((tmp_path / "other").glob("*"))


def test_an_import_too_small_to_split_says_what_to_do_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "calls.jsonl"
    items = [weather_call("is it windy in Kiel", "Kiel"), weather_call("shall I take a coat to Bari", "Bari")]
    source.write_text("\n".join(map(json.dumps, items)))
    result = prepare("--import", str(source), folder=tmp_path / "data")
    assert result.returncode == 2
    assert "2 distinct rows leave none for" in result.stderr
    assert f"{source}" in result.stderr
    assert "import more rows" in result.stderr
    assert "synthetic_per_tool" not in result.stderr
    assert list((tmp_path / "data").glob("*")) == []
