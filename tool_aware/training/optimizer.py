"""The optimizers of config.yaml, and a fused AdamW that keeps float32 masters for 16-bit adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from tool_aware.config import Config


class MasterWeightAdamW(torch.optim.AdamW):
    """AdamW over float32 copies of 16-bit parameters: one fused launch, 16 bytes per parameter in all.

    bfloat16 keeps 8 bits of mantissa, so an update below 1/256 of a weight would be lost without the copy.
    Gradients are read from the 16-bit parameters, and the updated masters are written back to them.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], **options: Any) -> None:
        self._working = [parameter for parameter in parameters if parameter.requires_grad]
        super().__init__([parameter.detach().float().clone() for parameter in self._working], **options)

    @property
    def _masters(self) -> list[torch.Tensor]:
        return self.param_groups[0]["params"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update the masters from the working parameters' gradients, then round them back."""
        for master, working in zip(self._masters, self._working, strict=True):
            master.grad = None if working.grad is None else working.grad.float()
        super().step(closure)
        torch._foreach_copy_(self._working, self._masters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both copies."""
        super().zero_grad(set_to_none)
        for working in self._working:
            working.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Add the masters to the usual state: rounding them would make a resumed run another run."""
        return {**super().state_dict(), "masters": list(self._masters)}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore moments and masters, and round the masters into the working parameters."""
        masters = state_dict["masters"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "masters"})
        torch._foreach_copy_(self._masters, [master.to(self._masters[0].device) for master in masters])
        torch._foreach_copy_(self._working, self._masters)


def build_optimizer(parameters: list[torch.nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """Make the optimizer that `optimization.optim` names."""
    options = {"lr": config.training.learning_rate, "weight_decay": config.training.weight_decay}
    name = config.optimization.optim
    if name in ("adamw_torch", "adamw_torch_fused"):
        kind = torch.optim.AdamW if parameters[0].dtype == torch.float32 else MasterWeightAdamW
        return kind(parameters, fused=name.endswith("fused"), **options)
    import bitsandbytes

    kinds = {
        "adamw_bnb_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
        "paged_adamw_32bit": bitsandbytes.optim.PagedAdamW32bit,
    }
    return kinds[name](parameters, **options)
