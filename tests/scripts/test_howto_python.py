"""The Python of docs/HOWTO.md runs as it is printed, in a folder with a config, a model and an adapter."""

from __future__ import annotations

import re
import shutil

from tests.fixtures.repository import REPOSITORY


def test_the_model_answers_by_the_python_of_the_howto(tmp_path, monkeypatch, tiny_model_dir, adapter, capsys):
    section = (REPOSITORY / "docs" / "HOWTO.md").read_text().partition("### Use the model in Python")[2]
    program = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    settings = f"extends: {REPOSITORY / 'config.yaml'}\nmodel:\n  name: {tiny_model_dir}\n"
    (tmp_path / "config.yaml").write_text(settings)
    shutil.copytree(adapter, tmp_path / "output" / "lora_adapters")
    monkeypatch.chdir(tmp_path)
    exec(compile(program.replace("max_new_tokens=256", "max_new_tokens=4"), "HOWTO.md", "exec"), {})
    assert capsys.readouterr().out == "None None None\n"  # random weights answer nothing that can be read
