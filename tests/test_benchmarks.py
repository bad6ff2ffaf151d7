"""The memory benchmark runs everywhere, and one configuration does not change what the next one measures."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess

import pytest

from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import warm_executable, warm_python

RECORD = {
    "preset", "seq_length", "batch_size", "lora_r", "targets", "checkpointing", "offload", "packing", "quantization",
    "allocated_gib", "reserved_gib", "nvml_gib", "oom", "prefix_tokens", "answer_tokens", "accumulation", "optimizer",
    "attention", "decoder", "kept_layers", "cached_layers", "cap_gib", "seconds_per_step",
}  # fmt: skip


@pytest.fixture
def benchmark_module(monkeypatch):
    """Import a module of the folder benchmarks/."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


# A benchmark whose own processes start with an interpreter that has the libraries.
START = """
import os, runpy, sys
sys.executable, program = {!r}, {!r}
sys.path[0] = os.path.dirname(program)
runpy.run_path(program, run_name="__main__")
"""


def test_the_memory_grid_runs_without_a_gpu(tmp_path, benchmark_module):
    benchmark_module("_random_mistral").make_model(tmp_path / "tiny", "tiny")
    output = tmp_path / "memory.json"
    options = ["--grid", "--preset", "tiny", "--only", "tiny-4bit", "--limit", "4"]
    start = START.format(warm_executable(tmp_path), str(REPOSITORY / "benchmarks/train_memory.py"))
    command = [*warm_python(), "-c", start, *options, "--model-dir", tmp_path, "--output", output]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "stay behind" not in done.stderr
    result = json.loads(output.read_text())
    assert {"device", "versions", "commit", "rows"} <= result.keys()
    assert len(result["rows"]) + len(result["skipped"]) == 4
    assert all(row.keys() >= RECORD and row["allocated_gib"] is None and not row["oom"] for row in result["rows"])
    assert "tiny 4bit 4 x 96 prefix 48 no checkpointing" in done.stdout


def test_the_grid_covers_what_it_is_asked_to_and_each_case_stands_once(benchmark_module):
    cases = list(benchmark_module("_memory_grid").grid())
    assert len(set(cases)) == len(cases) >= 40
    wanted = {
        "seq_length": {256, 2048, 8192}, "batch_size": {1, 8}, "lora_r": {4, 64},
        "packing": {"prefix", "block", "none"}, "quantization": {"4bit", "8bit", "none"}, "preset": {"7b", "1b"},
        "checkpointing": {True, False}, "offload": {True, False},
        "decoder": {"auto", "transformers"},
    }  # fmt: skip
    for name, values in wanted.items():
        assert values <= {getattr(case, name) for case in cases}, name
    assert len({case.targets for case in cases}) == 2
    assert any(case.cap_gib for case in cases)


def test_a_base_model_is_as_it_was_once_an_adapter_is_off_again(config, tiny_model_dir, benchmark_module):
    import torch

    from tool_aware.model.adapter import new_adapter, prepare_for_training
    from tool_aware.model.base import load_base_model

    reuse = benchmark_module("_reuse")
    base = load_base_model(config.model.model_copy(update={"name": str(tiny_model_dir)}), config.quantization)
    ids = torch.arange(3, 20)[None]
    before = base(ids).logits
    saved = reuse.Snapshot(base)
    reuse.free_memory()
    at_rest = reuse.allocated_bytes()
    model = new_adapter(base, config)
    prepare_for_training(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1.0)
    assert not torch.equal(base(ids).logits, before)
    assert reuse.allocated_bytes() > at_rest + 50_000
    saved.restore()
    del model, parameter
    reuse.free_memory()
    assert reuse.allocated_bytes() == pytest.approx(at_rest, abs=1024)
    assert torch.equal(base(ids).logits, before)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_cost_of_monitoring_can_be_measured_without_a_driver(tmp_path, benchmark_module):
    name, environment = benchmark_module("monitor_cost").find_driver(tmp_path)
    assert name.startswith("NVIDIA") or "STUB_NVML" in environment


def test_a_run_of_the_quality_benchmark_is_repeated_only_if_its_settings_changed(benchmark_module):
    from dataclasses import asdict, replace

    run = benchmark_module("_real_model").Run("base", "base", answers=("test",))
    results = json.loads(json.dumps({"runs": {"base": {"run": asdict(run)}}}))
    is_known = benchmark_module("real_model").is_known
    assert is_known(run, results)
    assert not is_known(replace(run, seed=2), results)


