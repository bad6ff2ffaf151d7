"""The loop: effective batches, the meaning of the loss, validation, and what happens when a step goes wrong."""

from __future__ import annotations

import contextlib
import random
import signal
from pathlib import Path

import pytest
import torch

from tool_aware.config.settings import Config
from tool_aware.console import Interrupted
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.micro_step import MicroStep
from tool_aware.engine.optimizer import FlatAdamW, clip_
from tool_aware.training.schedule import Schedule
from tool_aware.training.trainer import MicroBatches, NotFiniteError, PackedTrainer, train
from tool_aware.training.validation import choose_adapter


def adapter_of(trainer: PackedTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def test_every_row_is_seen_once_an_epoch_in_an_order_that_the_seed_decides():
    batches = MicroBatches(10, 4, seed=1)
    epochs = []
    for epoch in range(2):
        batches.epoch = epoch
        epochs.append([batches[i] for i in range(len(batches))])
        assert sorted(row for rows in epochs[-1] for row in rows) == list(range(10))
    assert epochs[0] != epochs[1]
    assert [MicroBatches(10, 4, seed=1)[i] for i in range(3)] == epochs[0]


def test_processes_share_an_effective_batch_between_them():
    alone = MicroBatches(10, 4, seed=1)
    shared = [MicroBatches(10, 2, seed=1, rank=rank, processes=2) for rank in range(2)]
    for index in range(len(alone)):
        assert sorted(shared[0][index] + shared[1][index]) == sorted(alone[index])


def test_processes_get_packs_of_nearly_equal_length():
    generator = random.Random(0)
    lengths = [generator.randrange(30, 300) for _ in range(640)]
    shares = [MicroBatches(640, 32, seed=1, rank=rank, processes=2, lengths=lengths) for rank in range(2)]
    for index in range(10):
        first, second = (sum(lengths[row] for row in share[index]) for share in shares)
        assert abs(first - second) < 0.02 * first


def test_no_row_is_taken_twice_where_there_are_fewer_rows_than_processes():
    shared = [MicroBatches(9, 1, seed=1, rank=rank, processes=4) for rank in range(4)]
    assert [len(shared[rank][2]) for rank in range(4)] == [1, 0, 0, 0]


def test_the_schedule_counts_the_last_partial_batch(config: Config):
    assert Schedule.of(config, 81) == Schedule(examples=81, effective_batch=8, steps_per_epoch=11, steps=33)


@pytest.mark.parametrize("packing", ["prefix", "block", "none"])
def test_packing_and_accumulation_do_not_change_what_is_learnt(make_trainer, packing):
    reference = make_trainer(training__max_steps=3, training__packing="none")
    train(reference, None)
    other = make_trainer(
        training__max_steps=3,
        training__packing=packing,
        training__per_device_train_batch_size=2,
        training__gradient_accumulation_steps=4,
    )
    train(other, None)
    # AdamW divides by the gradient's own size, so float32 rounding is amplified where gradients are near zero.
    difference = (adapter_of(reference) - adapter_of(other)).norm() / adapter_of(reference).norm()
    assert difference < 1e-3


def test_a_run_goes_on_with_another_split_of_its_effective_batch(make_trainer):
    """As it does on another card, whose memory plan is another one."""
    whole = make_trainer(
        training__max_steps=6, training__save_steps=4
    )  # 3 steps an epoch: the checkpoint is inside one
    train(whole, None)
    split = {"training__per_device_train_batch_size": 2, "training__gradient_accumulation_steps": 4}
    resumed = make_trainer(training__max_steps=6, **split)
    train(resumed, Path(whole.args.output_dir) / "checkpoint-4")
    assert resumed.state.global_step == 6
    difference = (adapter_of(whole) - adapter_of(resumed)).norm() / adapter_of(whole).norm()
    assert difference < 1e-4


@pytest.mark.parametrize("decoder", ["auto", "transformers"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_resumed_run_learns_what_an_uninterrupted_one_does(make_trainer, dtype, decoder):
    """In 16 bits, as on a GPU, the adapter has to stay in 16 bits, and the decoder's and optimizer's own."""
    settings = {"quantization__bnb_4bit_compute_dtype": dtype, "optimization__decoder": decoder}
    whole = make_trainer(training__max_steps=4, training__save_steps=2, training__eval_steps=2, **settings)
    train(whole, None)
    resumed = make_trainer(training__max_steps=4, training__save_steps=2, training__eval_steps=2, **settings)
    train(resumed, Path(whole.args.output_dir) / "checkpoint-2")
    assert adapter_of(resumed).dtype == getattr(torch, dtype)
    assert torch.equal(adapter_of(whole), adapter_of(resumed))
    assert resumed.validations.history == whole.validations.history


def test_a_resumed_run_saves_as_often_as_it_is_told_to_now(make_trainer):
    whole = make_trainer(training__max_steps=6, training__save_steps=4)
    train(whole, None)
    folder = Path(whole.args.output_dir)
    resumed = make_trainer(training__max_steps=6, training__save_steps=1, training__output_dir=folder)
    train(resumed, folder / "checkpoint-4")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]


def test_a_run_of_one_step_learns(make_trainer):
    trainer = make_trainer(training__max_steps=1)
    before = adapter_of(trainer).clone()
    train(trainer, None)
    assert not torch.equal(before, adapter_of(trainer))


def test_a_launchers_mixed_precision_is_not_heeded(make_trainer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_trainer().accelerator.mixed_precision == "no"


def test_a_decoder_that_works_on_other_parameters_than_the_models_is_refused(make_trainer):
    trainer = make_trainer(training__max_steps=1)
    for module in trainer.model.modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].weight = torch.nn.Parameter(module.lora_A["default"].weight.detach().clone())
    with pytest.raises(RuntimeError, match="was replaced"):
        train(trainer, None)


def test_checkpointing_layers_does_not_change_what_is_learnt(make_trainer):
    results = []
    for is_on in ("true", "false"):
        trainer = make_trainer(training__max_steps=2, optimization__gradient_checkpointing=is_on)
        train(trainer, None)
        results.append(adapter_of(trainer))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("is_on", "passes"), [("true", 2), ("false", 1)])
def test_with_checkpointing_the_librarys_layers_run_twice(make_trainer, is_on, passes):
    settings = {"optimization__decoder": "transformers", "optimization__gradient_checkpointing": is_on}
    trainer = make_trainer(training__max_steps=3, **settings)
    trainer.scores_at = lambda step: False  # afterwards, the model is set to train anyway
    calls = []
    first_layer = trainer.model.get_base_model().model.layers[0]
    first_layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    train(trainer, None)
    assert len(calls) == 3 * passes


def test_the_loss_of_rows_not_trained_on_falls(make_trainer):
    trainer = make_trainer(training__max_steps=12, training__eval_steps=4)
    before = trainer.evaluate()["eval_loss"]
    train(trainer, None)
    assert trainer.validations.history[-1].loss < before - 0.3


def test_scorings_that_stop_getting_better_end_the_run_and_the_best_adapter_is_exported(make_trainer):
    settings = {
        "training__learning_rate": 0.1,  # too high on purpose
        "training__lr_scheduler_type": "constant",
        "training__max_steps": 12,
        "training__eval_steps": 1,
        "training__early_stopping_patience": 2,
    }
    trainer = make_trainer(**settings)
    train(trainer, None)
    validations, steps = trainer.validations, trainer.state.global_step
    assert steps - 2 == validations.best.step < 10
    (checkpoint,) = Path(trainer.args.output_dir).glob("checkpoint-*")

    exported = choose_adapter(trainer.model, validations, steps, keep_best=True)
    assert exported.step == validations.best.step
    assert trainer._score().loss == validations.best.loss

    resumed = make_trainer(**settings)
    train(resumed, checkpoint)
    assert resumed.state.global_step == steps
    assert choose_adapter(resumed.model, resumed.validations, steps, keep_best=True) == exported
    assert torch.equal(adapter_of(resumed), adapter_of(trainer))


def test_without_keep_best_the_last_step_is_exported(make_trainer):
    trainer = make_trainer(training__learning_rate=0.5, training__max_steps=4, training__eval_steps=1)
    train(trainer, None)
    last = adapter_of(trainer).clone()
    exported = choose_adapter(trainer.model, trainer.validations, 4, keep_best=False)
    assert exported.step == 4
    assert exported.validation == trainer.validations.history[-1]
    assert torch.equal(adapter_of(trainer), last)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_every_optimizer_of_the_config_steps(make_trainer, optim):
    trainer = make_trainer(training__max_steps=2, optimization__optim=optim)
    before = adapter_of(trainer).clone()
    train(trainer, None)
    assert not torch.equal(before, adapter_of(trainer))


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(make_trainer, monkeypatch, capsys):
    """The allocator's failure is the one thing a CPU cannot produce, so it is raised where it would be."""
    expected = make_trainer(training__max_steps=2)
    train(expected, None)
    trainer = make_trainer(training__max_steps=2)
    add_gradient = PackedDecoder.add_gradient

    def scarce(self: PackedDecoder, packed: object, weight: torch.Tensor) -> torch.Tensor:
        loss = add_gradient(self, packed, weight)  # what was added before memory ran out has to be taken back
        if packed.examples > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(PackedDecoder, "add_gradient", scarce)
    train(trainer, None)
    assert trainer.micro_step.limit == 2
    assert "micro-batches are split into 2 examples" in capsys.readouterr().err
    told = [f"out of GPU memory: micro-batches are split into {examples} examples from here on" for examples in (4, 2)]
    assert trainer.micro_step.concessions == told
    torch.testing.assert_close(adapter_of(trainer), adapter_of(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("step", "told"), [(1, "saving a checkpoint after this step"), (3, "all steps are done")])
def test_a_signal_is_answered_with_what_will_happen(make_trainer, monkeypatch, capsys, step, told):
    trainer = make_trainer(training__max_steps=3, training__eval_steps=1)
    score = trainer._score

    def interrupted():
        if trainer.state.global_step == step:
            signal.raise_signal(signal.SIGTERM)
        return score()

    monkeypatch.setattr(trainer, "_score", interrupted)
    with pytest.raises(Interrupted) if step == 1 else contextlib.nullcontext():
        train(trainer, None)
    assert f"SIGTERM: {told}" in capsys.readouterr().err


def test_running_out_of_memory_while_scoring_takes_fewer_rows_at_once_and_finds_the_same(
    make_trainer, monkeypatch, capsys
):
    trainer = make_trainer()
    expected = trainer._score()
    answer_states = MicroStep.answer_states

    def scarce(self: MicroStep, examples: list) -> tuple:
        if len(examples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_states(self, examples)

    monkeypatch.setattr(MicroStep, "answer_states", scarce)
    found = trainer._score()
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.tool_accuracy == expected.tool_accuracy
    assert "scored in batches of 2" in capsys.readouterr().err


def test_every_micro_batch_is_laid_out_and_prepared_once_also_ahead_of_its_turn(make_trainer, monkeypatch):
    trainer = make_trainer(
        training__num_train_epochs=1,
        training__per_device_train_batch_size=2,
        training__gradient_accumulation_steps=4,
        training__eval_steps=1000,
    )
    lay_out, prepare = MicroStep._lay_out, PackedDecoder._prepare
    laid_out, prepared = [], []
    monkeypatch.setattr(trainer, "scores_at", lambda step: False)
    monkeypatch.setattr(MicroStep, "_lay_out", lambda self, rows: laid_out.append(rows) or lay_out(self, rows))
    monkeypatch.setattr(PackedDecoder, "_prepare", lambda self, pack: prepared.append(pack) or prepare(self, pack))
    train(trainer, None)
    assert len(laid_out) == len(prepared) == 24 // 2


def test_out_of_memory_the_decoder_first_gives_up_what_only_saves_time(make_trainer, monkeypatch, capsys):
    expected = make_trainer(training__max_steps=2)
    train(expected, None)
    settings = {"gradient_checkpointing": "true", "kept_layers": 2, "cached_layers": 1, "offload": "false"}
    trainer = make_trainer(training__max_steps=2, **{f"optimization__{key}": value for key, value in settings.items()})
    add_gradient = PackedDecoder.add_gradient
    failures = iter([True, True])

    def scarce(self: PackedDecoder, packed: object, weight: torch.Tensor) -> torch.Tensor:
        loss = add_gradient(self, packed, weight)
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(PackedDecoder, "add_gradient", scarce)
    train(trainer, None)
    told = capsys.readouterr().err
    assert "out of GPU memory: all activations are computed again from here on" in told
    assert "out of GPU memory: no weights are kept dequantised from here on" in told
    assert trainer.micro_step.limit == 8
    torch.testing.assert_close(adapter_of(trainer), adapter_of(expected), rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_names_the_rows_and_keeps_the_last_finite_state(make_trainer, monkeypatch):
    trainer = make_trainer(training__max_steps=3)
    losses, add_gradient = MicroStep.losses, PackedDecoder.add_gradient
    poisoned = trainer.examples[5].completion
    states = []

    def poison_loss(self: MicroStep, packed: object) -> torch.Tensor:
        return losses(self, packed) * (float("nan") if _holds(packed, poisoned) else 1)

    def poison_gradient(self: PackedDecoder, packed: object, weight: torch.Tensor) -> torch.Tensor:
        states.append(adapter_of(trainer).clone())
        return add_gradient(self, packed, weight * (float("nan") if _holds(packed, poisoned) else 1))

    monkeypatch.setattr(MicroStep, "losses", poison_loss)
    monkeypatch.setattr(PackedDecoder, "add_gradient", poison_gradient)
    with pytest.raises(NotFiniteError, match=r"Rows of train.json \(counted from 1\): 6") as caught:
        train(trainer, None)
    assert caught.value.exit_code == 2
    assert torch.isfinite(adapter_of(trainer)).all()
    torch.testing.assert_close(adapter_of(trainer), states[-1])
    assert list(Path(trainer.args.output_dir).glob("checkpoint-*"))


def _holds(packed: object, completion: list[int]) -> bool:
    labels = packed.labels.tolist()
    return any(labels[i : i + len(completion)] == completion for i in range(len(labels)))


def test_sixteen_bit_adapters_keep_a_float32_master():
    torch.manual_seed(0)
    start = torch.randn(8, 8)
    exact, rounded = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.bfloat16())
    reference = torch.optim.AdamW([exact], lr=1e-4, weight_decay=0.0)
    ours = FlatAdamW([rounded], lr=1e-4, weight_decay=0.0)
    begin = ours.param_groups[0]["params"][0].clone()
    for _ in range(20):
        exact.grad = torch.ones(8, 8)
        rounded.grad = torch.ones(8, 8, dtype=torch.bfloat16)
        reference.step()
        ours.step()
    moved = (ours.param_groups[0]["params"][0] - begin).view(8, 8)
    torch.testing.assert_close(moved, exact.detach() - start, rtol=1e-3, atol=1e-7)
    assert rounded.dtype == torch.bfloat16


def test_the_flat_optimizer_steps_like_torchs_own():
    torch.manual_seed(0)
    shapes = [(3, 4), (5,), (2, 2)]
    ours, theirs = (
        [torch.nn.Parameter(torch.arange(1.0, 1 + torch.Size(s).numel()).view(s)) for s in shapes] for _ in "ab"
    )
    flat, reference = FlatAdamW(ours, lr=0.1, weight_decay=0.01), torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.01)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            gradient = torch.randn_like(b)
            a.grad.copy_(gradient)
            b.grad = gradient.clone()
        norms = clip_(flat.collect_gradients(), 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        torch.testing.assert_close(*norms)
        flat.step()
        reference.step()
        flat.zero_grad(set_to_none=True)
        assert all((a.grad == 0).all() for a in ours)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_master_survives_saving_and_loading(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(8).bfloat16())
    optimizer = FlatAdamW([parameter], lr=1e-3)
    parameter.grad.fill_(1)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    restored = torch.nn.Parameter(torch.zeros(8).bfloat16())
    other = FlatAdamW([restored], lr=1e-3)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    torch.testing.assert_close(other.param_groups[0]["params"][0], optimizer.param_groups[0]["params"][0])
    torch.testing.assert_close(restored, parameter)
