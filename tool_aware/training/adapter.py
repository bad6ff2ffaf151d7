"""The LoRA adapter: where it sits, in which precision, and what the frozen base needs so that gradients reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tool_aware.base_model import quiet_libraries
from tool_aware.config import Config
from tool_aware.console import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


_LAYERS = ".layers."  # part of the name of everything in a decoder layer


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
