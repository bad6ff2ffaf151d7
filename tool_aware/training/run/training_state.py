"""The part of a checkpoint that is not the adapter: optimizer, gradient scaler, random numbers and step.

Tensors are kept as safetensors and everything else as JSON, so that resuming unpickles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.files import read_json, write_json
from tool_aware.model.adapter import refuse_adapter_not_finite
from tool_aware.model.matching import refuse_other_tensors, shapes_in
from tool_aware.paths import ADAPTER_WEIGHTS_NAME, OPTIMIZER_NAME, TRAINING_STATE_NAME, random_state_name

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

_TENSOR, _DICT, _LIST = "tensor", "dict", "list"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the random number generators that training draws from: torch's, of CPU and GPU."""
    import torch

    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def save_state(
    folder: Path,
    step: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    random_states: Sequence[dict[str, torch.Tensor]],
) -> None:
    """Write the state after `step` into a checkpoint's folder; `random_states` are those of all processes."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    structure = _without_tensors(optimizer.state_dict(), tensors)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / OPTIMIZER_NAME)
    for rank, state in enumerate(random_states):
        save_file(state, folder / random_state_name(rank))
    write_json(folder / TRAINING_STATE_NAME, {"step": step, "optimizer": structure, "scaler": scaler.state_dict()})


def load_state(
    folder: Path,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    rank: int,
    device: torch.device,
) -> int:
    """Put a checkpoint's adapter and state into model, optimizer, scaler and generators; return its step.

    The adapter's values are copied into the parameters that are there: the decoder and the optimizer hold those.
    """
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    refuse_other_tensors(model, shapes_in(folder), where=str(folder))
    refuse_adapter_not_finite(folder)
    set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS_NAME))
    stored = read_json(folder / TRAINING_STATE_NAME)
    optimizer.load_state_dict(_with_tensors(stored["optimizer"], load_file(folder / OPTIMIZER_NAME)))
    if scaler.is_enabled() and stored["scaler"]:
        scaler.load_state_dict(stored["scaler"])
    generators = load_file(folder / random_state_name(rank))
    torch.set_rng_state(generators["cpu"])
    if device.type == "cuda" and "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"], device)
    return int(stored["step"])


def _without_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON with its tensors moved into `tensors`; a dict becomes pairs, as JSON keys are text."""
    import torch

    if isinstance(value, torch.Tensor):
        # 8-bit optimizers share one tensor between all parameters; safetensors wants each once.
        name = next((name for name, tensor in tensors.items() if tensor is value), str(len(tensors)))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_DICT: [[key, _without_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {_LIST: [_without_tensors(item, tensors) for item in value]}
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Invert `_without_tensors`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _DICT:
        return {key: _with_tensors(item, tensors) for key, item in content}
    return [_with_tensors(item, tensors) for item in content]