def test_the_quality_benchmark_trains_and_logs_as_the_script_does(
    make_loop, tiny_tokenizer, tmp_path, benchmark_module
):
    from dataclasses import asdict

    real, of_script = benchmark_module("_real_model"), make_loop(training__max_steps=7, logging__logging_steps=2)
    of_script.run()
    outcome = real.Outcome(asdict(real.Run("ours")))
    config, examples = of_script.config, of_script.train
    real.train_with_toolkit(config, examples, tiny_tokenizer, tmp_path / "adapter", outcome, varied=None)
    lines = (of_script.output_dir / "metrics.jsonl").read_text().splitlines()
    logged = [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]
    steps, losses = zip(*logged, strict=True)
    assert outcome.steps == 7
    assert [step for step, _ in outcome.training["losses"]] == list(steps) == [1, 2, 4, 6]
    assert [loss for _, loss in outcome.training["losses"]] == pytest.approx(losses, abs=0.02)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_three_trainings_on_the_same_queries_are_no_more_queries(benchmark_module):
    tables = benchmark_module("_real_model_tables")
    results = {"sets": {"test": {"groups": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}}}
    seed = {"test": {"choice": "1111111100"}}
    once, thrice = (tables.estimate(results, [seed] * times, "test", "choice") for times in (1, 3))
    assert (thrice.value, thrice.n) == (once.value, once.n) == (0.8, 10)
    assert thrice.low <= once.low
    assert thrice.high >= once.high


def test_hand_written_conversations_are_calls_that_can_be_made_and_are_in_no_content(config, benchmark_module):
    from collections import Counter

    from tool_aware.sandbox import Limits, run_program
    from tool_aware.text import normalised

    module = benchmark_module("_follow_ups")
    conversations, two = module.load_conversations(config), module.load_two_requests(config)
    assert (len(conversations), len(two)) == (120, 60)
    kinds = Counter(row.metadata["follow_up"] for row in conversations)
    assert set(kinds) == set(module.KINDS)
    assert min(kinds.values()) >= 10
    assert all(row.history and row.shows(config.toolbox) for row in conversations)
    assert len({(row.tool, row.metadata["then_tool"]) for row in two}) == 12  # every ordered pair of four tools
    rows = [*conversations, *two]
    assert len({normalised(row.conversation) for row in rows}) == len(rows)
    assert not [row.query for row in rows if row.answer.call is None or config.toolbox.problems(row.answer.call)]
    found = module.programs(rows, config.toolbox)
    assert len(found) > 30
    together = "\n".join(f"exec({code!r}, {{}})\nprint('# end')" for code in found)  # a process each takes a second
    imports = {line for code in found for line in code.split("\n") if line.startswith(("import ", "from "))}
    ran = run_program("\n".join([*sorted(imports), together]), Limits(time_s=60))
    assert ran.problem is None
    assert all(printed.strip() for printed in ran.printed.split("# end\n")[:-1])
    content = contents()
    assert not [row.query for row in two if normalised(row.query) in content]
    alone = [row.query for row in conversations if normalised(row.conversation.split("\n")[0]) in content]
    assert not alone  # a word of thanks may occur there, but never behind the same turns


def contents():
    """Return every text that rows are made of, spelled alike."""
    import yaml

    from tool_aware.text import normalised

    folders = [REPOSITORY / "tool_aware/dataset/synthesis/content", REPOSITORY / "tool_aware/tool_library_data"]
    files = [path for folder in folders for path in folder.rglob("*.yaml")]
    texts, waiting = set(), [yaml.load(path.read_text("utf-8"), yaml.CSafeLoader) for path in files]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list):
            waiting += [*item.values(), *item] if isinstance(item, dict) else item
        else:
            texts.add(normalised(str(item)))
    return texts


def test_a_mistake_in_hand_written_rows_is_named_with_its_item(tmp_path, config, benchmark_module):
    import yaml

    from tool_aware.console import UserError

    module = benchmark_module("_follow_ups")
    first, second = yaml.safe_load(module.CONVERSATIONS.read_text(encoding="utf-8"))[:2]
    wrong = {**second, "kind": "riddle", "language": "xx", "tool": "code_execution", "history": []}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump([first, wrong]))
    with pytest.raises(UserError) as raised:
        module.load_conversations(config, tmp_path / "made.yaml")
    assert all(f"item 2: {words}" in raised.value.what for words in ("kind", "language", "history", "'code'"))
    assert "item 1" not in raised.value.what
    two = yaml.safe_load(module.TWO_REQUESTS.read_text(encoding="utf-8"))[0]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump([{**two, "tools": [two["tools"][0]] * 2, "reasoning": "Both."}]))
    with pytest.raises(UserError, match=r"two known ones(.|\n)*semicolon"):
        module.load_two_requests(config, tmp_path / "two.yaml")


