"""Base and tuned model on one set of weights, answering rows or choosing tools for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import cut_answers, decode, end_id, tool_label_tokens, tool_name_tokens
from tool_aware.config.data_sections import EvaluationSection
from tool_aware.console import Fallbacks, Progress, UserError
from tool_aware.evaluation.answering.predictions import Append, PredictionLog
from tool_aware.evaluation.answering.tasks import Task
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.history import fit_histories
from tool_aware.inference.constrained import AnswerGrammar
from tool_aware.inference.generation import Generation, generate
from tool_aware.inference.name_scores import score_names
from tool_aware.prompt import render_preamble
from tool_aware.rows import Row
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LocalModel:
    """A model in memory with its tokenizer; `adapter` is the peft model around it, which can switch its adapter off."""

    model: PreTrainedModel
    adapter: PeftModel | None
    tokenizer: PreTrainedTokenizerBase
    settings: EvaluationSection
    fallbacks: Fallbacks
    limit: int  # tokens of a prompt with its answer; above it, earlier turns are left out

    def run(self, task: Task, log: PredictionLog) -> list[Prediction]:
        """Answer what `log` does not hold yet, batch by batch, and return all predictions in row order."""
        missing = {index: row for index, row in task.rows.items() if index not in log.done}
        if missing:
            prompts = dict(zip(missing, self._prompts(task, [*missing.values()]), strict=True))
            batches = self._choose(task, prompts) if task.kind == "choice" else self._answer(task, prompts)
            with (
                self._switched(task.uses_adapter),
                log.appending() as append,
                _memory_error_explained(self.settings.batch_size),
            ):
                _append_all(batches, append, Progress(task.name, len(missing)))
        return [log.done[index] for index in task.rows]

    def _prompts(self, task: Task, rows: Sequence[Row]) -> list[list[int]]:
        """Return prompts as training has them (`training.data.encode_data`)."""
        fitted = fit_histories(self.tokenizer, rows, self.limit, shared=render_preamble(task.tools))
        if task.kind == "free" and (cut := cut_answers([e for _, e, _ in fitted], self.settings.max_new_tokens)):
            self.fallbacks.add(cut)
        return [example.prompt for _, example, _ in fitted]

    def _switched(self, uses_adapter: bool) -> AbstractContextManager[None]:
        """Return a context in which the adapter is off, unless the task uses it or there is none."""
        if self.adapter is None or uses_adapter:
            return contextlib.nullcontext()
        return _without(self.adapter)

    def _answer(self, task: Task, prompts: Mapping[int, list[int]]) -> Iterator[list[Prediction]]:
        indices = list(prompts)
        batches = generate(
            self.model,
            list(prompts.values()),
            eos_id=end_id(self.tokenizer),
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
            make_processor=self._grammar(task.tools).processor if task.kind == "constrained" else None,
            fallbacks=self.fallbacks,
        )
        for batch in batches:
            yield [self._prediction(indices[position], answer) for position, answer in batch]

    def _prediction(self, row: int, answer: Generation) -> Prediction:
        return Prediction(
            row,
            decode(self.tokenizer, answer.ids),
            new_tokens=len(answer.ids) + (not answer.is_truncated),
            is_truncated=answer.is_truncated,
        )

    def _choose(self, task: Task, prompts: Mapping[int, list[int]]) -> Iterator[list[Prediction]]:
        indices, label = list(prompts), tool_label_tokens(self.tokenizer)
        names = tool_name_tokens(self.tokenizer, task.tools.names)
        labelled = [prompt + label for prompt in prompts.values()]
        for batch in score_names(self.model, labelled, names, batch_size=self.settings.batch_size):
            yield [_choice(indices[position], scores, task.real_names) for position, scores in batch]

    def _grammar(self, tools: Toolbox) -> AnswerGrammar:
        return AnswerGrammar(self.tokenizer, tools, vocabulary=self.model.config.get_text_config().vocab_size)


@contextlib.contextmanager
def _without(adapter: PeftModel) -> Iterator[None]:
    layers: Any = adapter.base_model
    layers.disable_adapter_layers()  # peft's `disable_adapter` first asks all of them how they are
    try:
        yield
    finally:
        layers.enable_adapter_layers()


@contextlib.contextmanager
def _memory_error_explained(batch_size: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory does not suffice for batches of {batch_size}: {str(error).split('. ')[0]}",
            where="evaluation.batch_size",
            fix=f"--set evaluation.batch_size={max(1, batch_size // 2)}; answers so far are kept",
        ) from error


def _choice(row: int, scores: Mapping[str, float], real_names: Mapping[str, str]) -> Prediction:
    real = {real_names[name]: score for name, score in scores.items()}
    return Prediction(row, tool=max(real, key=real.__getitem__), scores=real)


def _append_all(batches: Iterator[list[Prediction]], append: Append, progress: Progress) -> None:
    """Write each batch as soon as it is there, each row with its share of the batch's time."""
    done, begun_s = 0, time.perf_counter()
    for batch in batches:
        now_s = time.perf_counter()
        append([replace(prediction, seconds=(now_s - begun_s) / len(batch)) for prediction in batch])
        done, begun_s = done + len(batch), now_s
        progress.update(done)
    progress.close()
