"""Base and tuned model on one set of weights, answering rows or choosing tools for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tool_aware.console import Progress, UserError
from tool_aware.evaluation.answering.predictions import PredictionLog
from tool_aware.evaluation.answering.tasks import Task
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.inference.constrained import AnswerGrammar
from tool_aware.inference.generation import Generation, generate
from tool_aware.inference.name_scores import score_names
from tool_aware.prompt import decode, encode_prompt, tool_label_tokens, tool_name_tokens
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LocalModel:
    """A model in memory with its tokenizer; one with a `peft` adapter can switch it off."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    max_new_tokens: int

    def run(self, task: Task, log: PredictionLog) -> list[Prediction]:
        """Work off what `log` does not hold yet, batch by batch, and return all predictions in row order."""
        missing = {index: row for index, row in task.rows.items() if index not in log.done}
        if missing:
            prompts = {index: encode_prompt(self.tokenizer, row.instruction) for index, row in missing.items()}
            with self._adapter(is_on=task.uses_adapter) as model, log.appending() as append:
                work = self._choose if task.kind == "choice" else self._answer
                with _memory_error_explained(self.batch_size):
                    _work_off(work(model, task, prompts), append, Progress(task.name, len(missing)))
        return [log.done[index] for index in task.rows]

    @contextlib.contextmanager
    def _adapter(self, *, is_on: bool) -> Iterator[PreTrainedModel]:
        can_switch = hasattr(self.model, "disable_adapter")
        with self.model.disable_adapter() if can_switch and not is_on else contextlib.nullcontext():
            yield self.model

    def _answer(self, model: PreTrainedModel, task: Task, prompts: Mapping[int, list[int]]) -> Iterator:
        indices = list(prompts)
        batches = generate(
            model, list(prompts.values()), eos_id=self.tokenizer.eos_token_id, max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            make_processor=self._grammar(task.tools).processor if task.kind == "constrained" else None,
        )  # fmt: skip
        for batch in batches:
            yield [self._prediction(indices[position], answer) for position, answer in batch]

    def _prediction(self, row: int, answer: Generation) -> Prediction:
        return Prediction(
            row,
            decode(self.tokenizer, answer.ids),
            new_tokens=len(answer.ids) + (not answer.is_truncated),
            is_truncated=answer.is_truncated,
        )

    def _choose(self, model: PreTrainedModel, task: Task, prompts: Mapping[int, list[int]]) -> Iterator:
        indices, label = list(prompts), tool_label_tokens(self.tokenizer)
        names = tool_name_tokens(self.tokenizer, task.tools.names)
        labelled = [prompt + label for prompt in prompts.values()]
        for batch in score_names(model, labelled, names, batch_size=self.batch_size):
            yield [_choice(indices[position], scores, task.real_names) for position, scores in batch]

    def _grammar(self, tools: Toolbox) -> AnswerGrammar:
        return AnswerGrammar(self.tokenizer, tools, vocabulary=self.model.config.vocab_size)


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


def _work_off(batches: Iterator[list[Prediction]], append: Callable, progress: Progress) -> None:
    """Write each batch as soon as it is there, each row with its share of the batch's time."""
    done, begun_s = 0, time.perf_counter()
    for batch in batches:
        now_s = time.perf_counter()
        append([replace(prediction, seconds=(now_s - begun_s) / len(batch)) for prediction in batch])
        done, begun_s = done + len(batch), now_s
        progress.update(done)
    progress.close()
