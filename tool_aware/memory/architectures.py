"""Shapes of decoder-only models: built-in presets, a model's own config.json, or Mistral-7B scaled to a size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tool_aware.console import UserError
from tool_aware.model.adapter import MLP_LINEARS
from tool_aware.model.families import FAMILIES, Traits, family_of, language_settings
from tool_aware.model.model_folder import model_settings, refuse_other_families
from tool_aware.paths import MODEL_CONFIG_NAME

_LARGEST_SIZE = 2**24  # of any width, depth or vocabulary: far beyond those of any model
_AGAIN = "download the model again"
_LIKE_MISTRAL = Traits("mistral")
NOMINAL_BILLIONS = 7.0  # what `--model-size` calls Mistral-7B, whose exact count is 7.24 billion


@dataclass(frozen=True)
class Architecture:
    """A Llama-family decoder: grouped-query attention, gated MLP, RMSNorm. Widths in elements."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    ties_embeddings: bool = False
    traits: Traits = _LIKE_MISTRAL

    @property
    def query_width(self) -> int:
        """Return the elements per token of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Return the elements per token of the keys (or the values) of all heads."""
        return self.kv_heads * self.head_dim

    @property
    def has_qkv_bias(self) -> bool:
        """Return whether query, key and value have a bias."""
        return FAMILIES[self.traits.family].has_qkv_bias

    @property
    def head_norm_width(self) -> int:
        """Return the elements per token that norms of single heads read: those of query and key, or none."""
        return self.query_width + self.kv_width if FAMILIES[self.traits.family].has_head_norms else 0

    @property
    def linear_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of each linear layer of one decoder layer: what is quantised and adapted."""
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Return the weights of all decoder layers' linear layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_shapes.values())

    @property
    def other_parameters(self) -> int:
        """Return the weights that stay 16-bit: embeddings, output layer, norms, biases."""
        matrices = (1 if self.ties_embeddings else 2) * self.vocabulary * self.hidden
        norms = (2 * self.layers + 1) * self.hidden
        biases = self.layers * (self.query_width + 2 * self.kv_width) if self.has_qkv_bias else 0
        head_norms = 2 * self.head_dim * self.layers if self.head_norm_width else 0
        return matrices + norms + biases + head_norms

    @property
    def parameters(self) -> int:
        """Return all weights."""
        return self.linear_parameters + self.other_parameters

    def adapter_parameters(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Count LoRA weights: rank x (inputs + outputs) for each adapted linear layer (LoRA, arXiv 2106.09685, sec. 4).

        Raises UserError for a target that a decoder layer does not have.
        """
        names = self.linear_shapes if targets == "all-linear" else (targets,) if isinstance(targets, str) else targets
        unknown = [name for name in names if name not in self.linear_shapes]
        if unknown:
            raise UserError(
                f"{self.name} has no linear layer {unknown[0]!r}",
                where="lora.target_modules",
                fix=f"all-linear, or names among {', '.join(self.linear_shapes)}",
            )
        return self.layers * sum(rank * sum(self.linear_shapes[name]) for name in names)


_MISTRAL_7B = Architecture("Mistral-7B", 32, 4096, 14336, 32, 8, 128, 32000)

