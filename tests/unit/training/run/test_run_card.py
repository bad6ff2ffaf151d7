"""The run card and its curves show the figures of the run, whatever kind of run it was."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config, load_config
from tool_aware.console import Fallbacks
from tool_aware.training.run.curves import draw_curves, read_metrics
from tool_aware.training.run.run_card import RunFacts, code, license_of, render_card, vllm_max_lora_rank, write_run_card


def step(number: int, loss: float, peak_gib: float | None = None) -> dict[str, object]:
    return {
        "step": number,
        "loss": loss,
        "lr": 1e-4,
        "examples": 8,
        "seconds": 2.0,
        "examples_per_s": 4.0,
        "peak_gib": peak_gib,
    }


def scoring(number: int) -> dict[str, object]:
    return {"step": number, "val_loss": 1.25, "val_tool_accuracy": 0.75, "val_examples": 8}


RUNS = {
    "one step": [step(1, 2.0)],
    "one step and its scoring": [step(1, 2.0), scoring(1)],
    "a scoring of a resumed run that logged no step": [scoring(5)],
    "many steps": [step(n, 2.0 / n) for n in range(1, 200)] + [scoring(100), scoring(199)],
}


@pytest.mark.parametrize("lines", RUNS.values(), ids=RUNS.keys())
def test_curves_are_drawn_of_any_run(tmp_path, lines):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 200, "lo')  # torn by a kill
    assert sum(map(len, read_metrics(metrics))) == len(lines)
    draw_curves(metrics, tmp_path / "training.png", title="a run", exported_step=1)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def facts(tmp_path: Path) -> RunFacts:
    config = load_config(REPOSITORY / "config.yaml", ["lora.r=16", "training.output_dir=/somewhere"])
    return RunFacts(
        config,
        tmp_path / "lora_adapters",
        data={"train": (1117, "ab" * 32)},
        steps=20,
        exported_step=10,
        why_exported="the best of 2",
        validation=scoring(10),
        precision="bfloat16",
        device="a card",
        license="apache-2.0",
    )


def test_the_card_has_the_commands_of_servers_with_the_rank_and_precision_of_the_run(facts):
    config = load_config(REPOSITORY / "config.yaml", ["lora.r=24"])
    merged = {"into": "original", "dtype": "float32", "check": None}
    card = render_card(replace(facts, config=config, adapter=Path("out put/lora_adapters"), merged=merged), [])
    lora, final, *_ = [line for line in card.splitlines() if line.startswith("vllm serve")]
    assert "--lora-modules 'router=out put/lora_adapters' --max-lora-rank 32 --dtype float32" in lora
    assert final.startswith("vllm serve 'out put/final_model' --served-model-name router --dtype float32")
    assert all("""'{"temperature": 0}'""" in line for line in (lora, final))
    assert "llama-server -m base.gguf --lora router-lora.gguf --alias router --temp 0" in card
    assert vllm_max_lora_rank(512) == 512


def test_the_card_has_the_command_for_tools_where_their_template_was_written(facts, tmp_path):
    merged = {"into": "original", "dtype": "float32", "check": None}
    facts = replace(facts, adapter=tmp_path / "lora_adapters", merged=merged)
    facts.adapter.mkdir()
    parser = f"--tool-parser-plugin {tmp_path / 'final_model' / 'vllm_tool_parser.py'} --tool-call-parser tool_aware"
    assert parser not in render_card(facts, [])
    (facts.adapter / "chat_template_tools.jinja").touch()
    assert parser in render_card(facts, [])


def test_the_card_is_a_model_card_with_the_figures_of_the_run(facts):
    card = render_card(facts, [step(1, 2.0, 3.5), step(10, 1.5, 4.25)], picture="training.png")
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["base_model"] == facts.config.model.name
    assert (metadata["library_name"], metadata["license"]) == ("peft", "apache-2.0")
    for text in (
        "| exported | step 10: the best of 2 |",
        "| right tool on val.json | 75.0% of 8 rows |",
        "| examples per second | 4.0 |",
        "| peak GPU memory | 4.25 GiB allocated |",
        "| `lora.r` | `8` | `16` |",
        f"| train.json | 1,117 | {'ab' * 32} |",
        "(training.png)",
    ):
        assert text in body
    assert "output_dir" not in body  # a path says nothing about the model


def test_a_run_without_scorings_licence_or_gpu_has_a_card_without_those(facts):
    card = render_card(replace(facts, license=None, validation=None), [step(1, 2.0)])
    assert "license:" not in card
    assert "on val.json |" not in card
    assert "| peak GPU memory | none used |" in card
    assert "training.png" not in card


def test_the_card_tells_how_the_merged_model_came_about(facts):
    check = {"file": "test.json", "rows": 120, "different": [7]}
    card = render_card(replace(facts, merged={"into": "dequantized", "dtype": "float16", "check": check}), [])
    assert "merged into its dequantized weights, in float16. It chose the same tool" in card
    assert "on 119 of 120 rows of test.json" in card


def test_the_card_tells_what_did_not_go_as_planned(facts):
    told = "out of GPU memory: micro-batches are split into 4 examples from here on"
    assert f"| not as planned | {told} |" in render_card(replace(facts, fallbacks=[told]), [])
    assert "not as planned" not in render_card(facts, [])


def test_the_card_lies_beside_the_curves_and_in_the_adapters_folder(facts, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step(1, 2.0)) + "\n")
    facts.adapter.mkdir()
    write_run_card(tmp_path, facts, Fallbacks())
    assert "(training.png)" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "training.png").is_file()
    assert (facts.adapter / "README.md").is_file()


def test_the_licence_is_read_off_the_base_models_card(config: Config, tmp_path):
    model = config.model.model_copy(update={"name": str(tmp_path)})
    assert license_of(model) is None
    (tmp_path / "README.md").write_text("no front matter")
    assert license_of(model) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert license_of(model) == "apache-2.0"


HOSTILE = "x|y`</td><script>alert(1)</script>\n# heading\n[link](javascript:1) ![i](u) \x1b[31m ``` *b*"

NAME = "".join(mark for mark in HOSTILE if mark.isprintable())  # what config.yaml accepts


def test_names_are_shown_as_they_are_and_never_as_marks(facts, tmp_path):
    config = facts.config.model_copy(
        update={"model": facts.config.model.model_copy(update={"name": NAME, "revision": HOSTILE})}
    )
    text = render_card(replace(facts, config=config, device=HOSTILE, fallbacks=(HOSTILE,)), [], picture=None)
    body = text.split("---\n", 2)[2]
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == NAME
    outside_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", body.split("## How to use it")[0])
    assert "<script>" not in outside_code
    assert "\n# heading" not in body
    assert "\x1b" not in body
    assert "](javascript" not in outside_code.replace("\\]", "")


@pytest.mark.parametrize("text", ["`", "``", "a`b", "``a`", "a\nb", ""])
def test_code_holds_any_text(text):
    shown = code(text)
    fence = re.match("`+", shown).group(0) if text else "``"
    assert fence not in shown.strip("`").strip() or not text.strip("`")
    assert "\n" not in shown


def test_curves_and_cards_that_cannot_be_written_are_fallbacks(facts, tmp_path):
    (tmp_path / "README.md").mkdir()
    (tmp_path / "training.png").mkdir()
    (facts.adapter / "README.md").mkdir(parents=True)
    fallbacks = Fallbacks()
    write_run_card(tmp_path, facts, fallbacks)
    assert (tmp_path / "README.md").is_file()
    assert (tmp_path / "training.png").is_file()
    assert any("the adapter's card cannot be written" in message for message in fallbacks)


@pytest.mark.parametrize(
    "content", [b"---\nlicense: [\n---\n", b"\xff\xfe", b"---\nlicense: {a: b}\n---\n", b"---\n- 1\n---"]
)
def test_a_base_models_card_that_cannot_be_read_tells_no_licence(config: Config, tmp_path, content):
    (tmp_path / "README.md").write_bytes(content)
    assert license_of(config.model.model_copy(update={"name": str(tmp_path)})) is None
