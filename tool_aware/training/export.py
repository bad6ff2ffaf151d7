"""What training leaves behind: the adapter with the prompt it was trained on, and the merged model.

The merge goes shard by shard over the base model's own safetensors files and never holds the model: the peak is one
shard and one layer's update. The update is added to the original 16-bit weights, as quantising a merged model again
would erase it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.config import ModelSection
from tool_aware.console import UserError
from tool_aware.prompt import render_template
from tool_aware.records import atomic_folder, read_json, write_json, write_text
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

ADAPTERS_FOLDER = "lora_adapters"
FINAL_MODEL_FOLDER = "final_model"
PROMPT_FILE = "prompt_template.txt"  # what an agent fills in and sends as the user turn
_WEIGHTS_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_SPARE = 1.02  # disk space wanted beyond the weights: tokenizer, configs, safetensors headers


def save_adapter(model: PeftModel, folder: Path, tokenizer: PreTrainedTokenizerBase, tools: Toolbox) -> None:
    """Write the adapter, its tokenizer and the prompt template into `folder`, all of it or nothing."""
    with atomic_folder(folder) as part:
        model.save_pretrained(part, save_embedding_layers=False)
        tokenizer.save_pretrained(part)
        write_text(part / PROMPT_FILE, render_template(tools))


def save_merged(model: ModelSection, adapter: Path, folder: Path, *, hf_token: str | None = None) -> None:
    """Write the base model with the adapter merged in, loadable by `AutoModelForCausalLM.from_pretrained(folder)`.

    Raises UserError if the disk has no room, or the base model has no safetensors weights.
    """
    base = base_folder(model, hf_token)
    shards = weight_files(base)
    _check_space(folder, sum(shard.stat().st_size for shard in shards))
    updates = LoraUpdates.load(adapter)
    with atomic_folder(folder) as part:
        for shard in shards:
            _merge_shard(shard, part / shard.name, updates)
        updates.check_all_used()
        if (base / _WEIGHTS_INDEX).is_file():
            shutil.copyfile(base / _WEIGHTS_INDEX, part / _WEIGHTS_INDEX)
        _write_configs(base, adapter, part)


def base_folder(model: ModelSection, hf_token: str | None) -> Path:
    """Return the local folder with the base model's files, fetching what is not in the cache."""
    if Path(model.name).is_dir():
        return Path(model.name)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "model*.safetensors", "tokenizer.model"]
    return Path(snapshot_download(model.name, revision=model.revision, token=hf_token, allow_patterns=wanted))


def weight_files(base: Path) -> list[Path]:
    """List the safetensors shards of a model folder."""
    index = read_json(base / _WEIGHTS_INDEX)
    names = sorted(set(index["weight_map"].values())) if index else [_WEIGHTS]
    missing = [name for name in names if not (base / name).is_file()]
    if missing:
        raise UserError(f"lacks {', '.join(missing)}", where=str(base), fix="use a model with safetensors weights")
    return [base / name for name in names]


class LoraUpdates:
    """The low-rank updates of an adapter by the name of the weight they belong to."""

    def __init__(self, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scale: float) -> None:
        self._factors, self._scale = dict(factors), scale
        self._used: set[str] = set()

    @classmethod
    def load(cls, adapter: Path) -> LoraUpdates:
        """Read `adapter_model.safetensors`; its keys are `base_model.model.<module>.lora_A.weight` and `..._B...`."""
        from safetensors.torch import load_file

        settings = read_json(adapter / "adapter_config.json")
        if settings.get("use_dora") or settings.get("use_rslora") or settings.get("rank_pattern"):
            raise UserError("only plain LoRA adapters can be merged shard by shard", where=str(adapter))
        tensors = load_file(adapter / "adapter_model.safetensors")
        modules = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
        factors = {
            module.removeprefix("base_model.model.") + ".weight": (
                tensors[f"{module}.lora_A.weight"],
                tensors[f"{module}.lora_B.weight"],
            )
            for module in modules
        }
        return cls(factors, settings["lora_alpha"] / settings["r"])

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` (out, in) + scale * B (out, r) @ A (r, in): summed in float32, rounded once, as peft does."""
        if name not in self._factors:
            return weight
        self._used.add(name)
        a, b = self._factors[name]
        delta = (b.float() @ a.float()) * self._scale
        return (weight + delta).to(weight.dtype)

    def check_all_used(self) -> None:
        """Raise UserError if an update found no weight: the adapter belongs to another architecture."""
        unused = sorted(self._factors.keys() - self._used)
        if unused:
            raise UserError(f"{len(unused)} updates fit no weight of the base model, for example {unused[0]}")


def _merge_shard(source: Path, target: Path, updates: LoraUpdates) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as shard:
        merged = {name: updates.apply(name, shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118
    save_file(merged, target, metadata={"format": "pt"})


def _write_configs(base: Path, adapter: Path, folder: Path) -> None:
    """Copy the base's configs without a trace of quantisation, and the adapter's tokenizer with its template."""
    config = read_json(base / "config.json")
    config.pop("quantization_config", None)
    write_json(folder / "config.json", config)
    for path in _tokenizer_files(base):
        shutil.copyfile(path, folder / path.name)
    for path in _tokenizer_files(adapter):
        shutil.copyfile(path, folder / path.name)
    generation = read_json(base / "generation_config.json") or {
        key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config
    }
    write_json(folder / "generation_config.json", {**generation, "do_sample": False})


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    names = (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    )
    return (folder / name for name in names if (folder / name).is_file())


def _check_space(folder: Path, needed_bytes: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes * _SPARE:
        raise UserError(
            f"the merged model needs {needed_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free",
            where=str(folder),
            fix="free some space and run again with --resume, or go without it: --skip-final-model",
        )