def test_tables_of_conversations_tell_parts_of_a_set_and_malformed_answers(benchmark_module):
    tables = benchmark_module("_follow_ups_tables")
    described = {"rows": 4, "groups": [0, 1, 2, 3], "slices": ["plain", "two requests", "two requests", "follow-up"]}
    results = {"sets": {"test": described}}
    seeds = [{"test": {"choice": "1011", "readable": "1110"}}, {"test": {"choice": "1111", "readable": "1110"}}]
    both = tables.part_of(results, seeds, "test", "choice", lambda its, n: its["slices"][n] == "two requests")
    assert both.startswith("75.0 [")
    assert tables._with_malformed(seeds[0])["test"]["malformed"] == "0001"
    assert tables.part_of(results, seeds, "test", "tool", lambda its, n: True) == ""


def test_the_quality_benchmarks_make_their_data_also_where_rows_have_earlier_turns(tmp_path, benchmark_module):
    import argparse

    arguments = argparse.Namespace(model=None, tiny=True, tests=6)
    for name in ("real_model", "follow_ups"):
        material = benchmark_module(name).prepare(arguments, tmp_path / name)
        assert any(row.history for row in material.train)
        assert all(len(rows) == 6 for rows in material.tests.values())


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("PROBE_FILE", {"rag_retrieval": 60, "web_search": 60, "code_execution": 60, "direct_chat": 20}),
        ("FRESH_FILE", {"rag_retrieval": 30, "web_search": 30, "code_execution": 40}),
    ],
)
def test_hand_written_calls_print_what_was_worked_out_and_their_references_are_usable(
    config, benchmark_module, file, wanted
):
    from collections import Counter

    from tool_aware.evaluation.scoring.program_output import ProgramRuns, same_print
    from tool_aware.evaluation.scoring.usable import ParameterJudge

    module = benchmark_module("_parameters")
    rows = module.load_parameters_probe(config, getattr(module, file))
    total = sum(wanted.values())
    assert Counter(row.tool for row in rows) == wanted
    assert sum(row.metadata["language"] != "en" for row in rows) > total / 4
    assert len({row.identity for row in rows}) == total
    programs = {row.query: module.programs_of(row, config.toolbox)[0] for row in rows if "prints" in row.metadata}
    runs = ProgramRuns()
    runs.run(programs.values())
    printed = {row.query: runs.of(programs[row.query])[0].printed for row in rows if row.query in programs}
    wrong = [row.query for row in rows if row.query in printed and printed[row.query].strip() != row.metadata["prints"]]
    assert (len(printed), wrong) == (wanted["code_execution"], [])
    assert not same_print("1234.5", "1234.6")
    found = module.verdicts(
        rows, [{"text": row.response} for row in rows], ParameterJudge(programs=runs), config.toolbox
    )
    for question in ("readable", "schema", "usable", "bfcl", "strict"):
        assert found[question] == "1" * total, question
    assert found["runs"] == found["value"] == "".join("-1"["prints" in row.metadata] for row in rows)


def test_programs_that_do_what_a_hand_written_query_asks_for_are_left_out_under_any_name(config, benchmark_module):
    from tool_aware.dataset.synthesis.content import load_content
    from tool_aware.prompt import render_instruction, render_response
    from tool_aware.rows import Row
    from tool_aware.tools import ToolCall

    module = benchmark_module("_parameters")
    probe = module.load_parameters_probe(config)
    assert module.taught_by(probe) <= {frame.program for frame in load_content().frames if frame.code}

    def row(code, program):
        call = ToolCall("code_execution", {"code": code}, "So.")
        instruction = render_instruction(code, config.toolbox)
        return Row(instruction, render_response(call), {"tool": "code_execution", "program": program})

    rows = [
        row("values = [1, 2.5]\nprint(max(values))", "mode"),
        row("values = ['a', 'b']\nprint(max(values))", "follow-up"),
        row("values = [1, 2]\nprint(min(values))", "minimum"),
    ]
    assert module.without_kinds(rows, probe, config.toolbox) == rows[2:]


