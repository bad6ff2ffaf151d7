"""The loop: the meaning of the loss, validation, and what happens when a step goes wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys

import pytest
import torch

from tests.fixtures.training import adapter_of
from tool_aware.console import Interrupted
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.micro_step import MicroStep
from tool_aware.training.loop import NotFiniteError, TrainingLoop
from tool_aware.training.step_outcome import StepOutcome
from tool_aware.training.stop_signals import StopSignals
from tool_aware.training.validation import choose_adapter


@pytest.mark.parametrize("packing", ["prefix", "block", "none"])
def test_packing_and_accumulation_do_not_change_what_is_learnt(make_loop, packing):
    reference = make_loop(training__max_steps=3, training__packing="none")
    reference.run()
    other = make_loop(
        training__max_steps=3,
        training__packing=packing,
        training__per_device_train_batch_size=2,
        training__gradient_accumulation_steps=4,
    )
    other.run()
    # AdamW divides by the gradient's own size, so float32 rounding is amplified where gradients are near zero.
    difference = (adapter_of(reference) - adapter_of(other)).norm() / adapter_of(reference).norm()
    assert difference < 1e-3


def test_a_run_goes_on_with_another_split_of_its_effective_batch(make_loop):
    """As it does on another card, whose memory plan is another one."""
    whole = make_loop(training__max_steps=6, training__save_steps=4)  # 3 steps an epoch: the checkpoint is inside one
    whole.run()
    split = {"training__per_device_train_batch_size": 2, "training__gradient_accumulation_steps": 4}
    resumed = make_loop(training__max_steps=6, **split)
    resumed.run(whole.output_dir / "checkpoint-4")
    assert resumed.step == 6
    difference = (adapter_of(whole) - adapter_of(resumed)).norm() / adapter_of(whole).norm()
    assert difference < 1e-4


@pytest.mark.parametrize("decoder", ["auto", "transformers"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_resumed_run_learns_what_an_uninterrupted_one_does(make_loop, dtype, decoder):
    """In 16 bits, as on a GPU, the adapter has to stay in 16 bits, and the decoder's and optimizer's own."""
    settings = {"quantization__bnb_4bit_compute_dtype": dtype, "optimization__decoder": decoder}
    whole = make_loop(training__max_steps=4, training__save_steps=2, training__eval_steps=2, **settings)
    whole.run()
    resumed = make_loop(training__max_steps=4, training__save_steps=2, training__eval_steps=2, **settings)
    resumed.run(whole.output_dir / "checkpoint-2")
    assert adapter_of(resumed).dtype == getattr(torch, dtype)
    assert torch.equal(adapter_of(whole), adapter_of(resumed))
    assert resumed.validations.history == whole.validations.history


def test_a_run_goes_on_in_the_precision_of_another_machine(make_loop):
    """`auto` may be float32 on one processor and bfloat16 on the next, or on a GPU."""
    settings = {"training__max_steps": 4, "training__save_steps": 2, "training__eval_steps": 2}
    for first, then in (("float32", "bfloat16"), ("bfloat16", "float32")):
        whole = make_loop(quantization__bnb_4bit_compute_dtype=first, **settings)
        whole.run()
        resumed = make_loop(quantization__bnb_4bit_compute_dtype=then, **settings)
        resumed.run(whole.output_dir / "checkpoint-2")
        assert adapter_of(resumed).dtype == getattr(torch, then)
        losses = [loop.validations.history[-1].loss for loop in (whole, resumed)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_resumed_run_saves_as_often_as_it_is_told_to_now(make_loop):
    whole = make_loop(training__max_steps=6, training__save_steps=4)
    whole.run()
    folder = whole.output_dir
    resumed = make_loop(training__max_steps=6, training__save_steps=1, training__output_dir=folder)
    resumed.run(folder / "checkpoint-4")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]


def test_a_run_of_one_step_learns(make_loop):
    loop = make_loop(training__max_steps=1)
    before = adapter_of(loop).clone()
    loop.run()
    assert not torch.equal(before, adapter_of(loop))


def test_a_launchers_mixed_precision_is_ignored(make_loop, monkeypatch):
    """accelerate launch sets this variable, and accelerate's Accelerator would open autocast for it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    loop = make_loop(training__max_steps=1, optimization__decoder="transformers")
    states = []
    first_layer = loop.model.get_base_model().model.layers[0]
    first_layer.register_forward_pre_hook(lambda *_: states.append(torch.is_autocast_enabled("cpu")))
    loop.run()
    assert set(states) == {False}


