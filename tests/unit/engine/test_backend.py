"""Both modules of operations have the functions that the hand-written pass calls, with the same parameters."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch

from tests.fixtures.repository import REPOSITORY
from tool_aware.engine import torch_ops
from tool_aware.engine.backend import Backend, Operations
from tool_aware.engine.packed_attention import SegmentAttention

OPERATIONS = {
    name: method for name, method in vars(Operations).items() if inspect.isfunction(method) and name[0] != "_"
}


def parameters_in(source: str) -> dict[str, list[str]]:
    """The parameters of each function, read without importing it: Triton is not installed everywhere."""
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return {f.name: [arg.arg for arg in [*f.args.args, *f.args.kwonlyargs]] for f in functions}


@pytest.mark.parametrize("module", ["torch_ops", "triton_ops"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_there_with_the_parameters_of_the_protocol(module, name):
    found = parameters_in((REPOSITORY / f"tool_aware/engine/{module}.py").read_text())
    assert found[name] == [
        parameter for parameter in inspect.signature(OPERATIONS[name]).parameters if parameter != "self"
    ]


def test_the_cpu_computes_with_plain_torch():
    assert len(OPERATIONS) == 9
    backend = Backend.of(torch.device("cpu"))
    assert (backend.operations, backend.attention) == (torch_ops, SegmentAttention)
