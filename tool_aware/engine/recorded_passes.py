"""Passes recorded as CUDA graphs and replayed, where a GPU would wait for Python.

A pass of a 7B launches some 3,000 kernels, and Python needs 20 microseconds for each: with few tokens a step, or a
small model, a fast GPU is done before the next launch. A recorded pass is one launch. It is bound to the addresses and
sizes that it was recorded with, so packs are padded to a few sizes (pass_inputs.py) and copied into inputs that stay in
place. The kernels are the same, and so is what they compute.

All recorded passes, and those that are not recorded yet, take their memory from one pool: together they need what the
largest needs, as none runs beside another.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tool_aware.engine.packed_attention import Segments
from tool_aware.engine.packing import Pack
from tool_aware.engine.pass_inputs import FixedInputs, HostInputs, NearestSizes, PackSizes, PassInputs, SizesOf

_MOST_SIZES = 64  # whose passes are kept: a graph of a 7B takes some MiB
_PASSES_BEFORE = 1  # of a size that are run as they are: kernels are compiled, and sizes seen once are not worth more

_PASSES_NOT_TIMED, _PASSES_TIMED = 2, 3  # the first ones compile kernels
# The part of a pass's time on the GPU in which Python launches, from which on it is taken to wait for the launches. A
# GPU that has enough to do is behind by the thousand launches that its queue holds.
_WAITING_SHARE = 0.9

Run = Callable[[PassInputs, torch.Tensor], torch.Tensor]


class RecordingError(RuntimeError):
    """A pass could not be recorded; nothing was computed."""


@dataclass
class _OfSize:
    """The inputs of one size, and the pass over them once it is recorded."""

    inputs: FixedInputs
    seen: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    result: torch.Tensor | None = None  # where the recorded pass leaves it


class RecordedPasses:
    """`run(inputs, weight)`, which returns a tensor and may add to gradients that stay in place, recorded by size.

    Packs are brought to the sizes that `sizes_of` returns, or to those of a recorded pass that are little larger.
    """

    def __init__(self, run: Run, device: torch.device, sizes_of: SizesOf = PackSizes.around) -> None:
        self._run, self._device, self._sizes_of, self._nearest = run, device, sizes_of, NearestSizes()
        self._stream = torch.cuda.Stream(device, priority=-1)  # before what runs beside it (side_stream.py)
        self._pool: Any = torch.cuda.MemPool()  # its id is a pool handle, which torch's types do not say
        self._by_size: OrderedDict[PackSizes, _OfSize] = OrderedDict()
        self._prepared: tuple[Pack, HostInputs] | None = None

    @property
    def recorded(self) -> int:
        """Return how many passes are recorded."""
        return sum(known.graph is not None for known in self._by_size.values())

    def prepare(self, pack: Pack) -> None:
        """Lay out ahead the pack that comes next."""
        self._prepared = (pack, self._laid_out(pack))

    def __call__(self, pack: Pack, weight: torch.Tensor | float) -> torch.Tensor:
        """Run the pass over `pack`, recorded if its size was seen before; return what it returns.

        The tensor holds it until the next pass of the same size.
        """
        host = self._prepared[1] if self._prepared and self._prepared[0] is pack else self._laid_out(pack)
        self._prepared = None
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            known = self._of_size(host.sizes)
            if known.graph is None and known.seen > _PASSES_BEFORE:
                self._record(known)
            known.inputs.fill(host, weight)
            if known.graph is None:
                with torch.cuda.use_mem_pool(self._pool, self._device):
                    result = self._run(known.inputs.of_pass, known.inputs.weight)
            else:
                known.graph.replay()
                assert known.result is not None
                result = known.result
        caller.wait_stream(self._stream)
        return result

    def _laid_out(self, pack: Pack) -> HostInputs:
        return HostInputs.of(pack, self._sizes_for)

    def _sizes_for(self, pack: Pack, segments: Segments) -> PackSizes:
        recorded = [sizes for sizes, known in self._by_size.items() if known.graph is not None]
        return self._nearest(self._sizes_of(pack, segments), pack.input_ids.shape[1], recorded)

    def _of_size(self, sizes: PackSizes) -> _OfSize:
        known = self._by_size.get(sizes) or _OfSize(FixedInputs(sizes, self._device))
        known.seen += 1
        self._by_size[sizes] = known
        self._by_size.move_to_end(sizes)
        if len(self._by_size) > _MOST_SIZES:
            self._by_size.popitem(last=False)
        return known

    def _record(self, known: _OfSize) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads of others (a tracker's, say) may call CUDA meanwhile.
            with torch.cuda.graph(graph, pool=self._pool.id, stream=self._stream, capture_error_mode="thread_local"):
                result = self._run(known.inputs.of_pass, known.inputs.weight)
        except RuntimeError as error:  # out of memory is one too
            raise RecordingError(str(error).splitlines()[0]) from error
        known.graph, known.result = graph, result


class Waiting:
    """Timed passes that show whether the GPU waits for Python: then they end on it soon after their last launch."""

    def __init__(self) -> None:
        self._seen = 0
        self._timed: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []

    @property
    def is_known(self) -> bool:
        """Return whether enough passes were timed, and all of them are done on the GPU."""
        return len(self._timed) == _PASSES_TIMED and self._timed[-1][1].query()

    def share(self) -> float:
        """Return the median share of a pass's time on the GPU in which Python was launching."""
        shares = (1e3 * launching_s / start.elapsed_time(end) for start, end, launching_s in self._timed)
        return statistics.median(shares)

    def is_found(self) -> bool:
        """Return whether recorded passes are worth their memory and the padding."""
        return self.share() > _WAITING_SHARE

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the pass that is launched while active, unless enough were."""
        self._seen += 1
        if self._seen <= _PASSES_NOT_TIMED or len(self._timed) == _PASSES_TIMED:
            yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began = time.perf_counter()
        start.record()
        yield
        end.record()
        self._timed.append((start, end, time.perf_counter() - began))
