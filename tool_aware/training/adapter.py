"""The LoRA adapter: where it sits, in which precision, and what the frozen base needs so that gradients reach it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tool_aware.base_model import quiet_libraries
from tool_aware.config import Config
from tool_aware.console import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


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
    # A name that peft cannot resolve offline would be looked up on the hub whenever a checkpoint is saved.
    model.peft_config["default"].base_model_name_or_path = config.model.name
    model.peft_config["default"].revision = config.model.revision
    return model


COMPILATIONS = 256  # of one layer: one for each length of packs, in training and in validation


def prepare_for_training(model: PeftModel, config: Config) -> tuple[int, int]:
    """Bring the adapter into the compute precision and set up the layers; return (trained, total) parameters.

    The adapter computes in the base's own precision, so nothing is cast on the way; where that is 16 bits, the
    optimizer keeps float32 masters. Under float16 the gradient scaler wants float32 parameters, and they stay so.
    """
    import torch

    base = model.get_base_model()
    dtype = base.dtype if base.dtype in (torch.bfloat16, torch.float64) else torch.float32
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    base.config.use_cache = False
    if config.optimization.compile:
        _compile_layers(base, config)
    elif config.optimization.gradient_checkpointing:
        # transformers 5.2x renamed it; the first argument stayed the same.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable(_checkpoint_options(config))
    trained, total = model.get_nb_trainable_parameters()
    return trained, total


def _compile_layers(base: PreTrainedModel, config: Config) -> None:
    """Compile every decoder layer, its checkpoint included: the compiler then recomputes only what gradients need.

    A checkpoint around a compiled layer would recompute all of it, the down projection too, whose result is not used.
    """
    import torch
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    from tool_aware.training.attention import use_packed_flex

    if base.config._attn_implementation == "flex_attention":
        use_packed_flex(base)

    # Every pack length and every mode (training, validation) is a compilation of its own; beyond the limit layers would
    # silently run uncompiled, where FlexAttention holds all scores in memory.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    logging.getLogger("torch._higher_order_ops").setLevel(logging.ERROR)  # asks for what holds here: no in-place ops

    def recompute_all(*_: object, **__: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_RECOMPUTE  # by default the compiler keeps the outputs of bitsandbytes' products

    options = {
        **_checkpoint_options(config),
        "context_fn": partial(create_selective_checkpoint_contexts, recompute_all),
    }

    def checkpointed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(hidden_states: torch.Tensor, **inputs: Any) -> torch.Tensor:
            return checkpoint(lambda states: forward(states, **inputs), hidden_states, **options)

        return run

    for layer in base.model.layers:
        forward = checkpointed(layer.forward) if config.optimization.gradient_checkpointing else layer.forward
        layer.forward = torch.compile(forward, dynamic=False)


def _checkpoint_options(config: Config) -> dict[str, bool]:
    # Without dropout there is no random state to restore, and reading it would break a CUDA graph.
    return {"use_reentrant": False, "preserve_rng_state": config.lora.dropout > 0}
