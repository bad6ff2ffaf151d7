"""The families of models that can be trained, by `model_type` in config.json: one table, no library.

A family is in it if a test holds that examples of a pack do not see each other in its forward pass, that its output
head is linear, and that its answers from shared keys and values are its own. Of any other family that is not known, and
what goes wrong then goes wrong silently; so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tool_aware.console import UserError


@dataclass(frozen=True)
class Family:
    """Facts about a family that its config.json does not say, or leaves to transformers' defaults."""

    has_own_decoder: bool = False  # engine/decoder.py covers it; else transformers' forward pass runs
    has_qkv_bias: bool = False
    has_head_norms: bool = False  # RMS norms over each head of query and key
    key_value_heads: int | None = None  # default; None: as many as there are heads
    head_size: int | None = None  # default; None: hidden size / heads
    ties_embeddings: bool = False  # default
    window: int | None = None  # default of sliding_window
    has_mixed_windows: bool = False  # by default, some layers have the window and others see all


FAMILIES: Mapping[str, Family] = {
    "mistral": Family(has_own_decoder=True, key_value_heads=8, window=4096),
    "llama": Family(has_own_decoder=True),
    "qwen2": Family(has_own_decoder=True, has_qkv_bias=True, key_value_heads=32),
    "qwen3": Family(has_own_decoder=True, has_head_norms=True, key_value_heads=32, head_size=128),
    "ministral3": Family(has_own_decoder=True, key_value_heads=8, head_size=128),
    "ministral": Family(key_value_heads=8, window=4096),
    "gemma": Family(key_value_heads=16, head_size=256, ties_embeddings=True),
    "gemma3_text": Family(
        has_head_norms=True, key_value_heads=4, head_size=256, ties_embeddings=True, window=4096, has_mixed_windows=True
    ),
    "granite": Family(),
    "olmo2": Family(has_head_norms=True),
    "olmo3": Family(has_head_norms=True, window=4096, has_mixed_windows=True),
    "phi3": Family(),
    "smollm3": Family(key_value_heads=4, ties_embeddings=True),
}
# Models of several parts whose language part is one of FAMILIES (model/language_part.py), and the family if not said.
MULTIMODAL: Mapping[str, str] = {"mistral3": "mistral"}

_SCALED_FROM = 16384  # transformers' default for Ministral 3
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_COVERED = f"name a model of one of these families: {', '.join((*FAMILIES, *MULTIMODAL))}"


def language_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the part that writes text: those of config.json, or its text_config."""
    family = MULTIMODAL.get(str(settings.get("model_type")))
    text = settings.get("text_config")
    if family is None or not isinstance(text, dict):
        return settings
    outer = {key: settings[key] for key in ("tie_word_embeddings",) if key in settings}
    return {"model_type": family, **outer, **text}


def family_of(settings: Mapping[str, Any]) -> Family | None:
    """Return the family of the settings' language part; None if it is unknown."""
    return FAMILIES.get(str(language_settings(settings).get("model_type")))


def refuse_unknown_family(settings: Mapping[str, Any], where: str) -> None:
    """Raise UserError, with the reason, if the settings are those of a model that cannot be trained here."""
    kind = str(settings.get("model_type"))[:60]
    if kind in MULTIMODAL and not isinstance(settings.get("text_config"), dict):
        raise UserError(f"is of type {kind!r} and has no text_config", where=where, fix="download the model again")
    text = language_settings(settings)
    if family_of(settings) is None:
        raise UserError(f"is a model of type {kind!r}: {_why_not(settings, text)}", where=where, fix=_COVERED)


def _why_not(settings: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    inner = text.get("text_config") if isinstance(text.get("text_config"), dict) else text
    assert isinstance(inner, Mapping)
    if any(inner.get(key) for key in _EXPERTS):
        return "neither 4-bit weights nor LoRA reach its experts, which are no linear layers"
    if inner.get("final_logit_softcapping"):
        return "its softcapped logits are not computed here"
    if text is not settings:
        return f"its language part, of type {str(text.get('model_type'))[:60]!r}, is not covered"
    if "auto_map" in settings:
        return "it comes with code of its own, which is never run"
    if "text_config" in settings:
        return "its language part cannot be taken out of it"
    return "nothing holds that examples stay apart when several are computed at once"


@dataclass(frozen=True)
class Traits:
    """The family of a model, and what of its settings decides how its attention and MLP are computed."""

    family: str = "mistral"
    activation: str = "silu"
    window: int | None = None  # tokens that a layer sees, itself included; None: all
    has_mixed_windows: bool = False
    scaled_from: int | None = None  # position from which on queries are scaled (Ministral 3)
    has_attention_dropout: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Traits:
        """Read them out of config.json, or of what transformers made of it."""
        text = language_settings(settings)
        kind = str(text.get("model_type"))
        family = FAMILIES.get(kind, Family())
        window = text.get("sliding_window", family.window)
        if not text.get("use_sliding_window", True):
            window = None
        kinds = text.get("layer_types")
        is_mixed = len(set(map(str, kinds))) > 1 if isinstance(kinds, list) else family.has_mixed_windows
        is_mixed |= bool(text.get("use_sliding_window"))  # of Qwen and SmolLM3: some layers
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        scaled_from = rope.get("original_max_position_embeddings", _SCALED_FROM) if kind == "ministral3" else None
        return cls(
            family=kind,
            activation=str(text.get("hidden_act") or "silu"),
            window=window if isinstance(window, int) else None,
            has_mixed_windows=is_mixed,
            scaled_from=scaled_from if isinstance(scaled_from, int) else None,
            has_attention_dropout=bool(text.get("attention_dropout")),
        )

    def uncovered(self, longest: int) -> str | None:
        """Return why engine/decoder.py cannot run such a model on `longest` tokens; None if it can."""
        if self.family not in FAMILIES or not FAMILIES[self.family].has_own_decoder:
            return f"models of type {self.family}"
        if self.activation != "silu":
            return f"{self.activation} as activation"
        if self.has_attention_dropout:
            return "dropout of attention"
        if self.window is not None and self.window < longest:
            return f"a sliding window of {self.window} tokens with model.max_seq_length: {longest}"
        if self.scaled_from is not None and self.scaled_from < longest:
            return f"queries that are scaled from position {self.scaled_from} on, with model.max_seq_length: {longest}"
        return None

    def refuse_short_window(self, longest: int, where: str) -> None:
        """Raise UserError if some layers see fewer than `longest` tokens and others all: one mask cannot serve both."""
        if self.window is None or self.window >= longest or not self.has_mixed_windows:
            return
        what = f"some of its layers see {self.window} tokens and others all, and model.max_seq_length is {longest}"
        fix = f"--set model.max_seq_length={self.window}, or name a model without such layers"
        raise UserError(what, where=where, fix=fix)
