"""Comparison of a merged model with base + adapter as trained, with one transformer layer in memory at a time.

Two measures: how many rows get the same tool, and the Kullback-Leibler divergence of the next-token distributions along
the right answers, in nats per token. The first is what matters; the second ranks the merge methods.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.batch_encoding import encode_examples
from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config
from tool_aware.engine.packing import Pack, pack_rows
from tool_aware.paths import split_file
from tool_aware.rows import LoadedRows, Row
from tool_aware.stage_times import stage
from tool_aware.training.choice import AnswerStates, ToolNames, chosen_tools, label_count, right_tool
from tool_aware.training.export.layerwise import StreamedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MEASURED_ROWS = 32  # of val.json, at most, on which merge methods are compared: some 2,500 tokens of answers
ROWS_AT_ONCE = 8  # examples of a pack: 8 of the tool task are some 1,100 tokens
_ROWS_AT_ONCE_ON_GPU = 32  # it waits for Python with fewer
_LONGEST_PACK = 8192  # tokens of so many; their mask takes 64 MiB, and its copy for the addition twice that
MOST_TOKENS = 65_536  # that pass a layer before the next one is loaded; at 4,096 numbers each they take 0.5 GiB
_HEAD_ROWS = 4096  # of the output head that are widened to float32 at once
_CHUNK_LABELS = 512  # twice 512 x 32,000 float32 log-probabilities are 125 MiB


@dataclass(frozen=True)
class Sample:
    """Rows to compare models on; `numbers` are their places in `file`, counted from 1."""

    file: Path
    numbers: list[int]
    queries: list[str]
    examples: list[EncodedExample]

    @classmethod
    def take(
        cls, file: Path, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, limit: int, max_tokens: int
    ) -> Sample:
        """Return up to `limit` rows, spread evenly over the file; examples above `max_tokens` are left out."""
        count = min(limit, len(rows))
        chosen = [place * len(rows) // count for place in range(count)]
        encoded = encode_examples(tokenizer, [(rows[index].instruction, rows[index].response) for index in chosen])
        kept = [place for place, example in enumerate(encoded) if len(example) <= max_tokens]
        numbers = [chosen[place] + 1 for place in kept]
        return cls(file, numbers, [rows[number - 1].query for number in numbers], [encoded[place] for place in kept])

    def cut_after_name(self, names: ToolNames) -> Sample:
        """Return the same rows with answers that end after the tool's name: a choice needs no more."""
        ends = [names.offset + len(names.ids[right_tool(example, names)]) for example in self.examples]
        cut = [
            EncodedExample(example.prompt, example.completion[:end])
            for example, end in zip(self.examples, ends, strict=True)
        ]
        return Sample(self.file, self.numbers, self.queries, cut)


@dataclass(frozen=True)
class AsTrained:
    """The answers of base + adapter, quantised as in training, on a sample."""

    sample: Sample
    hidden: torch.Tensor  # (L, H): states that predict the labels, in the sample's order
    head: torch.Tensor  # (V, H)
    chosen: list[tuple[int, ...]]  # tools, see `chosen_tools`


@dataclass(frozen=True)
class Agreement:
    """A merged model compared with base + adapter as trained."""

    rows: int
    different: list[int]  # positions in the sample of rows that get another tool
    chosen: list[tuple[int, ...]]
    divergence: float  # mean KL divergence in nats per token of the answers; infinite if the model yields no numbers

    @property
    def equal(self) -> int:
        """Return the number of rows that get the same tool."""
        return self.rows - len(self.different)


@dataclass(frozen=True)
class References:
    """The references of merged models: rows of val.json select the method, rows of test.json check the result."""

    val: AsTrained | None = None
    test: AsTrained | None = None


@stage("answers to compare merges with")
def references(
    answer_states: AnswerStates,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    names: ToolNames,
    *,
    val: LoadedRows,
    test: LoadedRows | None,
) -> References:
    """Run the trained model over rows of val.json and of test.json; over val.json for both if there is no test.json."""
    limit, max_tokens = config.export.check_rows, config.model.max_seq_length
    batch_size = config.training.per_device_eval_batch_size  # which validation runs with as well
    found = {}
    for split, most in (("val", min(limit, MEASURED_ROWS)), ("test", limit)):
        is_test = split == "test" and test is not None
        file = split_file(config.dataset.dir, "test" if is_test else "val")
        rows = test.rows if is_test and test else val.rows
        sample = Sample.take(file, rows, tokenizer, limit=most, max_tokens=max_tokens)
        if split == "test":
            sample = sample.cut_after_name(names)
        found[split] = as_trained(answer_states, sample, names, batch_size) if sample.examples else None
    return References(**found)