def test_under_a_gradient_scaler_the_librarys_pass_runs_in_float16_autocast(make_loop):
    settings = {"quantization__bnb_4bit_compute_dtype": "float16", "optimization__decoder": "transformers"}
    loop = make_loop(scaler=torch.amp.GradScaler("cpu"), training__max_steps=1, **settings)
    states = []
    first_layer = loop.model.get_base_model().model.layers[0]
    first_layer.register_forward_pre_hook(
        lambda *_: states.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
    )
    loop.run()
    assert set(states) == {(True, torch.float16)}


def test_in_float16_the_gradient_is_scaled_and_a_step_whose_gradient_overflows_is_skipped(make_loop):
    """As on GPUs without bfloat16. The first scale is far too large, so the first steps are skipped and lower it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    settings = {"quantization__bnb_4bit_compute_dtype": "float16", "optimization__decoder": "transformers"}
    settings |= {"training__max_steps": 24, "training__eval_steps": 24, "training__per_device_train_batch_size": 4}
    loop = make_loop(scaler=scaler, **settings)
    before, start = loop.score().loss, adapter_of(loop).clone()
    assert start.dtype == torch.float32
    loop._take_step()
    assert torch.equal(adapter_of(loop), start)
    loop.run()
    assert scaler.get_scale() < 2.0**24
    assert loop.validations.history[-1].loss < before - 0.3


def test_in_float16_a_gradient_that_stays_infinite_ends_the_run(make_loop, monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    settings = {"quantization__bnb_4bit_compute_dtype": "float16", "optimization__decoder": "transformers"}
    settings |= {"training__max_steps": 60, "training__eval_steps": 60, "training__per_device_train_batch_size": 1}
    loop = make_loop(scaler=scaler, **settings)
    losses = MicroStep.losses
    monkeypatch.setattr(MicroStep, "losses", lambda self, packed: losses(self, packed) * float("nan"))
    with pytest.raises(NotFiniteError, match="not finite at step 31"):
        loop.run()


def test_a_decoder_that_works_on_other_parameters_than_the_models_is_refused(make_loop):
    loop = make_loop(training__max_steps=1)
    for module in loop.model.modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].weight = torch.nn.Parameter(module.lora_A["default"].weight.detach().clone())
    with pytest.raises(RuntimeError, match="was replaced"):
        loop.run()


def test_checkpointing_layers_does_not_change_what_is_learnt(make_loop):
    results = []
    for is_on in ("true", "false"):
        loop = make_loop(training__max_steps=2, optimization__gradient_checkpointing=is_on)
        loop.run()
        results.append(adapter_of(loop))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("is_on", "passes"), [("true", 2), ("false", 1)])
def test_with_checkpointing_the_librarys_layers_run_twice(make_loop, is_on, passes):
    settings = {"optimization__decoder": "transformers", "optimization__gradient_checkpointing": is_on}
    loop = make_loop(training__max_steps=3, **settings)
    loop.scores_at = lambda step: False  # afterwards, the model is set to train anyway
    calls = []
    first_layer = loop.model.get_base_model().model.layers[0]
    first_layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    loop.run()
    assert len(calls) == 3 * passes


def test_the_loss_of_rows_not_trained_on_falls(make_loop):
    loop = make_loop(training__max_steps=12, training__eval_steps=4)
    before = loop.score().loss
    loop.run()
    assert loop.validations.history[-1].loss < before - 0.3


def test_a_sample_of_val_is_scored_alike_by_a_run_and_by_one_that_resumes_it(make_loop):
    settings = {"training__max_steps": 22, "training__per_device_train_batch_size": 24, "training__save_steps": 11}
    whole = make_loop(val_rows=60, **settings)
    whole.run()
    assert [(found.step, found.examples) for found in whole.validations.history] == [(11, 52), (22, 52)]
    resumed = make_loop(val_rows=60, **settings)
    resumed.run(whole.output_dir / "checkpoint-11")
    assert resumed.validations.history == whole.validations.history
    assert torch.equal(adapter_of(whole), adapter_of(resumed))
    assert len(make_loop(val_rows=60, training__eval_steps="null", **settings).val) == 60


def test_scorings_that_stop_getting_better_end_the_run_and_the_best_adapter_is_exported(make_loop):
    settings = {
        "training__learning_rate": 0.5,  # too high on purpose
        "training__lr_scheduler_type": "constant",
        "training__max_steps": 12,
        "training__eval_steps": 1,
        "training__early_stopping_patience": 2,
    }
    loop = make_loop(**settings)
    loop.run()
    validations, steps = loop.validations, loop.step
    assert steps - 2 == validations.best.step < 10
    (checkpoint,) = loop.output_dir.glob("checkpoint-*")

    exported = choose_adapter(loop.model, validations, steps, keep_best=True)
    assert exported.step == validations.best.step
    assert loop.score().loss == validations.best.loss

    resumed = make_loop(**settings)
    resumed.run(checkpoint)
    assert resumed.step == steps
    assert choose_adapter(resumed.model, resumed.validations, steps, keep_best=True) == exported
    assert torch.equal(adapter_of(resumed), adapter_of(loop))


def test_without_keep_best_the_last_step_is_exported(make_loop):
    loop = make_loop(training__learning_rate=0.5, training__max_steps=4, training__eval_steps=1)
    loop.run()
    last = adapter_of(loop).clone()
    exported = choose_adapter(loop.model, loop.validations, 4, keep_best=False)
    assert exported.step == 4
    assert exported.validation == loop.validations.history[-1]
    assert torch.equal(adapter_of(loop), last)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_every_optimizer_of_the_config_steps(make_loop, optim):
    loop = make_loop(training__max_steps=2, optimization__optim=optim)
    before = adapter_of(loop).clone()
    loop.run()
    assert not torch.equal(before, adapter_of(loop))


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_every_optimizer_of_the_config_is_resumed_to_the_bit(make_loop, optim):
    settings = {"training__max_steps": 4, "training__save_steps": 2, "optimization__optim": optim, "lora__r": 64}
    whole, resumed = make_loop(**settings), make_loop(**settings)
    whole.run()
    resumed.run(whole.output_dir / "checkpoint-2")
    assert torch.equal(adapter_of(whole), adapter_of(resumed))


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(make_loop, monkeypatch, capsys):
    """The allocator's failure is the one thing a CPU cannot produce, so it is raised where it would be."""
    expected = make_loop(training__max_steps=2)
    expected.run()
    loop = make_loop(training__max_steps=2)
    add_gradient = PackedDecoder.add_gradient

    def scarce(self: PackedDecoder, packed: object, weight: torch.Tensor) -> torch.Tensor:
        loss = add_gradient(self, packed, weight)  # what was added before memory ran out has to be taken back
        if packed.examples > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(PackedDecoder, "add_gradient", scarce)
    loop.run()
    assert loop.micro_step.limit == 2
    assert "micro-batches are split into 2 examples" in capsys.readouterr().err
    told = [f"out of GPU memory: micro-batches are split into {examples} examples from here on" for examples in (4, 2)]
    assert list(loop.fallbacks) == told
    torch.testing.assert_close(adapter_of(loop), adapter_of(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("step", "told"), [(1, "saving a checkpoint after this step"), (3, "all steps are done")])
def test_a_signal_is_answered_with_what_will_happen(make_loop, monkeypatch, capsys, step, told):
    loop = make_loop(training__max_steps=3, training__eval_steps=1)
    score = loop.score

    def interrupted():
        if loop.step == step:
            signal.raise_signal(signal.SIGTERM)
        return score()

    monkeypatch.setattr(loop, "score", interrupted)
    with pytest.raises(Interrupted) if step == 1 else contextlib.nullcontext():
        loop.run()
    assert f"SIGTERM: {told}" in capsys.readouterr().err


def test_a_signal_that_comes_while_a_line_is_being_written_is_answered_all_the_same(monkeypatch, capfd):
    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name=2>")

    monkeypatch.setattr(sys, "stderr", Busy())
    with StopSignals(lambda: "saving") as signals:
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    assert "SIGTERM: saving" in capfd.readouterr().err


def test_a_second_signal_stops_at_once_unless_a_launcher_passes_on_what_slurm_has_sent_to_all(monkeypatch):
    with StopSignals(str) as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    with StopSignals(str) as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_running_out_of_memory_while_scoring_takes_fewer_rows_at_once_and_finds_the_same(
    make_loop, monkeypatch, capsys
):
    loop = make_loop()
    expected = loop.score()
    answer_states = MicroStep.answer_states

    def scarce(self: MicroStep, examples: list) -> tuple:
        if len(examples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_states(self, examples)

    monkeypatch.setattr(MicroStep, "answer_states", scarce)
    found = loop.score()
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.tool_accuracy == expected.tool_accuracy
    assert "scored in batches of 2" in capsys.readouterr().err
    assert list(loop.fallbacks) == [f"out of GPU memory: val.json is scored in batches of {size}" for size in (4, 2)]


def test_every_micro_batch_is_laid_out_and_prepared_once_also_ahead_of_its_turn(make_loop, monkeypatch):
    loop = make_loop(
        training__num_train_epochs=1,
        training__per_device_train_batch_size=2,
        training__gradient_accumulation_steps=4,
        training__eval_steps=1000,
    )
    lay_out, prepare = MicroStep._lay_out, PackedDecoder._prepare
    laid_out, prepared = [], []
    monkeypatch.setattr(loop, "scores_at", lambda step: False)
    monkeypatch.setattr(MicroStep, "_lay_out", lambda self, rows: laid_out.append(rows) or lay_out(self, rows))
    monkeypatch.setattr(PackedDecoder, "_prepare", lambda self, pack: prepared.append(pack) or prepare(self, pack))
    loop.run()
    assert len(laid_out) == len(prepared) == 24 // 2


def test_out_of_memory_the_decoder_first_gives_up_what_only_saves_time(make_loop, monkeypatch, capsys):
    expected = make_loop(training__max_steps=2)
    expected.run()
    settings = {"gradient_checkpointing": "true", "kept_layers": 2, "cached_layers": 1, "offload": "false"}
    loop = make_loop(training__max_steps=2, **{f"optimization__{key}": value for key, value in settings.items()})
    add_gradient = PackedDecoder.add_gradient
    failures = iter([True, True])

    def scarce(self: PackedDecoder, packed: object, weight: torch.Tensor) -> torch.Tensor:
        loss = add_gradient(self, packed, weight)
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(PackedDecoder, "add_gradient", scarce)
    loop.run()
    told = capsys.readouterr().err
    assert "out of GPU memory: all activations are computed again from here on" in told
    assert "out of GPU memory: no weights are kept dequantised from here on" in told
    assert loop.micro_step.limit == 8
    torch.testing.assert_close(adapter_of(loop), adapter_of(expected), rtol=1e-3, atol=1e-5)


@pytest.fixture(params=[False, True], ids=["", "ahead"])
def ahead(request, monkeypatch):
    """Have the loop run ahead or not; by itself it does where passes are recorded, which only a GPU can."""
    monkeypatch.setattr(TrainingLoop, "can_run_ahead", request.param)
    return request.param


def test_a_run_that_launches_ahead_learns_and_logs_the_same(make_loop, monkeypatch):
    found = []
    for is_ahead in (False, True):
        monkeypatch.setattr(TrainingLoop, "can_run_ahead", is_ahead)
        settings = {"training__per_device_train_batch_size": 2, "training__gradient_accumulation_steps": 4}
        saved = {"training__save_steps": 4, "training__eval_steps": 3, "logging__logging_steps": 2}
        loop = make_loop(training__max_steps=7, **settings, **saved)
        loop.run()
        folders = sorted(path.name for path in loop.output_dir.glob("checkpoint-*"))
        lines = [json.loads(line) for line in (loop.output_dir / "metrics.jsonl").read_text().splitlines()]
        same = ("step", "loss", "lr", "grad_norm", "epoch", "examples", "tokens", "val_loss", "val_tool_accuracy")
        found.append((folders, [{key: line.get(key) for key in same} for line in lines], adapter_of(loop).tolist()))
    assert found[0] == found[1]
    assert [line["step"] for line in found[0][1] if line["loss"] is not None] == [1, 2, 4, 6]


def test_while_a_step_is_computed_the_next_one_is_launched(make_loop, monkeypatch, ahead):
    order = []
    wait, add_gradient = StepOutcome.wait, PackedDecoder.add_gradient
    monkeypatch.setattr(StepOutcome, "wait", lambda self: (order.append(f"end {self.step}"), wait(self))[1])
    monkeypatch.setattr(
        PackedDecoder, "add_gradient", lambda self, *given: (order.append("pass"), add_gradient(self, *given))[1]
    )
    make_loop(training__max_steps=3, training__eval_steps=3).run()
    ends = (
        ["pass", "pass", "end 1", "pass", "end 2", "end 3"]
        if ahead
        else [*("pass", "end 1", "pass", "end 2"), "pass", "end 3"]
    )
    assert order == ends


def test_a_loss_that_is_not_finite_stops_names_the_rows_and_keeps_the_last_finite_state(make_loop, monkeypatch, ahead):
    loop = make_loop(training__max_steps=6)
    losses, add_gradient = MicroStep.losses, PackedDecoder.add_gradient
    poisoned = loop.train[5].completion
    states = []

    def poison_loss(self: MicroStep, packed: object) -> torch.Tensor:
        return losses(self, packed) * (float("nan") if _holds(packed, poisoned) else 1)

    def poison_gradient(self: PackedDecoder, packed: object, weight: torch.Tensor) -> torch.Tensor:
        states.append(adapter_of(loop).clone())
        return add_gradient(self, packed, weight * (float("nan") if _holds(packed, poisoned) else 1))

    monkeypatch.setattr(MicroStep, "losses", poison_loss)
    monkeypatch.setattr(PackedDecoder, "add_gradient", poison_gradient)
    with pytest.raises(NotFiniteError, match=r"Rows of train.json \(counted from 1\): 6") as caught:
        loop.run()
    assert caught.value.exit_code == 2
    assert torch.isfinite(adapter_of(loop)).all()
    for state in states[-2 if ahead else -1 :]:  # the step after it has begun with the same weights
        assert torch.equal(adapter_of(loop), state)
    assert [path.name for path in loop.output_dir.glob("checkpoint-*")] == [f"checkpoint-{loop.step}"]
    assert f"not finite at step {loop.step + 1};" in str(caught.value)


def _holds(packed: object, completion: list[int]) -> bool:
    labels = packed.labels.tolist()
    return any(labels[i : i + len(completion)] == completion for i in range(len(labels)))
