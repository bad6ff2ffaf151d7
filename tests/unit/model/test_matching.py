"""Models and adapters whose tensors are not all there, or fit nothing, are refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tool_aware.config.sections import ModelSection, QuantizationSection
from tool_aware.console import UserError
from tool_aware.model import matching
from tool_aware.model.adapter import attach_adapter, check_saved_adapter
from tool_aware.model.base import check_model_available, load_base_model
from tool_aware.model.model_folder import check_model_folder
from tool_aware.tokenizer import load_tokenizer
from tool_aware.training.export.weights import check_mergeable

Tensors = dict[str, torch.Tensor]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"
MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    changed = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path, metadata={"format": "pt"})


def set_keys(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def also(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    """A whole model whose head is not tied to its embeddings, to break."""
    return shutil.copytree(model_dir, tmp_path / "model")


@pytest.fixture
def adapter(adapter_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(adapter_dir, tmp_path / "adapter")


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        check()
    assert caught.value.exit_code == 2
    return str(caught.value)


INCOMPLETE = {
    "head missing": (without("lm_head"), "1 tensor of the model's weights is missing: lm_head.weight"),
    "norm missing": (without("model.norm"), "missing: model.norm.weight"),
    "layer missing": (without("layers.1."), "9 tensors of the model's weights are missing: model.layers.1."),
    "compiled": (prefixed("_orig_mod."), "take '_orig_mod.' out of the names"),
    "wrapped": (prefixed("module."), "take 'module.' out of the names"),
    "of a vision model": (prefixed("language_model."), "21 tensors of the model's weights are missing"),
    "a layer more": (also("model.layers.2.mlp.up_proj.weight", 3, 3), "no part of the model's weights: model.layers.2"),
    "another size": (also("model.norm.weight", 65), "model.norm.weight is 65, not 64"),
}


@pytest.mark.parametrize(("change", "expected"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_base_model_without_some_of_its_tensors_is_refused_by_name(model, change, expected):
    rewrite(model / MODEL, change)
    assert expected in refusal(lambda: check_model_available(str(model)))
    assert expected in refusal(lambda: load_base_model(ModelSection(name=str(model)), QuantizationSection()))


def test_buffers_that_old_versions_stored_are_no_reason_to_refuse(model):
    rewrite(model / MODEL, also("model.layers.0.self_attn.rotary_emb.inv_freq", 8))
    check_model_available(str(model))
    check_mergeable(ModelSection(name=str(model)))


def test_names_that_transformers_translates_load_but_are_not_merged(model):
    rewrite(model / MODEL, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    check_model_available(str(model))
    assert "under the names of its layers" in refusal(lambda: check_mergeable(ModelSection(name=str(model))))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_weights_that_are_not_finite_are_refused_quantised_ones_too(model, name):
    rewrite(model / MODEL, lambda tensors: {**tensors, name: torch.full_like(tensors[name], float("nan"))})
    message = refusal(lambda: load_base_model(ModelSection(name=str(model)), QuantizationSection()))
    assert f"not finite: {name}" in message


def sharded(folder: Path) -> Path:
    """Divide the model into two files and an index; return the index."""
    tensors, weight_map = load_file(folder / MODEL), {}
    (folder / MODEL).unlink()
    for number, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:]), start=1):
        save_file({name: tensors[name] for name in names}, folder / f"model-{number}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(names, f"model-{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_a_sharded_model_is_whole_only_with_all_shards_each_once(model):
    index = sharded(model)
    check_model_available(str(model))
    shutil.copy(model / "model-1.safetensors", model / "model-2.safetensors")
    assert "has tensors that model-1.safetensors has too" in refusal(lambda: check_model_available(str(model)))
    (model / "model-2.safetensors").unlink()
    assert "lacks model-2.safetensors, which" in refusal(lambda: check_model_available(str(model)))
    index.write_text("[]")
    assert "has no weight_map" in refusal(lambda: check_model_available(str(model)))
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../model-1.safetensors"}}))
    assert "is not the name of a safetensors file" in refusal(lambda: check_model_available(str(model)))


def test_a_whole_file_beside_an_index_of_others_is_a_question(model, model_dir):
    sharded(model)
    shutil.copy(model_dir / MODEL, model)
    assert "which of them are the weights?" in refusal(lambda: check_model_available(str(model)))


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only(folder: Path, name: str, content: bytes) -> None:
    (folder / MODEL).unlink()
    (folder / name).write_bytes(content)


BROKEN_FOLDERS = {
    "pointer": (lambda m: (m / MODEL).write_text(POINTER), "is a Git LFS pointer"),
    "pointer config": (lambda m: (m / "config.json").write_text(POINTER), "config.json: is a Git LFS pointer"),
    "cut off": (lambda m: halved(m / MODEL), "is cut off: "),
    "header cut off": (lambda m: (m / MODEL).write_bytes((m / MODEL).read_bytes()[:50]), "its header is not whole"),
    "empty": (lambda m: (m / MODEL).write_bytes(b""), "is empty"),
    "a web page": (lambda m: (m / MODEL).write_text("<!DOCTYPE html>"), "is an HTML page"),
    "noise": (lambda m: (m / MODEL).write_bytes(b"\xff" * 99), "is no safetensors file"),
    "pickle": (lambda m: only(m, "pytorch_model.bin", b"x"), "pickled weights only (pytorch_model.bin)"),
    "gguf": (lambda m: only(m, "m.gguf", b"GGUF"), "holds a GGUF file (m.gguf)"),
    "mistral's own": (lambda m: only(m, "consolidated.safetensors", b"x"), "in another layout"),
    "no config": (lambda m: (m / "config.json").unlink(), "has no config.json"),
    "config a list": (lambda m: (m / "config.json").write_text("[]"), "holds no settings of a model"),
    "no type": (lambda m: set_keys(m / "config.json", model_type=None), "has no model_type"),
    "bert": (
        lambda m: set_keys(m / "config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        "is a BertForMaskedLM, which writes no text",
    ),
    "t5": (lambda m: set_keys(m / "config.json", model_type="t5", architectures=None), "is a model of type 't5'"),
    "unknown": (lambda m: set_keys(m / "config.json", model_type="mistral9"), "is a model of type 'mistral9'"),
    "size a text": (lambda m: set_keys(m / "config.json", hidden_size="64"), "hidden_size"),
    "size null": (lambda m: set_keys(m / "config.json", hidden_size=None), "hidden_size"),
    "rope": (lambda m: set_keys(m / "config.json", rope_parameters=[1]), "rope_parameters"),
    "a billion layers": (lambda m: set_keys(m / "config.json", num_hidden_layers=10**9), "names 1,000,000,000 layers"),
    "huge": (lambda m: set_keys(m / "config.json", vocab_size=2**70), "cannot be used"),
    "gptq": (
        lambda m: set_keys(m / "config.json", quantization_config={"quant_method": "gptq"}),
        "are quantised already (gptq)",
    ),
    "integers": (
        lambda m: rewrite(m / MODEL, lambda ts: {n: t.to(torch.int8) for n, t in ts.items()}),
        "are quantised already",
    ),
    "an adapter": (lambda m: (m / "adapter_config.json").write_text("{}"), "an adapter or a model?"),
    "generation config": (lambda m: (m / "generation_config.json").write_text("{"), "generation_config.json:1"),
}


@pytest.mark.parametrize(("break_", "expected"), BROKEN_FOLDERS.values(), ids=BROKEN_FOLDERS)
def test_a_damaged_or_foreign_model_folder_is_one_message(model, break_, expected):
    break_(model)
    assert expected in refusal(lambda: check_model_available(str(model)))


QUANTISED = {
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "activation_scheme": "static"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "mxfp4": {"quant_method": "mxfp4"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}


@pytest.mark.parametrize("name", QUANTISED)
def test_a_base_that_is_quantised_already_is_one_message(model, name):
    set_keys(model / "config.json", quantization_config=QUANTISED[name])
    assert f"are quantised already ({name})" in refusal(lambda: check_model_available(str(model)))


@pytest.mark.parametrize("is_said", [True, False])
def test_a_base_that_bitsandbytes_saved_is_refused_whether_its_config_says_so_or_not(tiny_model_dir, tmp_path, is_said):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=settings).save_pretrained(tmp_path)
    if not is_said:
        set_keys(tmp_path / "config.json", quantization_config=None)
    message = refusal(lambda: check_model_available(str(tmp_path)))
    assert "its weights are quantised already" in message
    assert "16-bit" in message


BROKEN_TOKENIZERS = {
    "none": (lambda m: [path.unlink() for path in m.glob("tokenizer*")], "the folder has no tokenizer"),
    "pointer": (lambda m: (m / "tokenizer.json").write_text(POINTER), "tokenizer.json: is a Git LFS pointer"),
    "pointer model": (lambda m: (m / "tokenizer.model").write_text(POINTER), "tokenizer.model: is a Git LFS pointer"),
    "cut off": (lambda m: halved(m / "tokenizer.json"), "is not JSON"),
    "a list": (lambda m: (m / "tokenizer.json").write_text("[]"), "is not a JSON object"),
    "no content": (lambda m: (m / "tokenizer.json").write_text("{}"), "cannot be read"),
    "noise": (lambda m: (m / "tokenizer.model").write_bytes(b"abc" * 9), "its tokenizer cannot be read"),
    "too many tokens": (lambda m: set_keys(m / "config.json", vocab_size=31990), "embeddings for 31,990"),
    "too few tokens": (lambda m: set_keys(m / "config.json", vocab_size=128256), "it belongs to another model"),
}


@pytest.mark.parametrize(("break_", "expected"), BROKEN_TOKENIZERS.values(), ids=BROKEN_TOKENIZERS)
def test_a_damaged_or_foreign_tokenizer_is_one_message(model, break_, expected):
    break_(model)
    assert expected in refusal(lambda: load_tokenizer(str(model)))


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def with_embeddings(tensors: Tensors) -> Tensors:
    return {**tensors, "base_model.model.model.embed_tokens.weight": torch.zeros(32000, 64)}


def layer_copied(tensors: Tensors) -> Tensors:
    return {**tensors, **{name.replace("layers.1", "layers.2"): tensor.clone() for name, tensor in tensors.items()}}


UNFITTING = {
    "compiled": (renamed("base_model.model.", "base_model.model._orig_mod."), "take '_orig_mod.' out of the names"),
    "of a vision model": (
        renamed("base_model.model.model.", "base_model.model.model.language_model."),
        "take 'language_model.' out of the names",
    ),
    "half of it": (renamed("model.layers.0", "_orig_mod.layers.0"), "14 tensors of an adapter with these settings"),
    "no B": (without("lora_B"), "14 tensors of an adapter with these settings"),
    "one B missing": (without("layers.0.self_attn.q_proj.lora_B"), "layers.0.self_attn.q_proj.lora_B.weight"),
    "fewer layers": (without("layers.1."), "are missing: base_model.model.model.layers.1."),
    "more layers": (layer_copied, "are no part of an adapter with these settings"),
    "with embeddings": (with_embeddings, "save_embedding_layers=False"),
    "nothing": (lambda tensors: {}, "28 tensors of an adapter with these settings"),
    "another rank": (
        lambda tensors: {name: t[:2] if "lora_A" in name else t[:, :2] for name, t in tensors.items()},
        "have another size",
    ),
    "named twice": (renamed(".weight", ".default.weight"), "28 tensors of an adapter with these settings"),
    "not finite": (lambda ts: {name: t * float("nan") for name, t in ts.items()}, "values that are not finite"),
}


@pytest.fixture(scope="module")
def whole_base(model_dir):
    return lambda: load_base_model(ModelSection(name=str(model_dir)), QuantizationSection())


@pytest.mark.parametrize(("change", "expected"), UNFITTING.values(), ids=UNFITTING)
def test_an_adapter_whose_tensors_fit_nothing_or_half_is_refused_by_name(
    adapter, model_dir, whole_base, change, expected
):
    rewrite(adapter / ADAPTER, change)
    assert expected in refusal(lambda: check_saved_adapter(adapter, ModelSection(name=str(model_dir))))
    attached = refusal(lambda: attach_adapter(whole_base(), adapter, base_name=str(model_dir)))
    assert expected in attached or "its matrices do not fit" in attached


def test_an_adapter_as_it_was_saved_fits(adapter, model_dir):
    check_saved_adapter(adapter, ModelSection(name=str(model_dir)))


def adapter_keys(**values: object) -> Callable[[Path], None]:
    return lambda folder: set_keys(folder / "adapter_config.json", **values)


BROKEN_ADAPTERS = {
    "pointer": (lambda a: (a / ADAPTER).write_text(POINTER), "is a Git LFS pointer"),
    "cut off": (lambda a: halved(a / ADAPTER), "is cut off"),
    "empty": (lambda a: (a / ADAPTER).write_bytes(b""), "is empty"),
    "pickle": (lambda a: (a / ADAPTER).rename(a / "adapter_model.bin"), "a pickled adapter only"),
    "no weights": (lambda a: (a / ADAPTER).unlink(), "no adapter found"),
    "not JSON": (lambda a: (a / "adapter_config.json").write_text("{r: 4}"), "is not JSON"),
    "a list": (lambda a: (a / "adapter_config.json").write_text("[]"), "holds a list"),
    "config pointer": (lambda a: (a / "adapter_config.json").write_text(POINTER), "is a Git LFS pointer"),
    "base null": (adapter_keys(base_model_name_or_path=None), "which base model was it trained on?"),
    "another base": (adapter_keys(base_model_name_or_path="someone/else"), "was trained on someone/else"),
    "r 0": (adapter_keys(r=0), "r is 0, not a rank"),
    "r a text": (adapter_keys(r="8"), "r is '8', not a rank"),
    "alpha null": (adapter_keys(lora_alpha=None), "lora_alpha is None"),
    "dropout": (adapter_keys(lora_dropout=2), "lora_dropout is 2"),
    "targets": (adapter_keys(target_modules={"q": 1}), "neither names of layers nor all-linear"),
    "other targets": (adapter_keys(target_modules=["q_proj"]), "24 tensors are no part of"),
    "no such targets": (adapter_keys(target_modules=["nope"]), "cannot be used"),
    "unknown kind": (adapter_keys(peft_type="NOPE"), "cannot be used"),
    "another kind": (adapter_keys(peft_type="IA3"), "are missing"),
    "a variant": (adapter_keys(use_dora=True), "lora_magnitude_vector"),
}


@pytest.mark.parametrize(("break_", "expected"), BROKEN_ADAPTERS.values(), ids=BROKEN_ADAPTERS)
def test_a_damaged_or_foreign_adapter_folder_is_one_message(adapter, model_dir, break_, expected):
    break_(adapter)
    assert expected in refusal(lambda: check_saved_adapter(adapter, ModelSection(name=str(model_dir))))


def test_a_merged_model_given_as_an_adapter_says_where_it_belongs(model, model_dir):
    message = refusal(lambda: check_saved_adapter(model, ModelSection(name=str(model_dir))))
    assert "holds a model, not an adapter" in message
    assert f"evaluate.py --model {model}" in message


def test_the_model_of_a_check_is_given_to_the_next_who_needs_one_of_these_files_and_once(model, monkeypatch):
    made, make = [], matching._new_model
    monkeypatch.setattr(matching, "_new_model", lambda *given: made.append(make(*given)) or made[-1])
    stored = check_model_folder(model, "model.name")
    check_model_available(str(model))
    assert matching.model_without_weights(model, stored) is made[0]
    assert matching.model_without_weights(model, stored) is made[1]
    check_model_available(str(model))
    settings = model / "config.json"
    settings.write_text(settings.read_text() + "\n")
    assert matching.model_without_weights(model, stored) is made[3]
