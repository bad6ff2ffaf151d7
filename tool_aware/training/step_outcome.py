"""The outcome of a step of the training loop, which a GPU may still be computing."""

from __future__ import annotations

import torch


class StepOutcome:
    """Optimizer step number `step`, as it was launched: its learning rate and, after `wait`, what was computed.

    Attributes: `norm` of the gradient before it was clipped, `loss` since the last log line.
    """

    norm: float
    loss: float

    def __init__(self, step: int, learning_rate: float, norm: torch.Tensor, loss: torch.Tensor) -> None:
        self.step, self.learning_rate = step, learning_rate
        self._values = torch.stack([norm, loss]).to("cpu", non_blocking=True)  # into pinned memory
        self._is_done = None
        if norm.is_cuda:
            self._is_done = torch.cuda.Event(blocking=True)  # leaves the core to others
            self._is_done.record()

    def wait(self) -> None:
        """Wait until the GPU is done with the step, not with what was launched after it."""
        if self._is_done:
            self._is_done.synchronize()
        self.norm, self.loss = self._values.tolist()
