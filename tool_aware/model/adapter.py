"""The LoRA adapter: new, or read from a folder; its checks, its precision, and the base model below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.sections import ModelSection
from tool_aware.config.settings import Config
from tool_aware.console import UserError, say
from tool_aware.model.adapter_record import check_adapter_record
from tool_aware.model.base import local_folder, same_model
from tool_aware.model.libraries import library_errors, quiet_libraries
from tool_aware.model.matching import check_adapter_fits, model_without_weights, refuse_other_tensors, shapes_in
from tool_aware.model.model_folder import check_model_folder
from tool_aware.model.tensor_files import named
from tool_aware.paths import ADAPTER_CONFIG_NAME, ADAPTER_PICKLE_NAME, ADAPTER_WEIGHTS_NAME, MODEL_CONFIG_NAME
from tool_aware.text_files import read_json_text

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

# The linear layers of a decoder layer of Mistral and what is built like it.
ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
ALL_LINEARS = (*ATTENTION_LINEARS, *MLP_LINEARS)
_FUSED_LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")  # of Phi-3, the same layers in fewer matrices

_TRAIN = "python train_tool_aware.py"
_LAYERS = ".layers."  # part of the name of everything in a decoder layer
# Keys of adapter_config.json that change what an adapter computes, or give it other weights than A and B.
_VARIANTS = (
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern", "lora_bias"),
    *("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"),
)


def base_of(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """Return the base model under an adapter, or the model itself; peft's own type for it is any torch module."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return base


def lora_config(model: PeftModel | PreTrainedModel) -> LoraConfig:
    """Return the settings of the model's adapter; peft's own type for them leaves out what only LoRA has."""
    settings: Any = model.peft_config["default"]
    return settings


def lora_variant(settings: Mapping[str, Any]) -> str | None:
    """Return what makes an adapter other than plain LoRA, scale * B @ A with one scale; None if it is plain LoRA.

    `settings` are those of adapter_config.json.
    """
    peft_type = settings.get("peft_type", "LORA")
    if peft_type != "LORA":  # a string in the file; peft's enum compares like one
        return f"peft_type {peft_type}"
    if settings.get("bias", "none") != "none":
        return f"bias {settings['bias']}"
    return next((name for name in _VARIANTS if settings.get(name)), None)


def with_lora_of(adapter: Path, config: Config) -> Config:
    """Return `config` with the `lora` section of an earlier adapter, which is trained further; print differences.

    Raises UserError if the folder `adapter` holds no adapter for the base model, or one that is not plain LoRA.
    """
    check_saved_adapter(adapter, config.model)
    settings = adapter_settings(adapter)
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
        targets = "all-linear" if names in (set(ALL_LINEARS), set(_FUSED_LINEARS)) else sorted(names)
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
    """Put a new adapter on `base`, in place. Its update is zero until it is trained: B starts at 0.

    Raises UserError if `lora.target_modules` names no linear layer, or one outside the transformer layers.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
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
            fix=f"all-linear, or names such as {', '.join(ALL_LINEARS)}",
        ) from error
    outside = [name for name, parameter in model.named_parameters() if parameter.requires_grad and _LAYERS not in name]
    if outside:
        raise UserError(
            f"cannot be adapted: {outside[0].split('.lora_')[0].removeprefix('base_model.model.')}",
            where=f"lora.target_modules: {config.lora.target_modules}",
            fix="name linear layers of the decoder only, or all-linear",
        )
    # A name that peft cannot resolve offline would be looked up on the hub whenever a checkpoint is saved.
    lora_config(model).base_model_name_or_path = config.model.name
    lora_config(model).revision = config.model.revision
    return model


def check_targets(config: Config) -> None:
    """Check, without loading the base model, that it has the layers that `lora.target_modules` names, if it is here.

    Raises UserError as `new_adapter` does.
    """
    folder = local_folder(config.model.name, config.model.revision)
    if folder and config.lora.target_modules != "all-linear":
        new_adapter(
            model_without_weights(folder, check_model_folder(folder, f"model.name: {config.model.name}")), config
        )


def attach_adapter(base: PreTrainedModel, adapter: Path, *, base_name: str, is_trainable: bool = False) -> PeftModel:
    """Put the LoRA adapter saved in `adapter` on `base`, in place.

    Raises UserError if there is none, if it was trained on another base model than `base_name`, if it is not what its
    training wrote, or if its tensors are not those that its settings ask for.
    """
    from peft import PeftModel

    _refuse_another_base(adapter, base_name)
    shapes, where = shapes_in(adapter), str(adapter)
    check_adapter_record(adapter)
    refuse_adapter_not_finite(adapter)
    fix = "take the adapter's folder as its training wrote it"
    with quiet_libraries(), library_errors("cannot be loaded", where, fix, kinds=(KeyError, TypeError, ValueError)):
        try:
            model = PeftModel.from_pretrained(
                base,
                str(adapter),
                is_trainable=is_trainable,
                # Else peft first draws the values that are to be replaced, for two seconds of a 7B; a training's random
                # numbers go on from there.
                low_cpu_mem_usage=not is_trainable,
            )
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise UserError(
                f"its matrices do not fit {base_name}: the base model has changed since this adapter was trained",
                where=where,
                fix="python train_tool_aware.py --overwrite",
            ) from error
    refuse_other_tensors(model, shapes, where=where, base_name=base_name)
    return model


def _refuse_another_base(adapter: Path, base_name: str) -> None:
    trained_on = base_name_of(adapter)
    if not same_model(trained_on, base_name):
        raise UserError(
            f"was trained on {trained_on}, but model.name is {base_name}",
            where=str(adapter),
            fix=f"--set model.name={trained_on}, or train an adapter for {base_name}",
        )


def refuse_adapter_not_finite(adapter: Path) -> None:
    """Raise UserError, naming the tensors, if an adapter's weights are NaN or infinite."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = adapter / ADAPTER_WEIGHTS_NAME
    try:
        tensors = load_file(path)
    except SafetensorError as error:  # numbers of another type than their sizes allow
        raise UserError(f"is damaged: {error}", where=str(path), fix="copy it again") from None
    broken = sorted(name for name, values in tensors.items() if not torch.isfinite(values).all())
    if broken:
        what = f"{len(broken)} of its tensors hold values that are not finite: {named(broken)}"
        raise UserError(what, where=str(adapter), fix="take the adapter of an earlier checkpoint")


