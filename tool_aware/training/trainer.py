"""The training loop: transformers' Trainer, fed with packs, stopped cleanly, checkpointed whole.

The loss of an optimizer step is the mean over all label tokens of its effective batch, whatever the packing, the
micro-batch or the number of GPUs (distributed.py). Labels are the completion and its EOS.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from tool_aware.config.settings import Config
from tool_aware.console import Interrupted, UserError, say, warn
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.micro_step import MicroStep
from tool_aware.engine.optimizer import FlatAdamW, build_optimizer, clip_
from tool_aware.prompt import EncodedExample
from tool_aware.training.arguments import training_arguments
from tool_aware.training.choice import ToolNames, label_count
from tool_aware.training.distributed import ALONE, Processes, gradients_of
from tool_aware.training.run.checkpoints import files_written_by, new_checkpoint, remove_old
from tool_aware.training.run.tracking import Throughput, Tracker, step_line, together, validation_line
from tool_aware.training.schedule import MicroBatches, Schedule
from tool_aware.training.validation import Validation, Validations, score

if TYPE_CHECKING:
    from peft import PeftModel

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler, a terminal that closes
_ROWS_NAMED = 5  # of a step that went wrong


class NotFiniteError(UserError):
    """The loss or a gradient became infinite or NaN; the optimizer has not used it."""


class PackedTrainer(Trainer):
    """transformers' Trainer on packs of `train`; `run` identifies the run in its checkpoints.

    Of several processes only the first has a tracker, and writes.
    """

    processes: Processes = ALONE

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
        processes: Processes = ALONE,
    ) -> None:
        self.schedule = Schedule.of(config, len(train), processes.count)
        arguments = training_arguments(config, self.schedule.steps)
        self.config, self.examples, self.val_examples, self.tool_names = config, train, val, tool_names
        self.tracker, self.run_identity, self.processes = tracker, run, processes
        self.micro_batches = MicroBatches(
            len(train),
            config.training.per_device_train_batch_size,
            config.training.seed,
            rank=processes.rank,
            processes=processes.count,
            lengths=[len(example) for example in train],
        )
        self.signal_received: int | None = None
        self.stop_signal: int | None = None  # what all processes have agreed on
        self.validations = Validations()
        self._rows_of_step: list[int] = []
        # Processes that share the base model's weights fetch them together: all run the same forward passes.
        self._is_sharded = config.optimization.shard_base and processes.count > 1
        decoder, self.fallback = (None, None) if self._is_sharded else PackedDecoder.of(model, config)
        if self.fallback:
            warn(self.fallback)
        self.micro_step = MicroStep(
            model,
            train,
            packing=config.training.packing,
            limit=config.training.per_device_train_batch_size,
            device=arguments.device,
            decoder=decoder,
            is_sharded=self._is_sharded,
        )
        self.throughput = Throughput()
        super().__init__(
            model, arguments, train_dataset=self.micro_batches, eval_dataset=list(val), callbacks=[_Bookkeeping(self)]
        )
        self.remove_callback(PrinterCallback)
        self.micro_step.backward = self.accelerator.backward

    # -- data --

    def get_train_dataloader(self) -> DataLoader:
        """Yield lists of row numbers; packs are made when they are needed."""
        return DataLoader(self.micro_batches, batch_size=1, shuffle=False, collate_fn=itemgetter(0))

    def num_examples(self, dataloader: DataLoader) -> int:
        """Count the rows of an epoch."""
        return len(self.examples)

    def floating_point_ops(self, inputs: object) -> int:
        """Report no estimate; throughput is measured in examples and tokens."""
        return 0

    def _get_num_items_in_batch(self, batch_samples: list[list[int]], device: torch.device) -> torch.Tensor:
        """Count the labels of one optimizer step over all processes; by the way they agree whether it is the last."""
        self._rows_of_step = [row for rows in batch_samples for row in rows]
        labels = sum(label_count(self.examples[row]) for row in self._rows_of_step)
        shares = self.processes.gather((labels, self.signal_received))
        self.stop_signal = next((signum for _, signum in shares if signum is not None), None)
        return torch.tensor(sum(labels for labels, _ in shares), device=device)

    # -- one micro-step --

    def training_step(self, model: nn.Module, inputs: list[int], num_items_in_batch: torch.Tensor) -> torch.Tensor:
        """Forward and backward over one micro-batch of rows; returns its share of the step's loss."""
        done = self.micro_step.add_gradient(inputs, num_items_in_batch)
        self.throughput.add(done.examples, done.tokens)
        self.micro_step.pack_ahead(self.micro_batches.upcoming())
        return done.loss * self.processes.count  # Trainer logs the mean over processes, and the sum is what counts

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # -- one optimizer step --

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that config.yaml names, over the adapter's parameters."""
        if self.optimizer is None:
            self.processes.copy_from_first_(self._trainable())
            self.optimizer = build_optimizer(self._trainable(), self.config)
            if isinstance(self.optimizer, FlatAdamW):
                self.model.zero_grad = self.optimizer.zero_grad  # Trainer calls the model's
                self.micro_step.flat_gradient = self.optimizer.gradient
        return self.optimizer

    def _flat_optimizer(self) -> FlatAdamW | None:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        return optimizer if isinstance(optimizer, FlatAdamW) else None

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: object = None) -> nn.Module:
        # Neither into DistributedDataParallel nor to another place: the parameters are views of the optimizer's buffer.
        return self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        flat = self._flat_optimizer()
        self.processes.sum_([flat.collect_gradients()] if flat else gradients_of(self._trainable()))
        if flat and self.accelerator.scaler is None:
            norm = clip_(flat.collect_gradients(), self.config.training.max_grad_norm)
        else:
            norm = super()._clip_grad_norm(model)
        # A gradient scaler (float16) expects infinities now and then and skips those steps itself.
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            self._stop_at_not_finite()
        return norm

    def _stop_at_not_finite(self) -> None:
        self.model.zero_grad()
        self._save_checkpoint(self.model, None)
        infinite = [] if self._is_sharded else self.micro_step.rows_with_infinite_loss(self._rows_of_step)
        found = self.processes.gather((infinite, self._rows_of_step))
        rows = [row for infinite, _ in found for row in infinite] or [row for _, taken in found for row in taken]
        shown = ", ".join(str(row + 1) for row in rows[:_ROWS_NAMED]) + (", ..." if len(rows) > _ROWS_NAMED else "")
        error = NotFiniteError(
            f"the loss or its gradient is not finite at step {self.state.global_step + 1}; "
            f"the state before it is saved. Rows of train.json (counted from 1): {shown}",
            where=str(self.args.output_dir),
            fix="look at these rows, or lower training.learning_rate; then start anew with --overwrite",
        )
        raise self.processes.stop_together(error)

    # -- validation --

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Score val.json by loss and by tool choice, one forward pass a row; returns `eval_loss`."""
        return {"eval_loss": self._score().loss}

    @torch.no_grad()
    def _score(self) -> Validation:
        self.model.eval()
        size = self.config.training.per_device_eval_batch_size
        found = score(
            self.val_examples,
            size,
            self.micro_step.answer_states,
            self.tool_names,
            step=self.state.global_step,
            processes=self.processes,
            may_split=not self._is_sharded,
        )
        self.model.train()
        return found

    # -- logging and saving --

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn Trainer's logs into one line of metrics.jsonl and of the terminal."""
        if "loss" not in logs:
            return
        laps = self.processes.gather(self.throughput.lap(self.state.global_step, self.state.max_steps))
        if not self.tracker:
            return
        values = {
            "step": self.state.global_step,
            "steps": self.state.max_steps,
            "epoch": round(self.state.epoch, 4),
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": float(logs["grad_norm"]),
            **together(laps),
        }
        self.tracker.log(values)
        say(step_line(values))

    def _evaluate(self, *_: object, **__: object) -> dict[str, float]:
        self.control.should_evaluate = False  # Trainer would ask again at the end of the epoch
        with self.throughput.paused():
            found = self._score()
        self.validations.add(found, lambda: get_peft_model_state_dict(self.model, save_embedding_layers=False))
        if self.tracker:
            values = {"step": found.step, "steps": self.schedule.steps, **found.as_dict()}
            self.tracker.log(values)
            say(validation_line(values))
        if self.is_complete and found.step < self.schedule.steps:
            say(f"stopping early: no better scoring of val.json in {self.validations.since_best}")
            self.control.should_save = self.control.should_training_stop = True
        return {"eval_loss": found.loss}

    def scores_at(self, step: int) -> bool:
        """Whether val.json is scored after `step`: every eval_steps or epoch, and at the end."""
        every = self.config.training.eval_steps or self.schedule.steps_per_epoch
        return bool(self.val_examples) and (step % every == 0 or step >= self.schedule.steps)

    @property
    def is_complete(self) -> bool:
        """Whether no step is left to take: all were, or scorings have stopped getting better."""
        patience = self.config.training.early_stopping_patience
        has_stopped_early = patience is not None and self.validations.since_best >= patience
        return has_stopped_early or self.state.global_step >= self.schedule.steps

    def take_over(self, checkpoint: Path) -> None:
        """Take weights, step and scorings from `checkpoint`; score val.json if a signal came before that was done."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self.validations = Validations.load(checkpoint)
        is_scored = any(found.step == self.state.global_step for found in self.validations.history)
        if self.scores_at(self.state.global_step) and not is_scored:
            self._evaluate()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Trainer's would put new parameters, of 32 bits, in the place of those that decoder and optimizer work on.
        set_peft_model_state_dict(self.model, load_file(Path(resume_from_checkpoint) / SAFETENSORS_WEIGHTS_NAME))

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        with self.throughput.paused():
            self.processes.check_replicas(self._trainable(), self.optimizer)
            random_states = self.processes.gather(files_written_by(self._save_rng_state))
            self.processes.first(lambda: self._write_checkpoint(random_states))

    def _write_checkpoint(self, random_states: list[dict[str, bytes]]) -> None:
        output_dir, step = Path(self.args.output_dir), self.state.global_step
        with new_checkpoint(output_dir, step, self.run_identity) as folder:
            self.model.save_pretrained(folder, save_embedding_layers=False)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            for name, content in (file for files in random_states for file in files.items()):
                (folder / name).write_bytes(content)
            self.validations.save(folder, step)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        remove_old(output_dir, self.config.training.save_total_limit)


class _Bookkeeping(TrainerCallback):
    """Tell the micro-batches which epoch it is, when to score val.json, and when a signal asks to stop."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps  # not those of a resumed checkpoint
        trainer.micro_step.demand_own_parameters()
        trainer.model.train()  # here and not at every step, as it takes 15 ms on a 7B
        trainer.processes.check_replicas(trainer._trainable(), trainer.optimizer)
        trainer.throughput.start(trainer.state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.micro_batches.epoch = int(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self._trainer.processes.count == 1:  # no need to wait until the others know
            self._trainer.stop_signal = self._trainer.signal_received
        is_stopped = self._trainer.stop_signal is not None and state.global_step < state.max_steps
        if is_stopped:
            control.should_save = control.should_training_stop = True
        # Who sends a signal gives little time; the resumed run scores what this one could not.
        control.should_evaluate = self._trainer.scores_at(state.global_step) and not is_stopped
        return control


def train(trainer: PackedTrainer, resume_from: Path | None) -> None:
    """Run to the end, or to the end of the step in which a signal of _STOPPING arrives; that one saves a checkpoint.

    Raises Interrupted after such a stop. A second signal stops at once, without saving; but for SIGHUP, which the
    kernel and the shell both send when a terminal closes.
    """

    def remember(signum: int, _frame: object) -> None:
        if trainer.signal_received is not None:
            if signum == signal.SIGHUP:
                return
            raise Interrupted(signum)
        trainer.signal_received = signum
        has_steps = trainer.state.global_step < trainer.schedule.steps
        what = "saving a checkpoint after this step" if has_steps else "all steps are done, finishing"
        with contextlib.suppress(OSError):  # the terminal may be gone
            say(f"{signal.Signals(signum).name}: {what} (again to stop at once)")

    heeded = [signum for signum in _STOPPING if signal.getsignal(signum) != signal.SIG_IGN]  # nohup ignores SIGHUP
    previous = {signum: signal.signal(signum, remember) for signum in heeded}
    try:
        if resume_from:
            trainer.take_over(resume_from)
        if not trainer.is_complete:
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if trainer.stop_signal is not None and not trainer.is_complete:
        raise Interrupted(trainer.stop_signal)
