"""The training loop: what happens from the first optimizer step to the last.

The loss of an optimizer step is the mean over all labels of its effective batch: packing, micro-batch size and number
of processes do not change how much an example counts. Labels are the completion and its end-of-sequence token. The
gradient of one micro-batch is computed in tool_aware/engine/micro_step.py.

Where a GPU would wait for Python, the first pass of the next step is launched before it is known how a step went.

Several processes (distributed.py) run this loop side by side. They compute their shares of each effective batch, and
only the first one writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, Interrupted, UserError, say
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.micro_step import MicroStep
from tool_aware.engine.optimizer import FlatAdamW, build_optimizer, clip_gradients_, gradients_in
from tool_aware.model.adapter import base_of
from tool_aware.model.base import device
from tool_aware.stage_times import stage
from tool_aware.training.choice import ToolNames, label_weight, right_tool
from tool_aware.training.distributed import ALONE, Processes
from tool_aware.training.run.checkpoints import new_checkpoint, remove_old
from tool_aware.training.run.tracking import Throughput, Tracker, step_line, together, validation_line
from tool_aware.training.run.training_state import load_state, random_state, save_state
from tool_aware.training.schedule import (
    CheckpointTimes,
    MicroBatches,
    Schedule,
    Scorings,
    learning_rate_at,
    stratified_sample,
)
from tool_aware.training.step_outcome import StepOutcome
from tool_aware.training.stop_signals import StopSignals
from tool_aware.training.validation import Validation, Validations, score

if TYPE_CHECKING:
    from peft import PeftModel

# The examples of some rows (their numbers) in the optimizer step after so many others.
VariedExamples = Callable[[int, Sequence[int]], list[EncodedExample]]

_ROWS_NAMED = 5  # of a step that went wrong
_MOST_SKIPPED_STEPS = 30  # in a row, under a gradient scaler: halved so often, its first scale of 2^16 is far below 1


class NotFiniteError(UserError):
    """The loss or a gradient became infinite or NaN; the optimizer has not used it."""


class TrainingLoop:
    """A training run of `model` on `train`, scored on `val`, from its first step or from a checkpoint.

    `run` identifies the run in its checkpoints. `varied` gives the examples of each step where they are not just its
    rows'. Of several processes only the first has a tracker. Attributes that are read afterwards: `step` (optimizer
    steps taken), `validations`, `fallbacks`.
    """

    def __init__(
        self,
        model: PeftModel,
        config: Config,
        *,
        train: Sequence[EncodedExample],
        val: Sequence[EncodedExample],
        tool_names: ToolNames,
        tracker: Tracker | None,
        run: dict[str, Any],
        varied: VariedExamples | None = None,
        processes: Processes = ALONE,
        fallbacks: Fallbacks | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model, self.config, self.train, self.tool_names = model, config, train, tool_names
        self.tracker, self.run_identity, self.processes = tracker, run, processes
        self.fallbacks = Fallbacks() if fallbacks is None else fallbacks
        self.output_dir, self.device = config.training.output_dir, device()
        self.schedule = Schedule.of(config, len(train), processes.count)
        self.scorings = Scorings.of_run(config.training, self.schedule, len(val))
        tools = [right_tool(example, tool_names) for example in val]
        self.val = [val[row] for row in stratified_sample(tools, self.scorings.rows, config.training.seed)]
        self.micro_batches = MicroBatches.of(config, list(map(len, train)), processes.rank, processes.count)
        self.step, self.validations, self.throughput = 0, Validations(), Throughput()
        self.checkpoint_times = CheckpointTimes(config.training.save_steps)
        self.signals = StopSignals(self._answer_to_signal)
        self.stop_signal: int | None = None  # the one that all processes have agreed on
        self._loss_since_log, self._steps_since_log = torch.zeros((), device=self.device), 0
        self._skipped_steps = 0  # in a row, for a gradient that was not finite
        self._unsettled: StepOutcome | None = None
        self._varied, self._next_step = varied, (-1, list[list[EncodedExample]]())

        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        processes.copy_from_first_(self.trained)
        # Processes that share the base model's weights fetch them together: all run the same forward passes.
        self._is_sharded = config.optimization.shard_base and processes.count > 1
        decoder, why_not = (None, None) if self._is_sharded else PackedDecoder.of(model, config)
        if why_not:
            self.fallbacks.add(why_not)
        self.optimizer = build_optimizer(self.trained, config)
        self.scaler = scaler or gradient_scaler(self.device, base_of(self.model).dtype)
        self.micro_step = MicroStep(
            model,
            packing=config.training.packing,
            limit=config.training.per_device_train_batch_size,
            device=self.device,
            decoder=decoder,
            scaler=self.scaler,
            is_sharded=self._is_sharded,
            flat_gradient=self.optimizer.gradient if isinstance(self.optimizer, FlatAdamW) else None,
            cuda_graphs=config.optimization.cuda_graphs,
            fallbacks=self.fallbacks,
        )
        torch.manual_seed(config.training.seed + processes.rank)  # of dropout

    # ---- the loop ---------------------------------------------------------------------------------------

    def run(self, resume_from: Path | None = None) -> None:
        """Train to the end; a signal (stop_signals.py) ends it after the present step, with a checkpoint.

        Raises Interrupted after such a stop, and NotFiniteError. A second signal ends it at once, without saving.
        """
        with self.signals:
            if resume_from:
                self.resume(resume_from)
            self.micro_step.require_own_parameters()
            self.model.train()  # not at every step: it takes 15 ms on a 7B
            self.processes.check_replicas(self.trained, self.optimizer)
            self.throughput.start(self.step)
            while not (self.is_complete or self.stop_signal):
                self._take_step()
        if self.stop_signal and not self.is_complete:
            raise Interrupted(self.stop_signal)

    def _take_step(self) -> None:
        """Take one optimizer step, then log, score and save if it is time to."""
        micro_batches = self._examples_of(self.step)
        labels, is_checkpoint_due, runs_ahead = self._agree_on_step(micro_batches)
        for place, examples in enumerate(micro_batches, start=1):
            done = self.micro_step.add_gradient(examples, labels)
            self._settle()
            self._loss_since_log += done.loss
            self.throughput.add(done.examples, done.tokens)
            following = micro_batches[place:] or self._examples_of(self.step + 1)
            self.micro_step.pack_ahead(following[0] if following else [])

        gradients = gradients_in(self.optimizer, self.trained)
        self.processes.sum_(gradients)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients_(gradients, self.config.training.max_grad_norm)
        if not runs_ahead:
            self._require_finite(norm)

        learning_rate = learning_rate_at(self.step, self.config.training, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.step(self.optimizer, **({"is_skipped": ~torch.isfinite(norm)} if runs_ahead else {}))
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        self._steps_since_log += 1
        self._unsettled = StepOutcome(self.step, learning_rate, norm, self._loss_since_log)

        if self.processes.count == 1:  # several have agreed on it in `_agree_on_step`
            self.stop_signal = self.signals.received
        is_last = self.stop_signal or self.step >= self.schedule.steps
        # Not before a stop: who sends a signal gives little time; the resumed run scores instead.
        is_scored = self.scores_at(self.step) and (self.step >= self.schedule.steps or not self.stop_signal)
        if is_scored or is_checkpoint_due or is_last or not runs_ahead:
            self._settle()
        if is_scored:
            self._validate()
        if is_checkpoint_due or self.is_complete or self.stop_signal:
            self.save()

    @property
    def can_run_ahead(self) -> bool:
        """Return whether the next step may begin before it is known whether the gradient of this one is finite.

        A GPU that waits for Python need not wait for that too: an update by a gradient that is not finite leaves
        everything as it is, and Python finds out while the GPU computes the next pass.
        """
        decoder, optimizer = self.micro_step.decoder, self.optimizer
        can_skip = isinstance(optimizer, FlatAdamW) and optimizer.is_fused and not self.scaler.is_enabled()
        return can_skip and decoder is not None and decoder.is_recording

    def _settle(self) -> None:
        """Wait until the step before is done, then check and log it; nothing if that has been done."""
        outcome, self._unsettled = self._unsettled, None
        if outcome is None:
            return
        outcome.wait()
        if not (math.isfinite(outcome.norm) or self.scaler.is_enabled()):
            self.step = outcome.step - 1  # whose update has changed nothing
            raise self._not_finite()
        if outcome.step == 1 or outcome.step % self.config.logging.logging_steps == 0:
            self._log(outcome)

    def _require_finite(self, norm: torch.Tensor) -> None:
        """Raise NotFiniteError before the update unless the gradient is finite.

        A scaler expects infinite gradients now and then; it skips those steps and scales less.
        """
        self._skipped_steps = 0 if torch.isfinite(norm) else self._skipped_steps + 1
        if self._skipped_steps > (_MOST_SKIPPED_STEPS if self.scaler.is_enabled() else 0):
            raise self._not_finite()

    def _examples_of(self, step: int) -> list[list[EncodedExample]]:
        """Return the micro-batches of an optimizer step, which are made once; none behind the last step."""
        if self._next_step[0] != step:
            drawn = self.micro_batches.of_step(step) if step < self.schedule.steps else []
            examples = self._varied or (lambda _, rows: [self.train[row] for row in rows])
            self._next_step = (step, [examples(step, rows) for rows in drawn])
        return self._next_step[1]

    def _agree_on_step(self, micro_batches: Sequence[Sequence[EncodedExample]]) -> tuple[torch.Tensor, bool, bool]:
        """Count the labels of one optimizer step over all processes, which also agree on what comes after it.

        That is whether to stop, whether a checkpoint is due by the clock of the first one, and whether all run ahead:
        what they exchange has to come in one order.
        """
        labels = sum(label_weight(example) for examples in micro_batches for example in examples)
        is_due = self.checkpoint_times.is_due(self.step + 1)
        shares = self.processes.gather((labels, self.signals.received, is_due, self.can_run_ahead))
        self.stop_signal = next((signum for _, signum, *_ in shares if signum is not None), None)
        all_labels = torch.full((), sum(labels for labels, *_ in shares), device=self.device)  # does not wait for a GPU
        return all_labels, shares[0][2], all(can for *_, can in shares)

    def _not_finite(self) -> UserError:
        """Save the state before the step and return what to raise: NotFiniteError with the rows at fault."""
        self.optimizer.zero_grad()
        self.save()
        taken = [row for rows in self.micro_batches.of_step(self.step) for row in rows]
        examples = [example for batch in self._examples_of(self.step) for example in batch]
        infinite = [] if self._is_sharded else [taken[i] for i in self.micro_step.with_infinite_loss(examples)]
        found = self.processes.gather((infinite, taken))
        rows = [row for infinite, _ in found for row in infinite] or [row for _, taken in found for row in taken]
        shown = ", ".join(str(row + 1) for row in rows[:_ROWS_NAMED]) + (", ..." if len(rows) > _ROWS_NAMED else "")
        error = NotFiniteError(
            f"the loss or its gradient is not finite at step {self.step + 1}; "
            f"the state before it is saved. Rows of train.json (counted from 1): {shown}",
            where=str(self.output_dir),
            fix="look at these rows, or lower training.learning_rate; then start anew with --overwrite",
        )
        return self.processes.stop_together(error)

    # ---- when to stop -----------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Return whether no step is left: all are taken, or scorings have stopped getting better."""
        patience = self.config.training.early_stopping_patience
        has_stopped_early = patience is not None and self.validations.since_best >= patience
        return has_stopped_early or self.step >= self.schedule.steps

    def scores_at(self, step: int) -> bool:
        """Return whether val.json is scored after `step`: as `training.eval_steps` says, and at the end."""
        return self.scorings.is_due(step, self.schedule.steps)

    def _answer_to_signal(self) -> str:
        has_steps = self.step < self.schedule.steps
        return "saving a checkpoint after this step" if has_steps else "all steps are done, finishing"

    # ---- logging, scoring, saving -----------------------------------------------------------------------

    def _log(self, outcome: StepOutcome) -> None:
        """Write one line of metrics.jsonl and of the terminal; the loss is the mean since the last line."""
        lap = self.throughput.lap(outcome.step, self.schedule.steps)
        losses, laps = zip(*self.processes.gather((outcome.loss, lap)), strict=True)
        loss = sum(losses) / self._steps_since_log
        self._loss_since_log.zero_()
        self._steps_since_log = 0
        if not self.tracker:
            return
        values = {
            "step": outcome.step,
            "steps": self.schedule.steps,
            "epoch": round(self.micro_batches.epochs_at(outcome.step), 4),
            "loss": loss,
            "lr": outcome.learning_rate,
            "grad_norm": outcome.norm,
            **together(laps),
        }
        self.tracker.log(values)
        say(step_line(values))

    @torch.no_grad()
    def score(self) -> Validation:
        """Score val.json, or the sample of it, by loss and by tool choice, in one forward pass a row."""
        self.model.eval()
        found = score(
            self.val,
            self.config.training.per_device_eval_batch_size,
            self.micro_step.answer_states,
            self.tool_names,
            step=self.step,
            processes=self.processes,
            may_split=not self._is_sharded,
            fallbacks=self.fallbacks,
        )
        self.model.train()
        return found

    @stage("scoring val.json")
    def _validate(self) -> None:
        with self.throughput.paused():
            found = self.score()
        self.validations.add(found, lambda: get_peft_model_state_dict(self.model, save_embedding_layers=False))
        if self.tracker:
            values = {"step": found.step, "steps": self.schedule.steps, **found.as_dict()}
            self.tracker.log(values)
            say(validation_line(values))
        if self.is_complete and found.step < self.schedule.steps:
            say(f"stopping early: no better scoring of val.json in {self.validations.since_best}")

    @stage("checkpoints")
    def save(self) -> None:
        """Write a checkpoint of this step; the first process writes what all of them hold."""
        with self.throughput.paused(), self.checkpoint_times.writing():
            self.processes.check_replicas(self.trained, self.optimizer)
            random_states = self.processes.gather(random_state(self.device))
            self.processes.first(lambda: self._write_checkpoint(random_states))

    def _write_checkpoint(self, random_states: Sequence[dict[str, torch.Tensor]]) -> None:
        with new_checkpoint(self.output_dir, self.step, self.run_identity, self.fallbacks) as folder:
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            save_state(folder, self.step, self.optimizer, self.scaler, random_states)
            self.validations.save(folder, self.step)
        remove_old(self.output_dir, self.config.training.save_total_limit)

    def resume(self, checkpoint: Path) -> None:
        """Take weights, optimizer, random numbers, step and scorings from `checkpoint`.

        val.json is scored now if a signal came before that was done.
        """
        rank = self.processes.rank
        self.step = load_state(checkpoint, self.model, self.optimizer, self.scaler, rank=rank, device=self.device)
        self.validations = Validations.load(checkpoint)
        if self.scores_at(self.step) and self.step not in {found.step for found in self.validations.history}:
            self._validate()


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return a scaler for a GPU that computes in float16, as one without bfloat16 does; elsewhere it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and dtype == torch.float16)
