"""The optimizers of config.yaml; the default is an AdamW whose step is a handful of kernels.

A LoRA adapter is hundreds of small matrices. Kept apart, each costs its own launches for clearing, norm, cast and
update; as views of one buffer they cost one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tool_aware.config.settings import Config


class FlatAdamW(torch.optim.AdamW):
    """AdamW over all parameters as one vector, with a float32 master where they are 16-bit.

    bfloat16 keeps 8 bits of mantissa, so an update below 1/256 of a weight would be lost without the master. Memory per
    parameter: 4 bytes (weight, gradient) + 12 (master, two moments) for bfloat16, 16 for float32.
    `parameters` become views of one buffer, their gradients of another.
    """

    found_inf: torch.Tensor  # where torch's fused update, and no other, looks for what a gradient scaler has found

    def __init__(self, parameters: Sequence[nn.Parameter], **options: Any) -> None:
        self._parameters = list(parameters)
        sizes = [parameter.numel() for parameter in self._parameters]
        self._working = torch.cat([parameter.detach().flatten() for parameter in self._parameters])
        self.gradient = torch.zeros_like(self._working)
        pieces = zip(self._parameters, self._working.split(sizes), self.gradient.split(sizes), strict=True)
        self._gradient_views = []
        for parameter, data, gradient in pieces:
            parameter.data, parameter.grad = data.view_as(parameter), gradient.view_as(parameter)
            self._gradient_views.append(parameter.grad)
        self._has_master = self._working.dtype != torch.float32
        super().__init__([self._working.float() if self._has_master else self._working], **options)

    @property
    def _master(self) -> torch.Tensor:
        return self.param_groups[0]["params"][0]

    def collect_gradients(self) -> torch.Tensor:
        """Return all gradients as one vector (N,), fetching those that someone has put elsewhere."""
        for parameter, view in self._moved():
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad)
            parameter.grad = view
        if not self._has_master:
            self._master.grad = self.gradient  # where a gradient scaler (float16) looks for it
        return self.gradient

    @property
    def is_fused(self) -> bool:
        """Return whether `step` can be told on the GPU to change nothing."""
        return bool(self.defaults["fused"])

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's may call a closure for the loss
        self, closure: None = None, *, is_skipped: torch.Tensor | None = None
    ) -> None:
        """Update the master from the parameters' gradients and round it back.

        Where `is_skipped`, a scalar on the device, is true, nothing changes; for a fused update only.
        """
        self._master.grad = self.collect_gradients().to(self._master.dtype)
        if is_skipped is None:
            super().step()
        else:
            self.found_inf = is_skipped.float()
            super().step()
            del self.found_inf
        self._master.grad = None
        if self._has_master:
            self._working.copy_(self._master)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradients in place; `set_to_none`, which callers usually pass, is ignored."""
        self.gradient.zero_()
        for parameter, view in self._moved():
            parameter.grad = view

    def _moved(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Return the parameters whose gradient is not, or no longer, the view of `gradient` given with each.

        Usually there are none, and of hundreds each costs an identity check: a fast GPU waits for Python.
        """
        pairs = zip(self._parameters, self._gradient_views, strict=True)
        return [(parameter, view) for parameter, view in pairs if parameter.grad is not view]

    def state_dict(self) -> dict[str, Any]:
        """Add the master to the usual state: rounding it would make a resumed run another run."""
        return {**super().state_dict(), "master": self._master}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore moments and master, and round the master into the parameters."""
        master = state_dict["master"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "master"})
        self._master.copy_(master)
        self._working.copy_(self._master)


def gradients_in(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """Return the gradients of `parameters`: one vector (N,) under FlatAdamW, else one tensor each.

    Missing ones become zeros, as a process may have had no rows.
    """
    if isinstance(optimizer, FlatAdamW):
        return [optimizer.collect_gradients()]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_gradients_(gradients: Sequence[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale `gradients` down to a joint L2 norm of `max_norm`, in place; return the norm they had, a float32 scalar."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.dtype))
    return norm


def build_optimizer(parameters: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """Make the optimizer that `optimization.optim` names."""
    options = {"lr": config.training.learning_rate, "weight_decay": config.training.weight_decay}
    name = config.optimization.optim
    if name in ("adamw_torch", "adamw_torch_fused"):
        # Left to itself torch would make the unfused update in other ways, and memory, on the CPU than on a GPU.
        is_fused = name.endswith("fused")
        return FlatAdamW(parameters, fused=is_fused, foreach=not is_fused, **options)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit

    kinds = {
        "adamw_bnb_8bit": AdamW8bit,
        "paged_adamw_8bit": PagedAdamW8bit,
        "paged_adamw_32bit": PagedAdamW32bit,
    }
    optimizer: torch.optim.Optimizer = kinds[name](parameters, **options)
    return optimizer
