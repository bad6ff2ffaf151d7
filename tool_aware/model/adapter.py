"""The LoRA adapter: where it sits, in which precision, and what the frozen base needs so that gradients reach it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.settings import Config
from tool_aware.console import UserError, say
from tool_aware.files import read_json
from tool_aware.model.base import adapter_base, quiet_libraries
from tool_aware.paths import ADAPTER_CONFIG_NAME

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_LAYERS = ".layers."  # part of the name of everything in a decoder layer
_ALL_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # of Mistral and Llama
_VARIANTS = (  # keys of adapter_config.json that change what an adapter computes, or give it other weights than A and B
    "use_dora", "use_rslora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern", "lora_bias",
    "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters",
)  # fmt: skip


def lora_variant(settings: Mapping[str, Any]) -> str | None:
    """Name what makes an adapter other than plain LoRA, scale * B @ A with one scale; `settings` as peft writes them.

    None if nothing does.
    """
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":  # a string in the file; peft's enum is one as well
        return f"peft_type {kind}"
    if settings.get("bias", "none") != "none":
        return f"bias {settings['bias']}"
    return next((name for name in _VARIANTS if settings.get(name)), None)


def with_lora_of(adapter: Path, config: Config) -> Config:
    """The settings with `lora` as an earlier adapter has it, which is what will be trained; says so where they differ.

    Raises UserError if `adapter` holds no adapter, or one that is not plain LoRA.
    """
    adapter_base(adapter)
    settings = read_json(adapter / ADAPTER_CONFIG_NAME)
    variant = lora_variant(settings)
    if variant:
        raise UserError(
            f"only plain LoRA adapters can be trained further and merged, and this one has {variant}",
            where=str(adapter),
            fix="name another --adapter, or begin a new one without it",
        )
    targets = settings.get("target_modules") or config.lora.target_modules
    if not isinstance(targets, str):
        names = {name.rpartition(".")[2] for name in targets}
        targets = "all-linear" if names == _ALL_LINEAR else sorted(names)
    own = {
        "r": settings.get("r", 8),  # peft's defaults
        "alpha": float(settings.get("lora_alpha", 8)),
        "dropout": float(settings.get("lora_dropout", 0)),
        "target_modules": targets,
    }
    wanted = config.lora.model_dump()
    if isinstance(wanted["target_modules"], list):
        wanted["target_modules"] = sorted(wanted["target_modules"])
    changed = [f"{name}={own[name]}, not {wanted[name]}" for name in own if own[name] != wanted[name]]
    if changed:
        say(f"{adapter} keeps its own LoRA settings, whatever config.yaml says: {'; '.join(changed)}")
    return config.model_copy(update={"lora": config.lora.model_copy(update=own)})


def new_adapter(base: PreTrainedModel, config: Config) -> PeftModel:
    """Put a fresh adapter on `base`, in place. Its update is zero until it is trained (B starts at 0)."""
    import torch
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        bias="none",
    )
    torch.manual_seed(config.training.seed)
    try:
        with quiet_libraries():
            model = get_peft_model(base, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise UserError(
            f"no such layers in {config.model.name}",
            where=f"lora.target_modules: {config.lora.target_modules}",
            fix="all-linear, or names such as q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ) from error
    outside = [name for name, parameter in model.named_parameters() if parameter.requires_grad and _LAYERS not in name]
    if outside:
        raise UserError(
            f"cannot be adapted: {outside[0].split('.lora_')[0].removeprefix('base_model.model.')}",
            where=f"lora.target_modules: {config.lora.target_modules}",
            fix="name linear layers of the decoder only, or all-linear",
        )
    # A name that peft cannot resolve offline would be looked up on the hub whenever a checkpoint is saved.
    model.peft_config["default"].base_model_name_or_path = config.model.name
    model.peft_config["default"].revision = config.model.revision
    return model


def prepare_for_training(model: PeftModel, config: Config) -> tuple[int, int]:
    """Bring the adapter into the compute precision and set up the layers; return (trained, total) parameters.

    The adapter computes in the base's own precision, so nothing is cast on the way; where that is 16 bits, the
    optimizer keeps float32 masters. Under float16 the gradient scaler wants float32 parameters, and they stay so.
    """
    import torch

    config = config.settled()
    base = model.get_base_model()
    dtype = base.dtype if base.dtype in (torch.bfloat16, torch.float64) else torch.float32
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    base.config.use_cache = False
    if config.optimization.gradient_checkpointing:  # for transformers' forward pass; decoder.py has its own
        # transformers 5.2x renamed it; the first argument stayed the same.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        dropout = model.peft_config["default"].lora_dropout  # an earlier adapter's own may differ from config.yaml's
        enable({"use_reentrant": False, "preserve_rng_state": dropout > 0})
    trained, total = model.get_nb_trainable_parameters()
    return trained, total