def check_saved_adapter(adapter: Path, model: ModelSection, *, is_moved: bool = False) -> None:
    """Check that a folder holds a whole adapter that fits the base model, without loading either.

    `is_moved`: the base model has another name now than in the training. Tensors are compared only if the base model is
    on this machine; else `attach_adapter` does it. Raises UserError.
    """
    if not is_moved:
        _refuse_another_base(adapter, model.name)
    shapes_in(adapter)
    check_adapter_record(adapter)
    refuse_adapter_not_finite(adapter)
    if folder := local_folder(model.name, model.revision):
        base = model_without_weights(folder, check_model_folder(folder, f"model.name: {model.name}"))
        check_adapter_fits(adapter, base, model.name)


def base_name_of(adapter: Path) -> str:
    """Return the name of the base model that an adapter was trained on.

    Raises UserError if the folder `adapter` holds none.
    """
    return str(adapter_settings(adapter)["base_model_name_or_path"])


def adapter_settings(adapter: Path) -> dict[str, Any]:
    """Return the settings of an adapter's folder.

    Raises UserError if it holds no adapter, one in a pickle, or settings that are none.
    """
    path = adapter / ADAPTER_CONFIG_NAME
    if not path.is_file():
        if (adapter / MODEL_CONFIG_NAME).is_file():
            fix = f"evaluate.py --model {adapter}; training starts from an adapter only"
            raise UserError("holds a model, not an adapter", where=str(adapter), fix=fix)
        raise UserError("no adapter found", where=str(adapter), fix=_TRAIN)
    if not (adapter / ADAPTER_WEIGHTS_NAME).is_file():
        if (adapter / ADAPTER_PICKLE_NAME).is_file():
            what = f"has a pickled adapter only ({ADAPTER_PICKLE_NAME}), and unpickling can run any program"
            fix = "if you trust it, load it with peft and save it again: model.save_pretrained(DIR)"
            raise UserError(what, where=str(adapter), fix=fix)
        raise UserError(f"no adapter found: it has no {ADAPTER_WEIGHTS_NAME}", where=str(adapter), fix=_TRAIN)
    settings = read_json_text(path)
    problem = _settings_problem(settings)
    if problem:
        raise UserError(problem, where=str(path), fix="take the adapter's folder as its training wrote it")
    return dict(settings)


def _settings_problem(settings: Any) -> str | None:
    """Return what is wrong with the content of adapter_config.json; None if nothing is."""
    if not isinstance(settings, dict):
        return f"holds a {type(settings).__name__}, not the settings of an adapter"
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return f"base_model_name_or_path is {name!r}: which base model was it trained on?"
    if settings.get("peft_type", "LORA") != "LORA":
        return None  # other kinds have other settings
    rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        return f"r is {rank!r}, not a rank of 1 or more"
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        return f"lora_alpha is {alpha!r}, not a number above 0"
    dropout = settings.get("lora_dropout", 0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        return f"lora_dropout is {dropout!r}, not a number from 0 to 1"
    targets = settings.get("target_modules")
    is_list = isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets)
    if targets is not None and not is_list and not (isinstance(targets, str) and targets):  # None: peft's own choice
        return f"target_modules is {targets!r:.60}, neither names of layers nor all-linear"
    return None


def prepare_for_training(model: PeftModel, config: Config) -> tuple[int, int]:
    """Convert the adapter to the base's precision and set up checkpointing; return (trained, total) parameters.

    In the same precision nothing is cast on the way; if it is bfloat16, the optimizer keeps float32 masters. With a
    float16 base the adapter is float32, as the gradient scaler needs it.
    """
    import torch

    config = config.settled()
    base = base_of(model)
    dtype = base.dtype if base.dtype in (torch.bfloat16, torch.float64) else torch.float32
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    base.config.use_cache = False
    if config.optimization.gradient_checkpointing:  # of transformers' forward pass; engine/decoder.py has its own
        # transformers 5.2x renamed it; the first argument stayed the same.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        dropout = lora_config(model).lora_dropout  # an earlier adapter's own may differ from config.yaml's
        enable({"use_reentrant": False, "preserve_rng_state": dropout > 0})
    trained, total = model.get_nb_trainable_parameters()
    return trained, total
