"""Holds the tensors on disk against those that a model or an adapter consists of, without reading them.

The libraries give what they do not find random values, and leave out what they cannot place, with a warning at most.
Here both are errors. transformers and peft themselves say what fits: they load tensors without data, on the meta
device, so that names which they translate count as found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tool_aware.console import UserError
from tool_aware.model.language_part import language_config, plain_names
from tool_aware.model.libraries import library_errors, quiet_libraries
from tool_aware.model.tensor_files import StoredTensor, named, tensors_in
from tool_aware.paths import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, MODEL_CONFIG_NAME

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "language_model.")
_META = "meta"


class _Checked(NamedTuple):
    """A model without weights that was made for a check alone, and what it was made from."""

    folder: Path
    settings: bytes
    stored: dict[str, StoredTensor]
    model: PreTrainedModel


_checked: list[_Checked] = []  # the last one, for who needs one next: that of a 7B takes a second


def check_stored(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Check as `model_without_weights` does, which returns the model of this check if it comes next."""
    settings = (folder / MODEL_CONFIG_NAME).read_bytes()
    _checked[:] = [_Checked(folder, settings, dict(stored), model_without_weights(folder, stored))]


def model_without_weights(folder: Path, stored: Mapping[str, StoredTensor]) -> PreTrainedModel:
    """Return the model of `folder` on the meta device, after a check that `stored` are all its tensors and no others.

    It is the caller's alone. Raises UserError naming tensors that are missing, of another shape, or of no use to the
    model.
    """
    if _checked:
        *made_from, model = _checked.pop()
        if made_from == [folder, (folder / MODEL_CONFIG_NAME).read_bytes(), stored]:
            return model
    return _new_model(folder, stored)


def _new_model(folder: Path, stored: Mapping[str, StoredTensor]) -> PreTrainedModel:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config_file = str(folder / MODEL_CONFIG_NAME)
    fix = "download the model again, or name a Mistral or Llama model"
    with quiet_libraries(), library_errors("cannot be used", config_file, fix):
        config, _ = language_config(str(folder))
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            what = f"transformers has no causal language model of type {config.model_type!r}"
            raise UserError(what, where=config_file, fix=fix)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=_without_data({plain: stored[name] for plain, name in plain_names(folder, stored).items()}),
            device_map={"": _META},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    refuse_unmatched(found, str(folder))
    return model


def _without_data(stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.empty(tensor.shape, device=_META) for name, tensor in stored.items()}


def refuse_unmatched(found: Mapping[str, Any], where: str) -> None:
    """Raise UserError if transformers' report of a loading names tensors that are missing, unused or of other shapes.

    Buffers that older versions stored, such as `rotary_emb.inv_freq`, are not in the report.
    """
    missing, unused = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in found["mismatched_keys"]}
    _refuse(missing, unused, shapes, where=where, of="the model's weights", fix="download the model again, whole")


def check_adapter_fits(adapter: Path, base: PreTrainedModel, base_name: str) -> None:
    """Check that the tensors of a LoRA adapter are those that its settings ask for on `base`, which has no weights.

    `base` is changed in place. Raises UserError naming those that are missing, fit nothing or have other shapes.
    """
    from peft import PeftConfig, get_peft_model

    fix = "take the adapter's folder as its training wrote it"
    with quiet_libraries(), library_errors("cannot be used", str(adapter / ADAPTER_CONFIG_NAME), fix):
        settings = PeftConfig.from_pretrained(str(adapter))
        settings.inference_mode = True
        model: Any = get_peft_model(base, settings, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    refuse_other_tensors(model, shapes_in(adapter), where=str(adapter), base_name=base_name)


def shapes_in(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of an adapter's folder. Raises UserError for a file that is not whole."""
    return {name: tensor.shape for name, tensor in tensors_in(adapter / ADAPTER_WEIGHTS_NAME).items()}


def refuse_other_tensors(
    model: PeftModel, stored: Mapping[str, tuple[int, ...]], *, where: str, base_name: str | None = None
) -> None:
    """Raise UserError unless `stored`, shapes by name as peft saves them, are all tensors of the model's adapter."""
    from peft import get_peft_model_state_dict

    with quiet_libraries():
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes = {
        name: (tuple(stored[name]), wanted[name])
        for name in sorted(stored.keys() & wanted.keys())
        if tuple(stored[name]) != wanted[name]
    }
    missing, unused = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    of = f"an adapter with these settings on {base_name}" if base_name else "this adapter"
    fix = "name the base model that it was trained on, and the adapter's folder as its training wrote it"
    if unused and not missing and not any("lora_" in name for name in unused):
        fix = (
            "save the adapter without layers of the base: model.save_pretrained(DIR, save_embedding_layers=False); "
            "if they were trained too, it cannot be used here"
        )
    _refuse(missing, unused, shapes, where=where, of=of, fix=fix)


def _refuse(
    missing: list[str],
    unused: list[str],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    *,
    where: str,
    of: str,
    fix: str,
) -> None:
    if not (missing or unused or shapes):
        return
    parts = []
    if missing:
        parts.append(f"{_count(missing)} of {of} {_are(missing)} missing: {named(missing)}")
    if unused:
        parts.append(f"{_count(unused)} {_are(unused)} no part of {of}: {named(unused)}")
    if shapes:
        examples = [f"{name} is {_size(stored)}, not {_size(wanted)}" for name, (stored, wanted) in shapes.items()]
        have = "has" if len(shapes) == 1 else "have"
        parts.append(f"{_count(shapes)} of {of} {have} another size: {named(examples)}")
    wrapper = _wrapper(missing, unused)
    if wrapper:
        fix = f"take {wrapper!r} out of the names: they were saved from a wrapped model"
    raise UserError("\n  ".join(parts), where=where, fix=fix)


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _are(names: Collection[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _wrapper(missing: list[str], unused: list[str]) -> str | None:
    """Return the part of a wrapper's name without which unused tensors would be the missing ones; None if none is."""
    return next(
        (part for part in _WRAPPERS if missing and {name.replace(part, "") for name in unused} >= set(missing)), None
    )
