"""Base and tuned model on one set of weights, answering the rows of a test set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tool_aware.console import Progress
from tool_aware.evaluation.inference import generate
from tool_aware.evaluation.judgement import Prediction
from tool_aware.evaluation.predictions import PredictionLog
from tool_aware.prompt import decode, encode_prompt
from tool_aware.records import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LocalModel:
    """A model in memory with its tokenizer; `peft` models can switch their adapter off."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @contextlib.contextmanager
    def adapter(self, *, is_on: bool) -> Iterator[PreTrainedModel]:
        """The model with its adapter switched on or off, if it has one."""
        off = contextlib.nullcontext() if is_on or not hasattr(self.model, "disable_adapter") else None
        with off or self.model.disable_adapter():
            yield self.model

    def encode(self, rows: Mapping[int, Row]) -> dict[int, list[int]]:
        """Token ids of each row's prompt."""
        return {index: encode_prompt(self.tokenizer, row.instruction) for index, row in rows.items()}


def answer_rows(
    local: LocalModel,
    rows: Mapping[int, Row],
    log: PredictionLog,
    *,
    uses_adapter: bool,
    max_new_tokens: int,
    batch_size: int,
    label: str,
    make_processor: Callable | None = None,
) -> list[Prediction]:
    """Generate what `log` does not hold yet, batch by batch, and return all answers in row order."""
    missing = {index: row for index, row in rows.items() if index not in log.done}
    if missing:
        prompts = local.encode(missing)
        indices = list(prompts)
        progress = Progress(label, len(rows))
        with local.adapter(is_on=uses_adapter) as model, log.appending() as append:
            batches = generate(
                model, list(prompts.values()), eos_id=local.tokenizer.eos_token_id, max_new_tokens=max_new_tokens,
                batch_size=batch_size, make_processor=make_processor,
            )  # fmt: skip
            for batch in batches:
                append(
                    [
                        Prediction(
                            indices[position],
                            decode(local.tokenizer, answer.ids),
                            new_tokens=len(answer.ids) + (not answer.is_truncated),
                            is_truncated=answer.is_truncated,
                        )
                        for position, answer in batch
                    ]
                )
                progress.update(sum(index in log.done for index in rows))
        progress.close()
    return [log.done[index] for index in rows]
