"""What evaluation refuses before anything slow begins."""

import copy
import json

import pytest

from tool_aware.console import UserError
from tool_aware.evaluation.preflight import check_adapter, check_merged_model


@pytest.fixture
def trained(tmp_path, config):
    """An output folder with adapter and merged model, and a function that writes the tools it was trained with."""
    adapter = tmp_path / "output" / "lora_adapters"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": config.model.name}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "output" / "final_model").mkdir()

    def with_tools(tools):
        manifest = {"stage": "train", "config": {"tools": tools}}
        (tmp_path / "output" / "manifest.json").write_text(json.dumps(manifest))
        return adapter

    return with_tools


def changed(config, change):
    """The config's tools as a manifest holds them, with one change."""
    tools = copy.deepcopy(config.as_dict()["tools"])
    change(tools)
    return tools


def turn_parameters(tools):
    properties = tools[0]["parameters"]["properties"]
    tools[0]["parameters"]["properties"] = dict(reversed(properties.items()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tools: tools[1].update(description="Search the archive."), "another definition of web_search"),
        (lambda tools: tools[0]["parameters"]["properties"].pop("limit"), "another definition of rag_retrieval"),
        (turn_parameters, "another definition of rag_retrieval"),
        (lambda tools: tools.reverse(), "the tools direct_chat, code_execution, web_search, rag_retrieval; the config"),
        (lambda tools: tools.pop(), "the tools rag_retrieval, web_search, code_execution; the config lists"),
    ],
    ids=["description", "a parameter", "order of parameters", "order of tools", "a tool"],
)
def test_other_tools_than_the_models_are_refused_by_their_whole_definition(trained, config, change, words):
    adapter = trained(changed(config, change))
    with pytest.raises(UserError, match=f"was trained with {words}"):
        check_adapter(config, adapter)
    with pytest.raises(UserError, match=f"was trained with {words}"):
        check_merged_model(config, adapter.parent / "final_model")


def test_other_example_queries_are_the_same_tools(trained, config):
    adapter = trained(changed(config, lambda tools: tools[0]["examples"].clear()))
    check_adapter(config, adapter)
    check_merged_model(config, adapter.parent / "final_model")