def test_an_answer_under_the_right_tool_is_judged_by_its_parameters(config, benchmark_module):
    from tool_aware.evaluation.scoring.program_output import ProgramRuns
    from tool_aware.evaluation.scoring.usable import ParameterJudge

    module = benchmark_module("_parameters")
    rows = [row for row in module.load_parameters_probe(config) if row.tool != "direct_chat"]
    search = next(row for row in rows if "AX-200" in row.query)
    code = next(row for row in rows if row.metadata.get("prints") == "291")
    other = 'from datetime import date\\nprint(abs(date(2024, 3, 17) - date(2025, 1, 2)).days, \\"days\\")'
    answers = [
        ("rag_retrieval", '{"query": "warranty terms AX-200 pump"}', search),
        ("code_execution", '{"code": "' + other + '"}', code),
        ("code_execution", '{"code": "print(date(2025))"}', code),
        ("code_execution", '{"code": ', code),
    ]
    texts = [
        {"text": f"Tool: {tool}\nParameters: {given}\nReasoning: So.", "chosen": "x"} for tool, given, _ in answers
    ]
    by = ParameterJudge(programs=ProgramRuns())
    found = module.verdicts([row for *_, row in answers], texts, by, config.toolbox)
    assert (found["usable"], found["readable"], found["tool"]) == ("0100", "1110", "0000")
    assert (found["runs"], found["value"]) == ("-100", "-100")
    assert [kind for kind, _ in found["kinds"][1]] == ["code"]
    assert "AX-210" in found["why"][0] or "negation" in found["why"][0]
    assert "NameError" in found["why"][2]
    kept = [module.restored(module.stored(row), config.toolbox) for row in rows[:3]]
    assert [(row.instruction, row.response) for row in kept] == [(row.instruction, row.response) for row in rows[:3]]


def test_a_mistake_in_hand_written_calls_is_named_with_its_item(tmp_path, config, benchmark_module):
    import yaml

    from tool_aware.console import UserError

    wrong = {"language": "xx", "query": "q", "parameters": {"query": 3}}
    code = {"language": "en", "query": "q", "parameters": {"code": "print(1)"}}
    (tmp_path / "made.yaml").write_text(
        yaml.safe_dump({"web_search": [wrong], "code_execution": [code], "oracle": [{}]})
    )
    with pytest.raises(UserError) as raised:
        benchmark_module("_parameters").load_parameters_probe(config, tmp_path / "made.yaml")
    for words in ("web_search: item 1: language", "web_search: item 1: ", "code_execution: item 1: keys", "oracle"):
        assert words in raised.value.what


def test_answers_of_parameters_are_judged_again_shown_side_by_side_and_added_up(config, benchmark_module):
    script, shared, tables = map(benchmark_module, ("parameters", "_parameters", "_parameters_tables"))
    rows = [row for row in shared.load_parameters_probe(config) if row.metadata.get("prints") in ("291", "23")]
    made = {name: [shared.stored(row) for row in rows] for name in ("probe", "test")}
    wrong = 'Tool: code_execution\nParameters: {"code": "print(3)"}\nReasoning: So.'
    answers = {name: [{"text": rows[0].response}, {"text": wrong, "chosen": "web_search"}] for name in made}
    described = {name: benchmark_module("real_model").described_set(rows) for name in made}
    runs = {f"tuned-seed-{seed}": {"sets": {}, "answers": json.loads(json.dumps(answers))} for seed in (1, 2)}
    results = {"model": "m", "train_rows": 7, "rows": made, "sets": described, "runs": runs, "command": "c"}
    by = script.parameter_judge(results, config, is_isolated=True)
    for name in runs:
        script.judge_run(results, name, by, config)
    assert runs["tuned-seed-1"]["sets"]["probe"]["value"] == "10"
    assert runs["tuned-seed-1"]["sets"]["probe"]["evidence"] == "00"
    shown = tables.markdown(results)
    assert "| **usable call** | 50.0 [" in shown
    assert "| programs that run | 97 | 100.0 [" in shown
    assert "| code: prints something else | 2 |" in shown
    assert "| code | 50.0 [" in shown
    read = tables.side_by_side(results, "tuned-seed-2")
    assert read.index("prints something else; its own answer chose: web_search") < read.index("verdict: usable")
