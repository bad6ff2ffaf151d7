"""Greedy answers to many prompts at once, token for token those of generating them one by one.

The shared prefix is computed once per model, tails are batched by length, and each decoding step is one CUDA graph
where there is a GPU: at batch sizes that fit a 12 GB card a step is bound by kernel launches, not by arithmetic. On a
CPU, where reading the weights takes the time, passes over drafts of several tokens replace most steps
(drafted_decoding.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tool_aware.console import Fallbacks
from tool_aware.inference.prefix_cache import Prefix, PrefixCache
from tool_aware.model.base import cache_arguments

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tool_aware.inference.constrained import GrammarProcessor
    from tool_aware.inference.drafted_decoding import DraftingDecoder

FILLER_ID = 0  # fed to rows that have ended; what they answer to it is dropped
COLUMNS_MULTIPLE = 64  # attention kernels copy a mask whose rows are not aligned
STOP_CHECK_STEPS = 8  # asking a GPU whether all rows have ended makes the CPU wait for it


@dataclass(frozen=True)
class Generation:
    """The new tokens of one prompt, without EOS. `is_truncated`: the limit came before EOS did."""

    ids: list[int]
    is_truncated: bool


@dataclass(frozen=True)
class Batch:
    """Left-padded tails of some prompts, laid out as `prefix_cache` describes.

    Shapes: `input_ids`, `position_ids` and `is_real` are (rows, tail). `members` are the prompts' indices; a short
    last batch repeats its last prompt to fill `rows`.
    """

    members: list[int]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    is_real: torch.Tensor
    prefix: int

    @property
    def tail(self) -> int:
        """Return the number of columns of the longest tail."""
        return self.input_ids.shape[1]

    def mask(self) -> torch.Tensor:
        """Return what each tail token attends to: the prefix and its own row up to itself, (rows, 1, tail, P+T)."""
        import torch

        rows, tail = self.input_ids.shape
        mask = self.is_real.new_ones(rows, 1, tail, self.prefix + tail)
        causal = torch.ones(tail, tail, dtype=torch.bool, device=mask.device).tril()
        mask[:, 0, :, self.prefix :] = causal & self.is_real[:, None, :]
        return mask


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group indices into batches of similar length, as equal in size as can be and at most `batch_size`, longest first.

    Longest first: if memory does not suffice, that shows at once and not after an hour.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    rows = math.ceil(len(order) / math.ceil(len(order) / batch_size))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def make_batch(
    prompts: Sequence[Sequence[int]], members: list[int], rows: int, prefix: int, device: torch.device
) -> Batch:
    """Lay out the tails of `members` for one forward pass of `rows` rows."""
    import torch

    tails = [prompts[index][prefix:] for index in [*members, *members[-1:] * (rows - len(members))]]
    width = max(map(len, tails))
    input_ids = torch.zeros(rows, width, dtype=torch.long)
    is_real = torch.zeros(rows, width, dtype=torch.bool)
    for row, tail in enumerate(tails):
        input_ids[row, width - len(tail) :] = torch.tensor(tail)
        is_real[row, width - len(tail) :] = True
    position_ids = prefix + (is_real.cumsum(1) - 1).clamp(min=0)
    return Batch(members, input_ids.to(device), position_ids.to(device), is_real.to(device), prefix)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    make_processor: Callable[[list[int]], GrammarProcessor] | None = None,
    uses_cuda_graph: bool = True,
    fallbacks: Fallbacks | None = None,
) -> Iterator[list[tuple[int, Generation]]]:
    """Yield (prompt index, greedy answer) for one finished batch after another.

    `make_processor(members)` returns, for each batch anew, what holds its answers to a grammar. The first
    `len(members)` rows are the answers to the prompts of these indices, the rest fill the batch.
    `uses_cuda_graph` has no effect without a GPU; that a step could not be captured is added to `fallbacks`.
    """
    batches = plan_batches([len(prompt) for prompt in prompts], batch_size)
    prefix = Prefix.shared_by(model, prompts)
    decoder: BatchDecoder | DraftingDecoder | None = _drafting(model, prompts, prefix, eos_id, max_new_tokens)
    decoder = decoder or BatchDecoder(
        model,
        prefix,
        rows=len(batches[0]),
        longest=max(map(len, prompts)),
        eos_id=eos_id,
        max_new_tokens=max_new_tokens,
        uses_cuda_graph=uses_cuda_graph,
        fallbacks=Fallbacks() if fallbacks is None else fallbacks,
    )
    for members in batches:
        answers = decoder.run(prompts, members, make_processor(members) if make_processor else None)
        yield list(zip(members, answers, strict=False))


def _drafting(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], prefix: Prefix, eos_id: int, max_new_tokens: int
) -> DraftingDecoder | None:
    """Return the decoder with drafts; None if the device, the model or the memory is not made for it."""
    if model.device.type != "cpu" or not len(prefix):
        return None
    from tool_aware.engine.merged_layers import merged_layers
    from tool_aware.inference.drafted_decoding import DraftingDecoder
    from tool_aware.inference.drafts import Phrases

    layers = merged_layers(model, max(map(len, prompts)) + max_new_tokens)
    if layers is None:
        return None
    return DraftingDecoder(layers, prefix, Phrases(), eos_id=eos_id, max_new_tokens=max_new_tokens)


class BatchDecoder:
    """The decoding loop for batches of `rows` prompts that begin with `prefix` and have `longest` tokens at most.

    Shapes and addresses of its buffers never change: `logits` (rows, vocabulary), made for the first batch; `tokens`
    (rows, 1), the ones just chosen; `positions` (rows, 1); `column` (1,), where they are stored; `is_visible`
    (rows, 1, 1, capacity).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: Prefix,
        *,
        rows: int,
        longest: int,
        eos_id: int,
        max_new_tokens: int,
        uses_cuda_graph: bool = True,
        fallbacks: Fallbacks,
    ) -> None:
        import torch

        self.model, self.eos_id, self.max_new_tokens = model, eos_id, max_new_tokens
        self.rows, self.longest, self.prefix = rows, longest, len(prefix)
        self.uses_cuda_graph, self.fallbacks = uses_cuda_graph, fallbacks
        capacity = math.ceil((longest + max_new_tokens) / COLUMNS_MULTIPLE) * COLUMNS_MULTIPLE
        self.cache: PrefixCache = prefix.cache.expanded(rows, capacity)
        device = model.device
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.is_visible = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=device)
        self.logits: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(
        self, prompts: Sequence[Sequence[int]], members: list[int], processor: GrammarProcessor | None = None
    ) -> list[Generation]:
        """Answer the prompts of some indices, `rows` at most; `processor` is as in `generate`."""
        import torch

        batch = make_batch(prompts, members, self.rows, self.prefix, self.model.device)
        with torch.inference_mode():
            history = self._decode(batch, processor)
        return [self._cut(ids) for ids in history[: len(batch.members)].tolist()]

    def _decode(self, batch: Batch, processor: GrammarProcessor | None) -> torch.Tensor:
        """Return the tokens, (rows, limit), generated until every row has ended with EOS or at the limit."""
        import torch

        logits = self._begin(batch)
        rows = len(self.tokens)
        history = torch.zeros(rows, self.max_new_tokens, dtype=torch.long, device=self.tokens.device)
        has_ended = torch.arange(rows, device=self.tokens.device) >= len(batch.members)  # filler rows
        for step in range(self.max_new_tokens):
            scores = processor(history[:, :step], logits) if processor else logits
            token = scores.argmax(-1).masked_fill(has_ended, FILLER_ID)
            history[:, step] = token
            has_ended |= token == self.eos_id
            is_check_due = history.device.type == "cpu" or step % STOP_CHECK_STEPS == STOP_CHECK_STEPS - 1
            if is_check_due and bool(has_ended.all()):
                break
            self.tokens.copy_(token[:, None])
            self._step(logits)
        return history

    def _cut(self, ids: list[int]) -> Generation:
        is_truncated = self.eos_id not in ids
        return Generation(ids if is_truncated else ids[: ids.index(self.eos_id)], is_truncated)

    def _begin(self, batch: Batch) -> torch.Tensor:
        """Run the tails through the model and set the buffers for the first generated token; return `logits`."""
        import torch

        seen = batch.prefix + batch.tail
        self.cache.columns = torch.arange(batch.prefix, seen, device=self.column.device)
        self.cache.visible = seen
        first = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask(),
            position_ids=batch.position_ids,
            **cache_arguments(self.model, self.cache),
            logits_to_keep=1,
        ).logits[:, -1]  # (rows, vocabulary)
        self.cache.columns, self.cache.visible = self.column, None
        if self.logits is None:
            self.logits = torch.empty_like(first)
            if self.uses_cuda_graph and self.column.is_cuda:
                self.column.fill_(seen)
                self._capture(self.logits)
        self.logits.copy_(first)
        self.column.fill_(seen)
        self.positions.copy_(batch.position_ids[:, -1:] + 1)
        self.is_visible.zero_()
        self.is_visible[..., : batch.prefix] = True
        self.is_visible[:, 0, 0, batch.prefix : seen] = batch.is_real
        return self.logits

    def _step(self, logits: torch.Tensor) -> None:
        """Feed the chosen tokens and write the next scores into `logits`."""
        if self._graph:
            self._graph.replay()
        else:
            self._forward(logits)

    def _forward(self, logits: torch.Tensor) -> None:
        self.is_visible.index_fill_(3, self.column, True)
        output = self.model(
            input_ids=self.tokens,
            attention_mask=self.is_visible,
            position_ids=self.positions,
            **cache_arguments(self.model, self.cache),
            logits_to_keep=1,
        )
        logits.copy_(output.logits[:, -1])
        self.positions.add_(1)
        self.column.add_(1)

    def _capture(self, logits: torch.Tensor) -> None:
        """Record one step as a CUDA graph. The trial steps write to columns that the batch overwrites later.

        If some layer cannot be recorded, decoding runs without a graph, several times slower.
        """
        import torch

        start = self.column.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # lets kernels allocate their workspaces before recording
                self._forward(logits)
                self.column.copy_(start)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._forward(logits)
            self._graph = graph
        except RuntimeError as error:
            self.fallbacks.add(f"decoding without a CUDA graph, which is slower: {str(error).splitlines()[0]}")
