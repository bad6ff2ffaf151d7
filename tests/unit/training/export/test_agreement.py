"""A merged model is compared with base + adapter as trained: same tools, and how far the answers' tokens are apart."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tool_aware.chat_format import encode_example
from tool_aware.config.settings import Config
from tool_aware.console import GateFailed
from tool_aware.engine.loss import without_head
from tool_aware.engine.packing import pack, pack_rows
from tool_aware.model.adapter import new_adapter
from tool_aware.model.base import load_base_model
from tool_aware.training.choice import ToolNames, chosen_tools, right_choices, right_tool
from tool_aware.training.export.agreement import (
    Agreement,
    AsTrained,
    References,
    Sample,
    as_trained,
    compare_with_trained,
)
from tool_aware.training.export.export import Merged, MergeMethod, Merger, merge
from tool_aware.training.export.layerwise import StreamedModel, empty_model, quantized_names
from tool_aware.training.export.weights import WeightFiles

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def names(tiny_tokenizer, config) -> ToolNames:
    return ToolNames.of(tiny_tokenizer, config.toolbox)


@pytest.fixture(scope="module")
def sample(toy_rows, tiny_tokenizer) -> Sample:
    return Sample.take(Path("val.json"), toy_rows[:20], tiny_tokenizer, limit=20, max_tokens=4096)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_dir, config: Config, tiny_tokenizer):
    """The tiny NF4 model with an adapter that matters, a function of its answers' states, and a merger of the two."""
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": str(tiny_model_dir)})})
    model = new_adapter(load_base_model(config.model, config.quantization), config).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    folder = tmp_path_factory.mktemp("trained") / "lora_adapters"
    model.save_pretrained(folder, save_embedding_layers=False)
    tiny_tokenizer.save_pretrained(folder)

    def answer_states(examples):
        packed = pack(examples, "prefix")
        base = model.get_base_model()
        with without_head(base) as head:
            inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
            states = model(**inputs, attention_mask=packed.visible(), use_cache=False).logits
        return packed, states[packed.label_rows, packed.label_columns], head

    return answer_states, Merger(config, folder), model


# ---- one layer at a time --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tied", [True, False], ids=["head tied to the embeddings", "head of its own"])
def test_streaming_layer_by_layer_gives_the_states_of_the_whole_model(tmp_path, tiny_model_dir, sample, is_tied):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    if not is_tied:
        head = torch.nn.Linear(64, model.config.vocab_size, bias=False)
        model.lm_head, model.config.tie_word_embeddings = head, False
    model.save_pretrained(tmp_path)
    packed = pack_rows(sample.examples, 8)
    assert packed.input_ids.shape[0] == 3
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
        logits = whole(**inputs, attention_mask=packed.visible()).logits[packed.label_rows, packed.label_columns]
    hidden, weight = StreamedModel(empty_model(tmp_path), WeightFiles(tmp_path), CPU).states(packed)
    torch.testing.assert_close(hidden @ weight.T, logits, rtol=1e-4, atol=1e-5)


def test_layers_have_weights_only_while_rows_pass_them(tiny_model_dir, sample):
    model, held = empty_model(tiny_model_dir), []

    class Watched(WeightFiles):
        def __getitem__(self, name: str) -> torch.Tensor:
            held.append(sum(not p.is_meta for layer in model.model.layers for p in layer.parameters()))
            return super().__getitem__(name)

    StreamedModel(model, Watched(tiny_model_dir), CPU).states(pack_rows(sample.examples[:2], 8))
    per_layer = len(list(model.model.layers[0].parameters()))
    assert max(held) < per_layer
    assert all(p.is_meta for p in model.model.layers.parameters())


def test_rows_of_packs_hold_every_example_once(sample):
    packed = pack_rows(sample.examples, 8)
    assert sorted(packed.order) == list(range(20))
    labels = [label for index in packed.order for label in sample.examples[index].completion]
    assert packed.labels.tolist() == labels


