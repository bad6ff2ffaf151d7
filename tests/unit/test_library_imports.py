"""Heavy libraries imported without what a process does not need of them."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys

import pytest
import torch

from tests.fixtures.repository import REPOSITORY
from tool_aware.chat_format import encode_prompt
from tool_aware.library_imports import compiled_at_first_call, import_libraries, left_out

TOKENISE = """
import json, sys
from tool_aware.library_imports import load_no_models
load_no_models()
from tool_aware.chat_format import encode_prompt
from tool_aware.tokenizer import load_tokenizer
ids = encode_prompt(load_tokenizer(sys.argv[1]), sys.argv[2])
is_loaded = "torch" in sys.modules
import torch
print(json.dumps([ids, is_loaded, torch.tensor([1]).tolist()]))
"""


def test_garbage_is_collected_again_after_imports():
    import_libraries("json")
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError):
        import_libraries("no_such_library")
    assert gc.isenabled()


def test_a_process_without_models_tokenises_the_same_without_torch_and_may_import_it_later(
    tiny_model_dir, tiny_tokenizer
):
    text = "Which tool? Query: Grüße,   42 €"
    command = [sys.executable, "-c", TOKENISE, str(tiny_model_dir), text]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "PyTorch was not found" not in result.stderr
    ids, is_loaded, tensor = json.loads(result.stdout)
    assert (is_loaded, tensor) == (False, [1])
    assert ids == encode_prompt(tiny_tokenizer, text)  # with torch


def test_what_is_left_out_is_found_again_afterwards(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wanted_by_another.py").write_text("")
    with left_out("wanted_by_another", "json"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("wanted_by_another")
        assert importlib.import_module("json") is json  # imported before
    importlib.import_module("wanted_by_another")


def test_what_is_given_to_the_compiler_while_it_waits_is_compiled_at_its_first_call():
    given = []

    def backend(graph, _example_inputs):
        given.append(graph)
        return graph.forward

    with compiled_at_first_call():

        @torch.compile(backend=backend)
        def double(x):
            return x * 2

        add = torch.compile(lambda x: x + 1, backend=backend)
    assert double.__name__ == "double"
    assert not given
    assert double(torch.tensor(2)).item() == 4
    assert add(torch.tensor(2)).item() == 3
    assert len(given) == 2
    assert isinstance(torch.compile(torch.nn.Linear(1, 1)), torch._dynamo.OptimizedModule)


def test_importing_peft_leaves_the_compiler_out_and_says_nothing():
    code = (
        "import sys; from tool_aware.library_imports import import_libraries; "
        "import_libraries('torch', 'transformers', 'peft'); print('torch._inductor.compile_fx' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
    assert "kernels" not in result.stderr  # recommended by bitsandbytes on some processors
