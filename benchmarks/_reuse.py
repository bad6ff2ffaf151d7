"""Measure many configurations on one base model: put it back as it was, and see that nothing stays behind."""

from __future__ import annotations

import copy
import gc
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class Snapshot:
    """The attributes of all modules of a model, to be put back: adapters and hooks are gone then.

    Parameters stay the objects they are; those that were moved to another device or into a larger matrix come back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved = [(module, _copied(vars(module))) for module in model.modules()]
        self._devices = [(parameter, parameter.device) for parameter in model.parameters()]

    def restore(self) -> None:
        """Put everything back as it was."""
        for module, attributes in self._saved:
            vars(module).clear()
            vars(module).update(_copied(attributes))
        for parameter, device in self._devices:
            if parameter.device != device or not parameter.data.is_contiguous():
                parameter.data = parameter.data.to(device).contiguous()


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.copy(value) if isinstance(value, dict) else value for name, value in attributes.items()}


def free_memory() -> None:
    """Give back what is not referenced any more, compiled code and workspaces included."""
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def allocated_bytes() -> int:
    """Bytes of all tensors there are: on the GPU if there is one, else those that Python knows of."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    storages = (thing.untyped_storage() for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