def as_trained(
    answer_states: AnswerStates, sample: Sample, names: ToolNames, batch_size: int = ROWS_AT_ONCE
) -> AsTrained:
    """Run the trained model over `sample`, `batch_size` rows at a time. The head is shared, not copied."""
    import torch

    parts = []
    for start in range(0, len(sample.examples), batch_size):
        batch = sample.examples[start : start + batch_size]
        with torch.no_grad():
            pack, hidden, head = answer_states(batch)
        parts.append(_in_given_order(hidden, pack, batch))
    hidden = torch.cat(parts)
    return AsTrained(sample, hidden, head, chosen_tools(sample.examples, hidden, head, names))


def compare_with_trained(
    reference: AsTrained,
    models: Sequence[StreamedModel],
    names: ToolNames,
    reads: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> list[Agreement]:
    """Compare merged models of one shape with base + adapter as trained, each in its own precision.

    They pass each layer in turn, with a context of `reads` around it: in that what they share need be read only once.
    """
    examples = reference.sample.examples
    rows = _rows_at_once(examples, models[0].device)
    longest_row = pack_rows(examples, rows).input_ids.shape[1]
    at_once = max(1, MOST_TOKENS // (longest_row * len(models))) * rows
    chosen: list[list[tuple[int, ...]]] = [[] for _ in models]
    divergence, compared = [0.0] * len(models), 0
    for start in range(0, len(examples), at_once):
        batch = examples[start : start + at_once]
        pack = pack_rows(batch, rows)
        with reads():
            for model in models:
                model.begin(pack)
        for layer in range(models[0].layers):
            with reads():
                for model in models:
                    model.pass_layer(layer)
        wanted = reference.hidden[compared : compared + len(pack.labels)]
        compared += len(pack.labels)
        for number, model in enumerate(models):
            found, head = model.end()
            hidden = _in_given_order(found, pack, batch)
            chosen[number] += chosen_tools(batch, hidden, head, names)
            divergence[number] += _divergence(wanted, reference.head, hidden, head)
    return [_agreement(reference, tools, total / compared) for tools, total in zip(chosen, divergence, strict=True)]


def _rows_at_once(examples: Sequence[EncodedExample], device: torch.device) -> int:
    """Return how many examples make a pack on a device."""
    if device.type == "cpu":
        return ROWS_AT_ONCE
    width = pack_rows(examples, _ROWS_AT_ONCE_ON_GPU).input_ids.shape[1]
    return _ROWS_AT_ONCE_ON_GPU if width <= _LONGEST_PACK else ROWS_AT_ONCE


def _agreement(reference: AsTrained, chosen: list[tuple[int, ...]], divergence: float) -> Agreement:
    different = [place for place, tools in enumerate(chosen) if tools != reference.chosen[place]]
    # rounding can take it a hair below zero
    return Agreement(len(chosen), different, chosen, max(divergence, 0.0) if math.isfinite(divergence) else math.inf)


def _in_given_order(hidden: torch.Tensor, pack: Pack, examples: Sequence[EncodedExample]) -> torch.Tensor:
    import torch

    pieces = hidden.split([label_count(examples[index]) for index in pack.order])
    placed = dict(zip(pack.order, pieces, strict=True))
    return torch.cat([placed[index] for index in range(len(examples))])


def _divergence(wanted: torch.Tensor, wanted_head: torch.Tensor, hidden: torch.Tensor, head: torch.Tensor) -> float:
    """Return the summed KL divergence of what `hidden` predicts from what `wanted` predicts, both (L, H), in nats."""
    total = 0.0
    for start in range(0, len(hidden), _CHUNK_LABELS):
        part = slice(start, start + _CHUNK_LABELS)
        right = _log_probabilities(wanted[part], wanted_head)
        found = _log_probabilities(hidden[part], head)
        total += (right.exp() * (right - found)).sum().item()
    return total


def _log_probabilities(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of the next tokens, (L, V), in float32: 16-bit ones round the difference away."""
    import torch

    wide = hidden.float()
    logits = [wide @ part.float().T for part in head.split(_HEAD_ROWS)]  # by parts: all of a 7B's would be 0.5 GiB
    return torch.cat(logits, dim=-1).log_softmax(-1)
