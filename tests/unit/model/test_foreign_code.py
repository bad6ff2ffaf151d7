"""A model's own Python files are never run, and nobody is asked whether they may be."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.sections import ModelSection, QuantizationSection
from tool_aware.console import UserError
from tool_aware.model.base import check_model_available, load_base_model
from tool_aware.tokenizer import load_tokenizer
from tool_aware.training.export.layerwise import empty_model

LOADERS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")


@pytest.fixture
def planted(tiny_model_dir, tmp_path, monkeypatch) -> Path:
    """A model with code of its own, whose running leaves a file; the terminal would say yes."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "planted.py").write_text(code + "class Planted: pass\n")
    for name, parts in (
        ("config.json", ("AutoConfig", "AutoModelForCausalLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = dict.fromkeys(parts, "planted.Planted")
        if name == "tokenizer_config.json":
            content["auto_map"] = {"AutoTokenizer": ["planted.Planted", None]}
        (folder / name).write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return folder


def test_code_of_a_model_of_a_known_type_is_not_run(planted, tmp_path):
    check_model_available(str(planted))
    load_tokenizer(str(planted))
    load_base_model(ModelSection(name=str(planted)), QuantizationSection(load_in_4bit=False))
    empty_model(planted)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_is_its_own_code_alone_is_one_message(planted, tmp_path):
    settings = json.loads((planted / "config.json").read_text())
    (planted / "config.json").write_text(json.dumps({**settings, "model_type": "planted"}))
    with pytest.raises(UserError) as caught:
        check_model_available(str(planted))
    assert "code of its own" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_every_call_that_could_ask_says_no():
    files = [*(REPOSITORY / "tool_aware").rglob("*.py"), *REPOSITORY.glob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if owner in LOADERS and node.func.attr in ("from_pretrained", "from_config"):
                values = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert values.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