# Preset -> architecture, from each model's config.json on huggingface.co.
PRESETS: Mapping[str, Architecture] = {
    "mistral-7b-v0.1": replace(_MISTRAL_7B, name="Mistral-7B v0.1"),
    "mistral-7b-v0.2": replace(_MISTRAL_7B, name="Mistral-7B v0.2"),
    "mistral-7b-v0.3": replace(_MISTRAL_7B, name="Mistral-7B v0.3", vocabulary=32768),
    "mistral-nemo": Architecture("Mistral-Nemo-12B", 40, 5120, 14336, 32, 8, 128, 131072),
    "llama-3-8b": Architecture("Llama-3-8B", 32, 4096, 14336, 32, 8, 128, 128256),
    "qwen-2.5-7b": Architecture("Qwen-2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064, traits=Traits("qwen2")),
    "qwen-3-8b": Architecture("Qwen3-8B", 36, 4096, 12288, 32, 8, 128, 151936, traits=Traits("qwen3")),
    "ministral-3-8b": Architecture("Ministral-3-8B", 34, 4096, 14336, 32, 8, 128, 131072, traits=Traits("ministral3")),
    "tinyllama-1.1b": Architecture("TinyLlama-1.1B", 22, 2048, 5632, 32, 4, 64, 32000),
}

# Part of a Hugging Face id, in lower case -> preset, for models whose config.json is not on this machine.
_KNOWN_IDS = {
    "mistral-7b-instruct-v0.1": "mistral-7b-v0.1",
    "mistral-7b-v0.1": "mistral-7b-v0.1",
    "mistral-7b-instruct-v0.2": "mistral-7b-v0.2",
    "mistral-7b-instruct-v0.3": "mistral-7b-v0.3",
    "mistral-7b-v0.3": "mistral-7b-v0.3",
    "mistral-nemo": "mistral-nemo",
    "llama-3-8b": "llama-3-8b",
    "llama-3.1-8b": "llama-3-8b",
    "qwen2.5-7b": "qwen-2.5-7b",
    "qwen3-8b": "qwen-3-8b",
    "ministral-3-8b": "ministral-3-8b",
    "tinyllama-1.1b": "tinyllama-1.1b",
}


def scaled_mistral(billions: float) -> Architecture:
    """Scale Mistral-7B to a size: layers, hidden and MLP width each by the cube root, so that the weights follow.

    7.0 is Mistral-7B itself. Widths stay multiples of 128, as kernels want them; what that adds or takes is made up for
    by the layers, then by the MLP width, so that from 0.5 on the linear weights are within 2 % of their share.
    """
    if billions <= 0:
        raise UserError(f"{billions} is not a model size in billions of parameters", where="--model-size")
    if billions == NOMINAL_BILLIONS:
        return _MISTRAL_7B
    factor = (billions / NOMINAL_BILLIONS) ** (1 / 3)
    kv_heads = max(1, round(_MISTRAL_7B.kv_heads * factor))
    heads = 4 * kv_heads
    hidden = heads * _MISTRAL_7B.head_dim
    layer = replace(
        _MISTRAL_7B,
        name=f"Mistral-7B scaled to {billions:g}B",
        layers=1,
        hidden=hidden,
        intermediate=hidden * _MISTRAL_7B.intermediate // _MISTRAL_7B.hidden,
        heads=heads,
        kv_heads=kv_heads,
    )
    weights = _MISTRAL_7B.linear_parameters * billions / NOMINAL_BILLIONS
    layers = max(1, round(weights / layer.linear_parameters))
    excess = layer.linear_parameters - weights / layers
    width = layer.intermediate - excess / (len(MLP_LINEARS) * hidden)
    return replace(layer, layers=layers, intermediate=max(128, 128 * round(width / 128)))


def find_architecture(model_name: str) -> Architecture:
    """Look a model up: its folder, the Hugging Face cache, then the presets. Never asks the network.

    Raises UserError if it is in none of them, or if its config.json is none.
    """
    folder = Path(model_name) if Path(model_name).is_dir() else cached_snapshot(model_name)
    config_file = folder / MODEL_CONFIG_NAME if folder else None
    if config_file is not None and config_file.is_file():
        settings = model_settings(config_file.parent)
        refuse_other_families(settings, str(config_file))
        return architecture_from_config(settings, name=model_name)
    if model_name.lower() in PRESETS:
        return PRESETS[model_name.lower()]
    base_name = model_name.rpartition("/")[2].lower()
    preset = next((preset for part, preset in _KNOWN_IDS.items() if base_name.startswith(part)), None)
    preset = preset or next((preset for part, preset in _KNOWN_IDS.items() if part in base_name), None)
    if preset is None:
        raise UserError(
            "its config.json is not on this machine and it is no built-in preset",
            where=f"model.name: {model_name}",
            fix=f"name a local folder, download the model first, or use --model with one of {', '.join(PRESETS)}",
        )
    return PRESETS[preset]


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder where huggingface_hub keeps downloads, without importing it (half a second)."""
    home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or home / "hub")


def cached_snapshot(model_name: str) -> Path | None:
    """Find the folder of a downloaded model: the snapshot that `main` points to, else any."""
    folder = hub_cache() / f"models--{model_name.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file() and (snapshot := folder / "snapshots" / main.read_text().strip()).is_dir():
        return snapshot
    return next(iter(sorted(folder.glob("snapshots/*"))), None)


def architecture_from_config(values: Mapping[str, Any], *, name: str) -> Architecture:
    """Read the shapes out of a config.json, those of the language part if the model has several.

    Raises UserError naming the keys that are missing or no sizes: such a model is damaged, or of a family that would be
    estimated wrongly.
    """
    family, traits, values = family_of(values), Traits.of(values), language_settings(values)
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    where = f"model.name: {name}"
    missing = [key for key in keys if values.get(key) is None]
    if missing:
        raise UserError(f"its config.json lacks {', '.join(missing)}", where=where, fix=_AGAIN)
    sizes = {key: values.get(key) for key in (*keys, "num_key_value_heads", "head_dim")}
    wrong = [f"{key} {size!r}" for key, size in sizes.items() if size is not None and not _is_size(size)]
    if not isinstance(values.get("tie_word_embeddings", False), bool):
        wrong.append(f"tie_word_embeddings {values['tie_word_embeddings']!r}")
    if wrong:
        raise UserError(f"its config.json has {', '.join(wrong)[:200]}", where=where, fix=_AGAIN)
    family = family or FAMILIES["llama"]
    heads, width = values["num_attention_heads"], values["hidden_size"]
    kv_heads = values.get("num_key_value_heads", family.key_value_heads) or heads
    head_dim = values.get("head_dim", family.head_size)
    if heads % kv_heads or (not head_dim and width % heads):
        what = (
            f"its config.json has {heads} heads, {kv_heads} of keys and values and hidden_size {width}: not divisible"
        )
        raise UserError(what, where=where, fix=_AGAIN)
    return Architecture(
        name=name,
        layers=values["num_hidden_layers"],
        hidden=values["hidden_size"],
        intermediate=values["intermediate_size"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or width // heads,
        vocabulary=values["vocab_size"],
        ties_embeddings=bool(values.get("tie_word_embeddings", family.ties_embeddings)),
        traits=traits if traits.family in FAMILIES else replace(traits, family="llama"),
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIZE
