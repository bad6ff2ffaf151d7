"""Forward and backward of a pack as one CUDA graph.

A step of a 7B launches some ten thousand kernels, and at the sizes of this task the GPU waits for Python to launch
them. A captured graph is launched as a whole. It is tied to its shapes, so packs are padded to few of them; all graphs
share one memory pool, as they never run at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tool_aware.training.packing import Pack

LABELS_MULTIPLE = 512  # labels are padded to this; a padded one has weight 0 and costs a row of the output head
_WARM_UP_RUNS = 2  # lazy initialisation and compilation must be over before a capture


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    pack: Pack  # the buffers the graph reads
    weights: torch.Tensor


class GraphedStep:
    """Computes the loss of packs and adds its gradient to `parameters`, replaying one captured graph per shape.

    `weighted_loss(pack, weights)` returns the sum of the labels' losses times `weights` (L,) as a scalar. The
    parameters' gradients must exist and stay where they are (optimizer.FlatAdamW sees to that): the graphs add to them.
    """

    def __init__(
        self, weighted_loss: Callable[[Pack, torch.Tensor], torch.Tensor], parameters: Sequence[nn.Parameter]
    ) -> None:
        self._weighted_loss = weighted_loss
        self._parameters = list(parameters)
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._loss = torch.zeros((), device="cuda")

    def __call__(self, pack: Pack, labels_in_step: torch.Tensor) -> torch.Tensor:
        """Add the gradient of `pack`'s share of the step's mean loss; returns that share, a scalar."""
        pack, weights = _padded(pack, labels_in_step)
        shape = (pack.input_ids.shape[1], len(pack.labels))
        if shape not in self._captured:
            self._captured[shape] = self._capture(pack, weights)
        captured = self._captured[shape]
        for name, buffer in vars(captured.pack).items():
            if name != "order":
                buffer.copy_(getattr(pack, name))
        captured.weights.copy_(weights)
        captured.graph.replay()
        return self._loss.clone()

    def _capture(self, pack: Pack, weights: torch.Tensor) -> _Captured:
        gradients = [parameter.grad for parameter in self._parameters]
        before = [gradient.clone() for gradient in gradients]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                self._weighted_loss(pack, weights).backward()
        torch.cuda.current_stream().wait_stream(stream)
        torch._foreach_copy_(gradients, before)
        del before
        torch.cuda.empty_cache()  # what the warm-up cached is needed again, in the graphs' pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss = self._weighted_loss(pack, weights)
            loss.backward()
            self._loss.copy_(loss.detach())
        return _Captured(graph, pack, weights)


def _padded(pack: Pack, labels_in_step: torch.Tensor) -> tuple[Pack, torch.Tensor]:
    """Pad the labels of `pack`; returns it with the weight of each label, 1 / labels in the step or 0."""
    labels = len(pack.labels)
    extra = -labels % LABELS_MULTIPLE
    weights = nn.functional.pad((1.0 / labels_in_step.float()).expand(labels), (0, extra))
    grown = {
        name: nn.functional.pad(getattr(pack, name), (0, extra)) for name in ("label_rows", "label_columns", "labels")
    }
    return Pack(**{**vars(pack), **grown}), weights
