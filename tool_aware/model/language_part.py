"""The part of a model that writes text, taken out of a model of several parts; images are not read.

A mistral3 model (Ministral 3, Mistral Small 3.1 and later) has a vision tower, a projector and a language model. Its
files name the latter's weights `language_model.model...` or, as transformers has them, `model.language_model...`. Here
it is a causal language model as any other, with the plain names `model...`: it is trained and evaluated without the
other parts, and a merged model has all of them again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.model.families import MULTIMODAL, language_settings
from tool_aware.model.libraries import quiet_libraries
from tool_aware.model.model_folder import model_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PLAIN_NAMES = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
_OTHER_PARTS = tuple(f"{root}{part}." for root in ("", "model.") for part in ("vision_tower", "multi_modal_projector"))


def is_other_part(name: str) -> bool:
    """Return whether a stored tensor belongs to the parts of a multimodal model that are left out."""
    return name.startswith(_OTHER_PARTS)


def plain_name(name: str) -> str:
    """Return the name that a tensor stored in a multimodal model has in its language model alone."""
    for pattern, plain in _PLAIN_NAMES.items():
        name = re.sub(pattern, plain, name)
    return name


def plain_names(folder: Path, stored: Mapping[str, Any]) -> dict[str, str]:
    """Return plain name -> stored name of the tensors of `folder` that belong to its language model."""
    if model_settings(folder).get("model_type") not in MULTIMODAL:
        return {name: name for name in stored}
    return {plain_name(name): name for name in stored if not is_other_part(name)}


def language_config(name: str, **hub: Any) -> tuple[PreTrainedConfig, dict[str, str] | None]:
    """Return the config of a model's language part, and transformers' `key_mapping` to it if the model has others.

    `name` is a folder or an id on the hub, `hub` what from_pretrained needs for one.
    """
    from transformers import AutoConfig

    with quiet_libraries():
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
        if config.model_type not in MULTIMODAL:
            return config, None
        raw, _ = type(config).get_config_dict(name, **hub)
        text: Any = config.text_config
        text.tie_word_embeddings = bool(language_settings(raw).get("tie_word_embeddings", False))
        text.dtype = config.dtype
        text.name_or_path = config.name_or_path
        return text, dict(_PLAIN_NAMES)
