"""The frozen base model: where it comes from, how it is quantised, on which device it is loaded.

Nothing is upcast: `peft.prepare_model_for_kbit_training` would turn every unquantised weight into float32, which costs
a 7B 0.5 GiB at rest and more in every activation. QLoRA needs the base frozen, no more.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.sections import ModelSection, QuantizationSection
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.gpu.device_facts import DeviceFacts
from tool_aware.model.families import Traits
from tool_aware.model.language_part import is_other_part, language_config
from tool_aware.model.libraries import library_errors, quiet_libraries
from tool_aware.model.matching import check_stored, refuse_unmatched
from tool_aware.model.model_folder import check_model_folder, model_settings
from tool_aware.model.tensor_files import named, weight_files
from tool_aware.paths import MODEL_CONFIG_NAME
from tool_aware.secret_values import redacted

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

COMPUTE_DTYPE_SETTING = "quantization.bnb_4bit_compute_dtype"
_REPACKS_ON_CPU = "support_avx512bf16_for_cpu"  # an attribute of bitsandbytes' Linear4bit
_EXAMPLE_MODEL = "mistralai/Mistral-7B-Instruct-v0.2"


def device() -> torch.device:
    """Return the device this process computes on: its own GPU under torchrun, the first GPU, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK", "0")
    return torch.device("cuda", int(local_rank) if local_rank.isdecimal() else 0)