def test_the_quantized_weights_are_those_that_bitsandbytes_replaced(trained, tiny_model_dir):
    _, _, model = trained
    replaced = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer") + ".weight"
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    } - {"lm_head.weight"}
    replaced = {name for name in replaced if "lora" not in name}
    assert quantized_names(empty_model(tiny_model_dir)) == replaced


# ---- choices --------------------------------------------------------------------------------------------


def test_a_choice_is_the_tool_that_greedy_decoding_ends_at(tiny_tokenizer, config, toy_rows):
    """A head that prefers one token after another decides the choice, whatever the right answer is."""
    names = ToolNames.of(tiny_tokenizer, config.toolbox)
    examples = [encode_example(tiny_tokenizer, row.instruction, row.response) for row in toy_rows[:4]]
    labels = sum(len(example.completion) for example in examples)
    for number, ids in enumerate(names.ids):
        head = torch.zeros(len(tiny_tokenizer), 1)
        head[ids[0]] = 1.0
        chosen = chosen_tools(examples, torch.ones(labels, 1), head, names)
        assert chosen == [(number,)] * 4
        assert right_choices(examples, torch.ones(labels, 1), head, names) == 1  # each of the four rows is of another


def test_an_answer_that_names_no_tool_is_an_error_that_says_so(names):
    with pytest.raises(ValueError, match="no tool's name"):
        right_tool(replace_completion([5, 6, 7]), names)


def test_names_that_begin_alike_are_told_apart_only_on_the_right_path():
    names = ToolNames(0, [[1, 2], [1, 3], [4, 5]])
    head = torch.zeros(6, 1)
    head[1] = 1.0
    examples = [replace_completion([1, 3]), replace_completion([4, 5])]
    assert chosen_tools(examples, torch.ones(4, 1), head, names) == [(0,), (0, 1)]


def replace_completion(ids: list[int]):
    from tool_aware.chat_format import EncodedExample

    return EncodedExample([0], ids)


def test_a_sample_is_spread_over_the_file_and_keeps_its_row_numbers(toy_rows, tiny_tokenizer, names):
    few = Sample.take(Path("test.json"), toy_rows, tiny_tokenizer, limit=6, max_tokens=4096)
    assert few.numbers == [1, 9, 17, 25, 33, 41]
    assert few.queries[1] == toy_rows[8].query
    longest = max(map(len, few.examples))
    assert len(Sample.take(Path("test.json"), toy_rows, tiny_tokenizer, limit=6, max_tokens=longest - 1).numbers) < 6
    short = few.cut_after_name(names)
    assert all(len(a.completion) < len(b.completion) for a, b in zip(short.examples, few.examples, strict=True))


# ---- agreement ------------------------------------------------------------------------------------------


def test_the_dequantized_merge_answers_as_in_training_and_the_original_one_less_so(trained, sample, names):
    answer_states, merger, _ = trained
    found = merger.measure(as_trained(answer_states, sample, names), names)
    dequantized, original = (found[MergeMethod(base, "float32")] for base in ("dequantized", "original"))
    assert dequantized.equal == 20
    assert dequantized.divergence < 1e-6
    assert original.divergence > 100 * dequantized.divergence


def test_the_way_that_agrees_best_is_taken_and_the_result_read_back(trained, sample, names, tmp_path, capsys):
    answer_states, merger, _ = trained
    val, test = (as_trained(answer_states, part, names) for part in (sample, sample.cut_after_name(names)))
    merged = merge(merger, tmp_path / "final_model", names, References(val, test))
    assert merged.method == MergeMethod("dequantized", "float32")
    assert merged.checked.equal == 20
    merged.demand_agreement(["a", "b", "c", "d"])
    assert merged.as_dict()["check"] == {"file": "val.json", "rows": 20, "different": []}
    told = capsys.readouterr().err
    assert "dequantized  float32     20 of 20" in told
    assert "on 20 of 20 rows of val.json (" in told


