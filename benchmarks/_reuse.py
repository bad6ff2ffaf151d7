"""Measure many configurations on one base model: restore it, and check that no memory stays allocated."""

from __future__ import annotations

import copy
import gc
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class Snapshot:
    """The attributes of all modules of a model. Restoring them removes adapters and hooks.

    Parameters stay the same objects; those that were moved to another device or into a larger matrix are moved back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved = [(module, _copied(vars(module))) for module in model.modules()]
        self._devices = [(parameter, parameter.device) for parameter in model.parameters()]

    def restore(self) -> None:
        """Restore all attributes and move parameters back."""
        for module, attributes in self._saved:
            vars(module).clear()
            vars(module).update(_copied(attributes))
        for parameter, device in self._devices:
            if parameter.device != device or not parameter.data.is_contiguous():
                parameter.data = parameter.data.to(device).contiguous()


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.copy(value) if isinstance(value, dict) else value for name, value in attributes.items()}


def free_memory() -> None:
    """Free what is no longer referenced, compiled code and workspaces included."""
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def allocated_bytes() -> int:
    """Return the bytes of all tensors: on the GPU if there is one, else those that Python knows of."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    storages = (thing.untyped_storage() for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
