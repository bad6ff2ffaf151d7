"""The folder of a base model: its settings and its files, checked without a library and before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tool_aware.console import UserError
from tool_aware.model.families import language_settings, refuse_unknown_family
from tool_aware.model.tensor_files import StoredTensor, named, stored_tensors, weight_files
from tool_aware.paths import ADAPTER_CONFIG_NAME, GENERATION_CONFIG_NAME, MODEL_CONFIG_NAME
from tool_aware.text_files import read_json_text

# Endings of `architectures` whose model writes text; `Model` is one without its head, which its tensors show.
_WRITES_TEXT = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model")
_PACKED = (".absmax", ".quant_map", ".qweight", ".qzeros", ".weight_packed", ".SCB", ".weight_scale_inv")


def model_settings(folder: Path) -> Mapping[str, Any]:
    """Return the settings of config.json. Raises UserError if it is no JSON object, such as an LFS pointer."""
    path = folder / MODEL_CONFIG_NAME
    settings = read_json_text(path)
    if not isinstance(settings, dict):
        raise UserError("holds no settings of a model", where=str(path), fix="download the model again")
    return settings


def check_model_folder(folder: Path, where: str) -> dict[str, StoredTensor]:
    """Check that a folder holds a whole, unquantised causal language model; return its tensors by name.

    Raises UserError for anything else: no config, another family, files that are missing, damaged or pickles.
    """
    if not (folder / MODEL_CONFIG_NAME).is_file():
        raise _no_model(folder, where)
    weight_files(folder)
    settings = model_settings(folder)
    generation = folder / GENERATION_CONFIG_NAME
    if generation.is_file() and not isinstance(read_json_text(generation), dict):
        raise UserError("is not a JSON object", where=str(generation), fix="delete it, or download it again")
    config = str(folder / MODEL_CONFIG_NAME)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        what = f"holds {ADAPTER_CONFIG_NAME} beside {MODEL_CONFIG_NAME}: an adapter or a model?"
        raise UserError(what, where=where, fix=f"delete {ADAPTER_CONFIG_NAME} if the adapter is merged into the model")
    if not isinstance(settings.get("model_type"), str):
        fix = 'download it again, or add the family, for example "model_type": "mistral"'
        raise UserError("has no model_type", where=config, fix=fix)
    refuse_other_families(settings, config)
    tensors = None
    if method := _quantised_with(settings) or _packed_kind(tensors := stored_tensors(folder)):
        raise UserError(
            f"its weights are quantised already ({method})",
            where=where,
            fix="name the 16-bit model that it was made from; `quantization` in config.yaml quantises it at loading",
        )
    tensors = tensors or stored_tensors(folder)
    layers = language_settings(settings).get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(tensors):
        what = f"names {layers:,} layers, but the files have {len(tensors):,} tensors in all"
        raise UserError(what, where=config, fix="download the model again")
    return tensors


def refuse_other_families(settings: Mapping[str, Any], config: str) -> None:
    """Raise UserError if the settings are those of a model that writes no text, or not by a decoder that is known."""
    architectures = settings.get("architectures") or []
    if not isinstance(architectures, list):
        raise UserError(f"architectures is {architectures!r:.60}, not a list", where=config, fix="download it again")
    if architectures and not any(str(name).endswith(_WRITES_TEXT) for name in architectures):
        what = f"is a {architectures[0]}, which writes no text"
        raise UserError(what, where=config, fix="name a model for causal language modelling, such as Mistral or Llama")
    if settings.get("is_encoder_decoder"):
        what = "is of an encoder-decoder model, which is built otherwise"
        raise UserError(what, where=config, fix="name a decoder-only model, such as Mistral or Llama")
    if isinstance(settings.get("model_type"), str):
        refuse_unknown_family(settings, config)


def _no_model(folder: Path, where: str) -> UserError:
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        fix = f"name the base model here, and the adapter with --adapter {folder}"
        return UserError("the folder holds an adapter, not a model", where=where, fix=fix)
    if gguf := sorted(path.name for path in folder.glob("*.gguf")):
        fix = "name the model that it was converted from, with config.json and *.safetensors"
        return UserError(f"the folder holds a GGUF file ({gguf[0]}), which cannot be trained", where=where, fix=fix)
    below = sorted(path.parent for path in folder.glob(f"*/{MODEL_CONFIG_NAME}"))
    fix = f"name {below[0]}" if below else "name the folder save_pretrained wrote to"
    return UserError("the folder has no config.json", where=where, fix=fix)


def _quantised_with(settings: Mapping[str, Any]) -> str | None:
    """Return how a model's weights are stored that are not floating-point numbers; None if they are."""
    section = settings.get("quantization_config")
    if not section:
        return None
    return str(section.get("quant_method", "quantization_config")) if isinstance(section, dict) else "?"


def _packed_kind(tensors: Mapping[str, StoredTensor]) -> str | None:
    """Return what shows that weights are packed although config.json does not say so; None if nothing does."""
    packed = [name for name in tensors if name.endswith(_PACKED)]
    whole = [name for name, tensor in tensors.items() if tensor.kind.startswith(("I", "U")) and "weight" in name]
    return named(packed or whole) or None