def test_without_rows_the_weights_of_training_are_taken(trained, tmp_path, names):
    _, merger, _ = trained
    merged = merge(merger, tmp_path / "final_model", names, References())
    assert (merged.method, merged.measured, merged.checked) == (MergeMethod("dequantized", "float32"), {}, None)
    merged.demand_agreement(["a"])


def test_a_final_model_that_chooses_otherwise_fails_the_gate_and_names_the_rows(trained, sample, names, tmp_path):
    answer_states, merger, _ = trained
    reference = as_trained(answer_states, sample.cut_after_name(names), names)
    merger.save(MergeMethod("dequantized", "float32"), tmp_path / "final_model")
    shard = tmp_path / "final_model" / "model.safetensors"
    tensors = load_file(shard)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].flip(0)  # something went wrong
    save_file(tensors, shard, {"format": "pt"})
    checked = merger.check(tmp_path / "final_model", reference, names)
    assert len(checked.different) > 0
    with pytest.raises(GateFailed, match=rf"on {len(checked.different)} of 20 rows of val.json") as caught:
        Merged(MergeMethod("dequantized", "float32"), {}, checked, reference).demand_agreement(["a", "b", "c", "d"])
    assert "export.merge_base=auto" in caught.value.fix
    first = checked.different[0]
    assert f"row {sample.numbers[first]}: " in str(caught.value)
    assert caught.value.exit_code == 3


def test_ways_are_compared_as_each_alone_and_read_every_layer_once_for_all(trained, sample, names, monkeypatch):
    answer_states, merger, _ = trained
    reference = as_trained(answer_states, sample, names)
    ways, alone = merger.methods(), {}
    for way in ways:
        monkeypatch.setattr(merger, "methods", lambda way=way: [way])
        alone |= merger.measure(reference, names)
    monkeypatch.undo()
    reads: Counter[str] = Counter()

    class Watched(WeightFiles):
        def _read(self, name: str) -> torch.Tensor:
            reads[name] += 1
            return super()._read(name)

    merger._files = Watched(merger._base)
    assert merger.measure(reference, names) == alone
    assert len(alone) == len(ways) == 2
    layers = {name: count for name, count in reads.items() if ".layers." in name}
    assert len(layers) > 10
    assert set(layers.values()) == {1}


def test_more_rows_than_fit_at_once_are_compared_in_turns(trained, sample, names, monkeypatch):
    answer_states, merger, _ = trained
    reference = as_trained(answer_states, sample, names)
    whole = merger.measure(reference, names)
    monkeypatch.setattr(
        "tool_aware.training.export.agreement.MOST_TOKENS", 1
    )  # one pack of eight at a time: three turns
    in_turns = merger.measure(reference, names)
    for way, found in in_turns.items():
        assert found.chosen == whole[way].chosen
        assert found.divergence == pytest.approx(whole[way].divergence, abs=1e-6)


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (1, True), (2, False)])
def test_one_row_in_a_hundred_may_differ(sample, wrong, passes):
    hundred = replace(sample, numbers=list(range(1, 101)), queries=["?"] * 100)
    reference = AsTrained(hundred, torch.zeros(0), torch.zeros(0), [(0,)] * 100)
    merged = Merged(
        MergeMethod("original", "float32"), {}, Agreement(100, list(range(wrong)), [(1,)] * 100, 0.0), reference
    )
    if passes:
        merged.demand_agreement(["a", "b"])
    else:
        with pytest.raises(GateFailed):
            merged.demand_agreement(["a", "b"])


def test_a_model_that_overflows_is_infinitely_far(trained, sample, names, tiny_model_dir):
    answer_states, _, _ = trained
    reference = as_trained(answer_states, sample, names)

    class Broken(WeightFiles):
        def __getitem__(self, name: str) -> torch.Tensor:
            return super().__getitem__(name) * (float("inf") if "norm" in name else 1.0)

    model = StreamedModel(empty_model(tiny_model_dir), Broken(tiny_model_dir), CPU)
    found = compare_with_trained(reference, [model], names)[0]
    assert found.divergence == math.inf
