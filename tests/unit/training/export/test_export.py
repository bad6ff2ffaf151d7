"""The merged model is bit-equal to peft's merge, loads by itself, and is never half there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, MistralConfig, MistralForCausalLM

from tests.fixtures.changed_tokenizer import changed as changed_tokenizer
from tests.fixtures.repository import REPOSITORY
from tool_aware.chat_format import puts_space_before_runs
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.files import read_json
from tool_aware.model.base import load_base_model
from tool_aware.paths import GENERATION_CONFIG_NAME
from tool_aware.tokenizer import load_tokenizer
from tool_aware.training.export import export
from tool_aware.training.export.export import MergeMethod, Merger, save_adapter

SPACE_BEFORE_EVERY_RUN = {  # Llama 2's older conversions
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base_dir(request, tmp_path_factory, tiny_model_dir) -> Path:
    """The tiny model in several shards, as large models come."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=getattr(torch, request.param))
    model.save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture(scope="module")
def adapter_dir(base_dir, tmp_path_factory, tiny_tokenizer) -> Path:
    """An adapter whose update is not zero, in 16 bits where the base is."""
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=7, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn_like(parameter, dtype=torch.float32) * 0.1).to(base.dtype)
    folder = tmp_path_factory.mktemp("adapter") / "lora_adapters"
    model.peft_config["default"].base_model_name_or_path = str(base_dir)
    model.save_pretrained(folder, save_embedding_layers=False)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_merger(config, base_dir, adapter_dir):
    """A merger of the adapter into the base; keyword arguments go into the sections of the config."""

    def make(base: Path = base_dir, adapter: Path = adapter_dir, **sections: dict[str, object]) -> Merger:
        return Merger(changed(config, model={"name": str(base)}, **sections), adapter)

    return make


def changed(config: Config, **sections: dict[str, object]) -> Config:
    update = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=update)


def assert_equal_models(ours: Path, theirs: torch.nn.Module) -> None:
    model, expected = AutoModelForCausalLM.from_pretrained(ours), theirs.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert model.dtype == theirs.dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_merge_into_the_original_weights_is_bit_equal_to_pefts(make_merger, base_dir, adapter_dir, tmp_path, dtype):
    make_merger().save(MergeMethod("original", dtype), tmp_path / "final_model")
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=getattr(torch, dtype))
    assert_equal_models(tmp_path / "final_model", PeftModel.from_pretrained(base, adapter_dir).merge_and_unload())


@pytest.mark.parametrize(
    "quantization",
    [
        {},
        {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
        {"bnb_4bit_compute_dtype": "bfloat16"},
        {"load_in_4bit": False, "load_in_8bit": True},
    ],
    ids=["nf4", "fp4", "nf4 in bfloat16", "8 bits"],
)
def test_the_merge_into_dequantized_weights_is_bit_equal_to_pefts(
    make_merger, config, base_dir, adapter_dir, tmp_path, quantization
):
    merger = make_merger(quantization=quantization)
    base = load_base_model(merger._config.model, merger._config.quantization)
    dtype = str(base.dtype).removeprefix("torch.")
    merger.save(MergeMethod("dequantized", dtype), tmp_path / "final_model")
    on_the_cpu = base.dequantize(base.dtype).to("cpu")  # where peft adds in float32 as well
    theirs = PeftModel.from_pretrained(on_the_cpu, adapter_dir).merge_and_unload()
    assert_equal_models(tmp_path / "final_model", theirs)


def test_the_ways_to_merge_follow_the_config(make_merger, base_dir):
    own = str(AutoModelForCausalLM.from_pretrained(base_dir).dtype).removeprefix("torch.")
    stored = [own, "float16"] if own == "bfloat16" else [own]
    assert make_merger().methods() == [
        MergeMethod(base, dtype) for base in ("dequantized", "original") for dtype in stored
    ]
    pinned = make_merger(export={"merge_base": "original", "dtype": "float32"})
    assert pinned.methods() == [MergeMethod("original", "float32")]
    unquantized = make_merger(quantization={"load_in_4bit": False}, export={"dtype": "float16"})
    assert unquantized.methods() == [MergeMethod("original", "float16")]


def test_the_merged_model_differs_from_the_base_and_needs_nothing_else(make_merger, base_dir, tmp_path):
    merger = make_merger()
    merger.save(merger.methods()[0], tmp_path / "final_model")
    merged, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "final_model", base_dir))
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        assert not torch.allclose(merged(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final_model")
    assert tokenizer.chat_template
    generated = merged.generate(ids, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= 18
    files = {path.name for path in (tmp_path / "final_model").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"} <= files


def test_the_adapter_folder_holds_the_prompt_it_was_trained_on(config, base_dir, adapter_dir, tmp_path, tiny_tokenizer):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), adapter_dir)
    save_adapter(model, tmp_path / "lora_adapters", tiny_tokenizer, config)
    text = (tmp_path / "lora_adapters" / "prompt_template.txt").read_text()
    assert text.endswith("Query: {query}")
    assert (tmp_path / "lora_adapters" / "adapter_model.safetensors").is_file()


def test_the_merged_model_tells_llama_cpp_that_no_space_comes_before_the_prompt(make_merger, tmp_path, adapter_dir):
    make_merger().save(MergeMethod("original", "float32"), tmp_path / "final_model")
    assert read_json(tmp_path / "final_model" / "tokenizer_config.json")["add_prefix_space"] is False
    assert read_json(adapter_dir / "tokenizer_config.json")["add_prefix_space"] is None
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "final_model", adapter_dir))
    for text in ("hi", " hi", "<s> [INST] hi [/INST]", "a  b\n\nc </s>x", "日本 é"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_a_tokenizer_that_is_loaded_already_leads_to_the_same_files(config, base_dir, adapter_dir, tmp_path):
    of_base, loaded = changed(config, model={"name": str(base_dir)}), load_tokenizer(str(base_dir))
    folders = {tmp_path / "given": loaded, tmp_path / "read": None}
    for folder, tokenizer in folders.items():
        Merger(of_base, adapter_dir, tokenizer=tokenizer).save(MergeMethod("original", "float32"), folder)
    given, read = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert given == read


def test_only_sentencepiece_puts_spaces_before_text(tokenizer, byte_level_tokenizer):
    assert puts_space_before_runs(tokenizer) is False
    assert puts_space_before_runs(byte_level_tokenizer) is None
    older = changed_tokenizer(tokenizer, pre_tokenizer=None, normalizer=SPACE_BEFORE_EVERY_RUN)
    assert puts_space_before_runs(older) is True


def test_every_server_takes_the_likeliest_token_of_the_merged_model(make_merger, base_dir, tmp_path):
    own = tmp_path / "base"
    shutil.copytree(base_dir, own)
    prose = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05, "do_sample": True}
    (own / GENERATION_CONFIG_NAME).write_text(json.dumps({**prose, "bos_token_id": 1, "eos_token_id": [7]}))
    make_merger(own).save(MergeMethod("original", "float32"), tmp_path / "final_model")
    written = read_json(tmp_path / "final_model" / GENERATION_CONFIG_NAME)
    assert written == {"bos_token_id": 1, "eos_token_id": [2, 7], "do_sample": True, "top_k": 1}
    GenerationConfig.from_pretrained(tmp_path / "final_model").validate(strict=True)  # raises for what would warn