def start_gpu() -> list[str]:
    """Create the CUDA context of `device()`, which takes memory of its own; return the UUIDs of all visible GPUs.

    Return an empty list on a CPU.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    torch.zeros(1, device=device())
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in range(torch.cuda.device_count())]


def compute_dtype(setting: str = "auto") -> torch.dtype:
    """Return the dtype that `quantization.bnb_4bit_compute_dtype` names.

    `auto` is bfloat16 if the GPU has it, else float16; float32 on a CPU.
    """
    return dtype_named(DeviceFacts.of(device()).dtype if setting == "auto" else setting)


def in_training_precision(config: Config) -> Config:
    """Return the settings with the precision to train in where `quantization.bnb_4bit_compute_dtype` is `auto`."""
    if config.quantization.bnb_4bit_compute_dtype != "auto":
        return config
    return config.with_settings({COMPUTE_DTYPE_SETTING: DeviceFacts.of(device()).training_dtype})


def dtype_named(name: str) -> torch.dtype:
    """Return the dtype of torch with this name, such as bfloat16."""
    import torch

    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch.{name} is no dtype")
    return dtype


def load_base_model(
    model: ModelSection, quantization: QuantizationSection, *, hf_token: str | None = None, attention: str | None = None
) -> PreTrainedModel:
    """Load the base model onto `device()`, quantised, frozen, in eval mode.

    `attention` overrides `model.attn_implementation`, of which `auto` means SDPA.

    Raises UserError if the model is not available: unknown id, gated, no network, folder without weights.
    """
    from transformers import AutoModelForCausalLM

    check_model_available(model.name, revision=model.revision, hf_token=hf_token)
    dtype = compute_dtype(quantization.bnb_4bit_compute_dtype)
    where, fix = f"model.name: {model.name}", "try again, or name a local folder that holds the model"
    hub = {"revision": model.revision, "token": hf_token}
    with quiet_libraries(), library_errors("cannot be loaded", where, fix, kinds=(OSError,)):
        config, key_mapping = language_config(model.name, **hub)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.name,
            **hub,
            config=config,
            **({"key_mapping": key_mapping} if key_mapping else {}),
            dtype=dtype,
            quantization_config=_quantization_config(quantization, dtype),
            device_map={"": device()},
            attn_implementation=attention or model.attn_implementation.replace("auto", "sdpa"),
            use_safetensors=True,
            trust_remote_code=False,  # else it is asked on the terminal, and a pipe may answer
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    base, found = loaded
    if key_mapping:
        found["unexpected_keys"] = {name for name in found["unexpected_keys"] if not is_other_part(name)}
    refuse_unmatched(found, where)
    refuse_not_finite(base, where)
    freeze(base)
    whole: PreTrainedModel = base
    return whole


def refuse_not_finite(base: PreTrainedModel, where: str) -> None:
    """Raise UserError if weights are NaN or infinite; of 4-bit ones, whose scales have a mean that tells, as well."""
    import torch

    broken = []
    for name, parameter in base.named_parameters():
        mean = getattr(getattr(parameter, "quant_state", None), "offset", None)
        values = parameter if parameter.is_floating_point() else mean
        if values is not None and not torch.isfinite(values).all():
            broken.append(name)
    if broken:
        what = f"{len(broken)} of its weights hold values that are not finite: {named(broken)}"
        raise UserError(what, where=where, fix="download the model again; these files are damaged")


def cache_arguments(model: PreTrainedModel, cache: object) -> dict[str, Any]:
    """Return `cache` under the name that the installed transformers gives it in `forward`: 5.24 renamed the old one."""
    base = getattr(model, "get_base_model", lambda: model)()  # peft's own forward takes any name
    return {_cache_name(type(base).forward): cache, "use_cache": True}


@functools.cache
def _cache_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def freeze(base: PreTrainedModel) -> None:
    """Freeze a loaded base model, in place, and set it to eval mode and greedy generation."""
    import torch

    base.requires_grad_(False)
    base.eval()
    if device().type == "cpu":
        _keep_cpu_weights_unpacked(base)
    # With the instruct model's sampling defaults, transformers warns at every greedy generation.
    base.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    torch.set_float32_matmul_precision("high")


def same_model(one: str, other: str) -> bool:
    """Return True if two model names mean the same model: equal ids, or paths of the same folder."""
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other))


def check_model_available(name: str, *, revision: str | None = None, hf_token: str | None = None) -> None:
    """Check that a model is in a local folder, in the cache or accessible on Hugging Face, and whole if it is here.

    Raises UserError with the page to visit, the variable to set, or the tensors that are missing.
    """
    where = f"model.name: {name}"
    if Path(name).is_dir():
        check_stored(Path(name), check_model_folder(Path(name), where))
    elif name.startswith("~"):
        raise UserError("no such folder: ~ is not expanded in settings", where=where, fix="write the whole path")
    elif Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError("no such folder", where=where, fix=f"give a Hugging Face id such as {_EXAMPLE_MODEL}")
    else:
        _check_hub_access(name, revision, hf_token, where)
        if folder := local_folder(name, revision):
            check_stored(folder, check_model_folder(folder, where))


def check_windows(model: ModelSection) -> None:
    """Raise UserError if the model, where it is on this machine, has layers that would see less than they should."""
    if folder := local_folder(model.name, model.revision):
        traits = Traits.of(model_settings(folder))
        traits.refuse_short_window(model.max_seq_length, str(folder / MODEL_CONFIG_NAME))


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder with all files of a model, its own or that of a finished download; None if there is none."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, MODEL_CONFIG_NAME, revision=revision)
    folder = Path(config).parent if isinstance(config, str) else None
    try:
        return folder if folder and weight_files(folder) else None
    except UserError:  # not all of it is downloaded, or it has no weights of this format
        return None


def _check_hub_access(name: str, revision: str | None, hf_token: str | None, where: str) -> None:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub import errors as hub

    try:
        if isinstance(try_to_load_from_cache(name, MODEL_CONFIG_NAME, revision=revision), str):
            return
        HfApi(token=hf_token).auth_check(name)
        hf_hub_download(name, MODEL_CONFIG_NAME, revision=revision, token=hf_token)
    except hub.GatedRepoError as error:
        raise _gated(error.response.status_code, name, hf_token, where) from None
    except hub.RevisionNotFoundError:
        raise UserError(f"has no revision {revision!r}", where=where, fix="correct model.revision") from None
    except hub.RemoteEntryNotFoundError:
        raise UserError(f"has no {MODEL_CONFIG_NAME}: no model of transformers", where=where) from None
    except hub.HFValidationError:
        raise _unknown_model(where) from None
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 404):  # the hub answers 401 for what does not exist or is private, unless asked with a token
            raise _unknown_model(where) from None
        no_right = "give HF_TOKEN the right to read this model, at https://huggingface.co/settings/tokens"
        fix = no_right if status == 403 else "try again later"
        raise UserError(f"Hugging Face answered {status}", where=where, fix=fix) from None
    except (hub.OfflineModeIsEnabled, OSError):
        raise _unreachable(where) from None
    except Exception as error:  # the hub's HTTP client has its own error types, which are not OSErrors
        kind = type(error).__name__
        if "connect" in kind.lower() or "timeout" in kind.lower():
            raise _unreachable(where) from None
        reason = redacted(str(error)).splitlines()[:1]
        fix = "check HF_ENDPOINT, HF_TOKEN and the proxy's variables, or name a local folder that holds the model"
        raise UserError(": ".join(["Hugging Face cannot be asked", kind, *reason]), where=where, fix=fix) from None


def _gated(status: int, name: str, hf_token: str | None, where: str) -> UserError:
    new_token = "make one with Read access at https://huggingface.co/settings/tokens"
    if status == 403:
        what = "your HF_TOKEN has not been granted access (403)"
        fix = f"accept its terms at https://huggingface.co/{name}"
    elif hf_token:
        what, fix = "your HF_TOKEN is not valid (401)", new_token
    else:
        what, fix = "HF_TOKEN is not set (401)", f"{new_token} and export it, or put it into .env"
    return UserError(f"the model is gated and {what}", where=where, fix=fix)


def _unknown_model(where: str) -> UserError:
    fix = f"check the spelling, for example {_EXAMPLE_MODEL}; a private model also needs HF_TOKEN"
    return UserError("no such folder here and no such model on Hugging Face", where=where, fix=fix)


def _unreachable(where: str) -> UserError:
    fix = "check the network (HF_ENDPOINT, HF_HUB_OFFLINE), or name a local folder that holds the model"
    return UserError("not in the local cache, and Hugging Face cannot be reached", where=where, fix=fix)


def _quantization_config(quantization: QuantizationSection, dtype: torch.dtype) -> Any:
    if quantization.kind == "none":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def quantized_values(weight: torch.Tensor, quantization: QuantizationSection) -> torch.Tensor:
    """Return `weight` (out, in) quantised with `quantization` and dequantised again, on `device()`.

    It has the compute dtype, and is bit-equal to the dequantised weight of a layer that was loaded so.
    """
    import bitsandbytes.functional as bnb
    import torch

    dtype = compute_dtype(quantization.bnb_4bit_compute_dtype)
    weight = weight.to(device()).to(dtype)
    if quantization.load_in_4bit:
        packed, state = bnb.quantize_4bit(
            weight,
            quant_type=quantization.bnb_4bit_quant_type,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
        )
        return bnb.dequantize_4bit(packed, state)
    if quantization.load_in_8bit:
        rows, scales, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
        return bnb.int8_vectorwise_dequant(rows, scales).to(dtype)
    return weight


def _keep_cpu_weights_unpacked(base: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for AVX512-BF16 in the first eval forward.

    Its backward pass does not understand the repacked layout: gradients after an evaluation are silently wrong
    (79 % relative error with bitsandbytes 0.50.2). tests/unit/model/test_base.py fails without this.
    """
    for module in base.modules():
        if hasattr(module, _REPACKS_ON_CPU):
            setattr(module, _REPACKS_ON_CPU, False)
