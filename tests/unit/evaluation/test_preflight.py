"""What evaluation refuses before anything slow begins."""

import copy
import json

import pytest

from tool_aware.evaluation.preflight import check_adapter, check_merged_model
from tool_aware.evaluation.tool_changes import earlier_tools, tool_change, warning_of


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


def give_name(tools):
    tools[1]["name"] = "browse"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tools: tools[1].update(description="Archive."), "web_search has another description or schema"),
        (lambda tools: tools[0]["parameters"]["properties"].pop("limit"), "rag_retrieval has another description"),
        (turn_parameters, "rag_retrieval has another description or schema"),
        (lambda tools: tools.reverse(), "the order is another"),
        (lambda tools: tools.pop(), "direct_chat is new"),
        (lambda tools: tools.append({**tools[0], "name": "tickets", "description": "Tickets."}), "tickets is gone"),
        (give_name, "browse is web_search now"),
    ],
    ids=["description", "a parameter", "order of parameters", "order of tools", "one fewer", "one more", "name"],
)
def test_other_tools_than_the_models_are_told_by_their_whole_definition(trained, config, change, words):
    adapter = trained(changed(config, change))
    earlier = earlier_tools(adapter.parent, config, stage="train")
    assert words in str(earlier.change)
    assert f"was trained with other tools ({earlier.change})" in warning_of(adapter, earlier)
    check_adapter(config, adapter)  # is no reason to refuse it
    check_merged_model(adapter.parent / "final_model")


def test_other_example_queries_are_the_same_tools(trained, config):
    adapter = trained(changed(config, lambda tools: tools[0]["examples"].clear()))
    assert not earlier_tools(adapter.parent, config, stage="train").change


def test_a_tool_is_not_taken_for_renamed_where_two_have_its_definition(config):
    tools = config.as_dict()["tools"]
    twice = [*tools[1:], {**tools[0], "name": "a"}, {**tools[0], "name": "b"}]
    change = tool_change(tools, twice)
    assert (list(change.added), list(change.removed), dict(change.renamed)) == (["a", "b"], ["rag_retrieval"], {})
