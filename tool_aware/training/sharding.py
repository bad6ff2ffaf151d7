"""The frozen base model sharded over the GPUs of a launch, for models that do not fit on one: FSDP with QLoRA.

Only frozen weights are sharded (torch's FSDP2, one transformer layer at a time). Those of a layer are gathered, still
quantised, before the layer runs in the forward and in the backward pass, and dropped after it. The adapter stays whole
on every process, so optimizer, checkpoints, resuming, export and losses are those of any other run.

Loading streams: a layer is read, quantised on the GPU and sharded before the next one is read, so that neither a GPU
nor the host ever holds the model. Embedding, output head and the scales of the quantisation stay whole on each GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.config.sections import ModelSection, QuantizationSection
from tool_aware.console import UserError, say
from tool_aware.model.base import compute_dtype, device, freeze
from tool_aware.model.language_part import language_config, plain_names
from tool_aware.model.libraries import quiet_libraries
from tool_aware.model.matching import model_without_weights
from tool_aware.model.model_folder import check_model_folder
from tool_aware.model.tensor_files import weight_files
from tool_aware.training.distributed import Processes
from tool_aware.training.export.weights import base_folder

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

_IS_4BIT = "is_loaded_in_4bit"  # an attribute of the model that peft reads


def load_sharded_base(
    model: ModelSection, quantization: QuantizationSection, processes: Processes, *, hf_token: str | None = None
) -> PreTrainedModel:
    """Load the base model with its transformer layers sharded over all processes, frozen, in eval mode.

    Raises UserError if its files do not name the weights as its modules do, as a few architectures' do not.
    """
    if quantization.load_in_8bit:
        fix = "--set quantization.load_in_4bit=true --set quantization.load_in_8bit=false"
        raise UserError("weights of 8 bits cannot be spread over GPUs", where="optimization.shard_base", fix=fix)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    folder = base_folder(model, hf_token)
    model_without_weights(folder, check_model_folder(folder, f"model.name: {model.name}"))
    dtype = compute_dtype(quantization.bnb_4bit_compute_dtype)
    base = _without_weights(folder, model, dtype)
    mesh = init_device_mesh(device().type, (processes.count,))
    transformer_name = base.base_model_prefix
    for prefix, tensors in _by_layer(folder, f"{transformer_name}.layers."):
        for name, tensor in tensors:
            _put(base, name, tensor.to(dtype), quantization if prefix else None)
        if prefix:
            _shard(base.get_submodule(prefix), mesh)
    base.tie_weights()
    missing = [name for name, parameter in base.named_parameters() if parameter.is_meta]
    if missing:
        what = f"{len(missing)} weights are not in its files under the names of its modules, for example {missing[0]}"
        raise UserError(what, where=str(folder), fix="--set optimization.shard_base=false")
    # One root for all layers, so that the next one's weights are fetched while this one computes.
    transformer = base.get_submodule(transformer_name)
    fully_shard(
        transformer, mesh=mesh, ignored_params={p for p in transformer.parameters() if not hasattr(p, "device_mesh")}
    )
    setattr(base, _IS_4BIT, quantization.load_in_4bit)
    freeze(base)
    say(f"frozen weights are spread over {processes.count} processes; transformers' forward pass runs, which is slower")
    return base


def _without_weights(folder: Path, model: ModelSection, dtype: torch.dtype) -> PreTrainedModel:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    attention = model.attn_implementation.replace("auto", "sdpa")
    with quiet_libraries(), init_empty_weights(include_buffers=False):
        config, _ = language_config(str(folder))
        base = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    for buffer in base.buffers():
        buffer.data = buffer.data.to(device())
    return base


def _by_layer(folder: Path, layers: str) -> Iterator[tuple[str, list[tuple[str, torch.Tensor]]]]:
    """Yield the weights of one transformer layer after the other with its name; first all others, with the name ""."""
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    stored_names = plain_names(folder, files)
    names: dict[str, list[str]] = defaultdict(list)
    for name in stored_names:
        number = name.removeprefix(layers).partition(".")[0]
        names[layers + number if name.startswith(layers) else ""].append(name)
    for prefix in sorted(names, key=lambda prefix: int(prefix.rpartition(".")[2] or -1)):
        yield prefix, list(_read({name: stored_names[name] for name in names[prefix]}, files))


def _read(stored_names: Mapping[str, str], files: dict[str, Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for name, stored in stored_names.items():
        with safe_open(files[stored], framework="pt", device=str(device())) as file:
            yield name, file.get_tensor(stored)


def _put(base: PreTrainedModel, name: str, tensor: torch.Tensor, quantization: QuantizationSection | None) -> None:
    """Put a weight into `base`; quantise that of a linear layer if `quantization` asks for 4 bits."""
    from torch import nn

    owner, _, attribute = name.rpartition(".")
    try:
        module = base.get_submodule(owner)
    except AttributeError:
        return  # missing weights are reported once all files are read
    is_quantised = quantization is not None and quantization.load_in_4bit and attribute == "weight"
    if quantization and is_quantised and isinstance(module, nn.Linear):
        parent, _, child = owner.rpartition(".")
        setattr(base.get_submodule(parent), child, _quantised(module, tensor, quantization))
    else:
        setattr(module, attribute, nn.Parameter(tensor, requires_grad=False))


def _shard(layer: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a layer's weights over `mesh`; the scales of quantised ones stay with their modules."""
    from bitsandbytes.nn.modules import Linear4bit
    from torch.distributed.fsdp import fully_shard

    quantised = {module: module.weight for module in layer.modules() if isinstance(module, Linear4bit)}
    fully_shard(layer, mesh=mesh)
    for module, whole in quantised.items():  # peft reads from the weight how it is quantised
        for name in ("compress_statistics", "quant_type"):
            setattr(module.weight, name, getattr(whole, name))


def _quantised(linear: nn.Linear, weight: torch.Tensor, quantization: QuantizationSection) -> nn.Module:
    import torch
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    is_double, quant_type = quantization.bnb_4bit_use_double_quant, quantization.bnb_4bit_quant_type
    storage = torch.bfloat16  # the bytes as they are; torch before 2.13 shards no integers
    with torch.device("meta"):
        module = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=weight.dtype,
            compress_statistics=is_double,
            quant_type=quant_type,
            quant_storage=storage,
        )
    packed: nn.Parameter = Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=is_double,
        quant_type=quant_type,
        quant_storage=storage,
        module=module,
    )
    module.weight = packed.to(device())  # quantises it
    if linear.bias is not None:
        module.bias = linear.bias
    return module