def test_an_adapter_of_another_architecture_is_refused(make_merger, adapter_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(adapter_dir, other)
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(
        {key.replace("layers.1.", "layers.7."): value for key, value in tensors.items()},
        other / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=r"fit no weight of the base model: model\.layers\.7"):
        make_merger(adapter=other)


def test_a_base_without_safetensors_is_refused(make_merger, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        make_merger(base=tmp_path)


def test_a_base_that_is_stored_quantized_is_refused(make_merger, base_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(base_dir, tmp_path / "packed")
    shard = next((tmp_path / "packed").glob("*.safetensors"))
    save_file({name: tensor.to(torch.uint8) for name, tensor in load_file(shard).items()}, shard)
    merger = make_merger(base=tmp_path / "packed")
    with pytest.raises(UserError, match="quantised already"):
        merger.save(MergeMethod("original", "float32"), tmp_path / "final_model")
    assert not (tmp_path / "final_model").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(make_merger, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SPARE", 1e12)  # asks for more than any disk has
    with pytest.raises(UserError, match="GiB are free"):
        make_merger().save(MergeMethod("original", "float32"), tmp_path / "final_model")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_the_model_is_written_is_told(make_merger, small_disk, monkeypatch):
    monkeypatch.setattr(export, "_SPARE", 0)  # there was room when it was asked for
    with pytest.raises(UserError, match=r"at least \d\.\d MiB are needed and 1\.0 MiB are free") as caught:
        make_merger().save(MergeMethod("original", "float32"), small_disk / "final_model")
    assert caught.value.where == str(small_disk)
    assert list(small_disk.iterdir()) == []


def test_a_disk_too_small_for_the_adapter_is_told(config, base_dir, adapter_dir, small_disk, tokenizer):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), adapter_dir)
    with pytest.raises(UserError, match="the disk is full"):  # by tokenizers: its vocabulary alone takes more
        save_adapter(model, small_disk / "lora_adapters", tokenizer, config)
    assert list(small_disk.iterdir()) == []


# Prints the bytes by which the resident memory grew at most while a model was merged, one number a way.
MEASURED_MERGE = """
import sys
from pathlib import Path
from tool_aware.config.settings import load_config
from tool_aware.training.export.export import Merger, MergeMethod

def kib(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])

base, adapter, folder = sys.argv[1:]
merger = Merger(load_config(Path("config.yaml"), ["model.name=" + base]), Path(adapter))
for into in ("original", "dequantized"):
    way = MergeMethod(into, "float32")
    merger._weights(way)["model.layers.0.self_attn.q_proj.weight"]  # libraries load on first use
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = kib("VmRSS")
    merger.save(way, Path(folder) / into)
    print((kib("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_merge_never_holds_more_than_two_and_a_half_times_the_largest_shard(tmp_path, tokenizer):
    """Shards of some 66 MB are far above what a process's memory wavers by."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 32000}
    base = MistralForCausalLM(MistralConfig(**sizes, num_attention_heads=8, num_key_value_heads=8))
    base.save_pretrained(tmp_path / "base", max_shard_size="28MB")  # the embedding alone is 66 MB
    tokenizer.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    shards = [path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors")]
    assert len(shards) >= 3
    command = [sys.executable, "-c", MEASURED_MERGE, tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for grown in map(int, result.stdout.split()):
        assert 0 < grown < 2.5 * max(shards)
