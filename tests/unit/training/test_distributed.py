"""Several processes train as one: over gloo on the CPU, with real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.fixtures.repository import REPOSITORY
from tests.fixtures.training import adapter_of
from tool_aware.chat_format import encode_example
from tool_aware.config.settings import load_config
from tool_aware.console import Interrupted, UserError, exit_code_of
from tool_aware.engine.optimizer import gradients_in
from tool_aware.model.adapter import new_adapter, prepare_for_training
from tool_aware.model.base import load_base_model
from tool_aware.training.choice import ToolNames
from tool_aware.training.distributed import Processes, digest, joined, tensors_of
from tool_aware.training.loop import TrainingLoop


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def places(count: int) -> list[dict[str, str]]:
    """What a launcher puts into the environment of each of `count` processes."""
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(free_port())
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


# ---- what processes say to each other ---------------------------------------------------------------------


class Raised(NamedTuple):
    """What ended the action of a process; `message` is None where nobody is told."""

    kind: str
    message: str | None
    exit_code: int


def together(action: Callable[[Processes], Any], count: int = 2) -> list[Any]:
    """Run `action` in `count` forked processes that have joined; returns what each returned, or Raised."""
    context = multiprocessing.get_context("fork")

    def work(place: dict[str, str], answer: Any) -> None:
        os.environ.update(place)
        try:
            with joined() as processes:
                result = action(processes)
            answer.send(result)
        except BaseException as error:
            message = None if getattr(error, "is_silent", False) else str(error)
            answer.send(Raised(type(error).__name__, message, exit_code_of(error)))

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    workers = [
        context.Process(target=work, args=(place, sender), daemon=True)
        for place, (_, sender) in zip(places(count), pipes, strict=True)
    ]
    for worker in workers:
        worker.start()
    for _, sender in pipes:
        sender.close()
    answers = [answer_through(receiver) for receiver, _ in pipes]
    for worker in workers:
        worker.join(10)
    return answers


def answer_through(receiver: Connection) -> Any:
    """What a process sent; None if it ended, or was silent for a minute, without a word."""
    try:
        return receiver.recv() if receiver.poll(60) else None
    except EOFError:
        return None


def test_a_process_without_a_launcher_is_alone(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined() as processes:
        assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
        assert processes.gather("x") == ["x"]
        assert processes.first(lambda: 3) == 3
        processes.check_equal("values", 1)


def test_gathered_values_come_in_the_order_of_the_processes():
    assert together(lambda p: p.gather({"rank": p.rank}), count=3) == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3


def test_gradients_are_summed_whatever_their_shapes_and_missing_ones_are_zero():
    def action(processes: Processes) -> list[list[float]]:
        parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1, 2))]
        parameters[0].grad = torch.tensor([1.0, 2.0]) * (processes.rank + 1)
        if processes.rank == 1:
            parameters[1].grad = torch.tensor([[5.0, 6.0]])
        processes.sum_(gradients_in(torch.optim.SGD(parameters), parameters))
        return [parameter.grad.flatten().tolist() for parameter in parameters]

    assert together(action) == [[[3.0, 6.0], [5.0, 6.0]]] * 2


def test_all_start_from_the_first_ones_weights():
    def action(processes: Processes) -> list[float]:
        weight = torch.nn.Parameter(torch.full((2,), float(processes.rank)))
        processes.copy_from_first_([weight])
        return weight.tolist()

    assert together(action) == [[0.0, 0.0]] * 2


def test_what_the_first_process_fails_at_stops_all_with_one_message():
    def action(processes: Processes) -> None:
        def fail() -> None:
            raise UserError("the disk is full")

        processes.first(fail)

    first, second = together(action)
    assert first == Raised("UserError", "the disk is full", 2)
    assert second == Raised("ReportedElsewhere", None, 2)


def test_an_interrupted_first_process_takes_the_others_along_with_its_exit_code():
    def action(processes: Processes) -> None:
        def stop() -> None:
            raise Interrupted(signal.SIGTERM)

        processes.first(stop)

    assert together(action) == [Raised("Interrupted", "SIGTERM", 143), Raised("ReportedElsewhere", None, 143)]


def test_differing_values_name_the_odd_processes():
    settings = ({"lora.r": 8, "train.json": "a"}, {"lora.r": 8, "train.json": "b"})
    first, _, third = together(lambda p: p.check_equal("settings", settings[p.rank == 2]), count=3)
    assert first.message == "settings differ between the processes: 2 from 0\n  train.json"
    assert third == Raised("ReportedElsewhere", None, 2)


@pytest.mark.parametrize(
    "talk", [lambda p: p.gather(None), lambda p: p.sum_([torch.ones(1)]), lambda p: p.copy_from_first_([torch.ones(1)])]
)
def test_a_lost_process_is_an_error_and_not_a_hang(talk):
    def action(processes: Processes) -> None:
        processes.gather("all are here")
        if processes.rank == 0:
            os._exit(9)
        talk(processes)

    lost, survivor = together(action)
    assert survivor.kind == "PeerLost"
    assert "another process of this run has ended" in survivor.message
    assert lost is None


def test_a_digest_sees_every_bit_of_every_precision():
    state = {"a": [torch.ones(2, dtype=torch.bfloat16)], "b": {"c": torch.ones(1)}, "d": 3}
    before = digest(tensors_of(state))
    state["a"][0].view(torch.int16)[1] ^= 1
    assert digest(tensors_of(state)) != before


def test_accelerate_may_not_shard_by_itself(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    first, second = together(lambda p: None)
    assert "config.fsdp.yaml" in first.message
    assert (first.exit_code, second) == (2, Raised("ReportedElsewhere", None, 2))


# ---- what the loop does with it ------------------------------------------------------------------------


@pytest.fixture
def train_together(tiny_model_dir, toy_rows, tiny_tokenizer, tmp_path):
    """Train in two processes; returns what each `look`s at afterwards. Keyword arguments are settings, `__` a dot."""

    def run(
        look: Callable[[TrainingLoop], Any],
        *,
        spoil: Callable[[TrainingLoop], None] = lambda loop: None,
        resume_from: Path | None = None,
        **overrides: object,
    ) -> list[Any]:
        settings = {
            "model.name": tiny_model_dir,
            "training.output_dir": tmp_path / "output",
            "training.learning_rate": "1e-2",
            "training.per_device_train_batch_size": 4,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        config = load_config(REPOSITORY / "config.yaml", [f"{key}={value}" for key, value in settings.items()])
        examples = [encode_example(tiny_tokenizer, row.instruction, row.response) for row in toy_rows[:24]]
        names = ToolNames.of(tiny_tokenizer, config.toolbox)

        def action(processes: Processes) -> Any:
            model = new_adapter(load_base_model(config.model, config.quantization), config)
            prepare_for_training(model, config)
            loop = TrainingLoop(
                model, config, train=examples, val=[], tool_names=names, tracker=None, run={}, processes=processes
            )
            spoil(loop)
            loop.run(resume_from)
            return look(loop)

        return together(action)

    return run


def adapter_list(loop: TrainingLoop) -> list[float]:
    return adapter_of(loop).tolist()


def test_running_out_of_memory_in_one_process_holds_up_no_other_and_changes_nothing(train_together):
    """The allocator's failure is the one thing a CPU cannot produce, so it is raised where it would be."""

    def scarce(loop: TrainingLoop) -> None:
        in_parts = loop.micro_step._in_parts

        def fail_at_first(*arguments: Any) -> Any:
            if loop.processes.rank == 1 and loop.micro_step.limit == 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return in_parts(*arguments)

        loop.micro_step._in_parts = fail_at_first

    settings = {"training__max_steps": 3, "optimization__optim": "adamw_bnb_8bit"}
    plain = train_together(adapter_list, **settings)
    split = train_together(lambda t: (t.micro_step.limit, adapter_list(t)), spoil=scarce, **settings)
    assert [limit for limit, _ in split] == [4, 2]
    assert split[0][1] == split[1][1]
    assert split[0][1] == pytest.approx(plain[0], rel=1e-3, abs=1e-4)


def let_run_ahead(monkeypatch, *ranks):
    """Have these processes be able to launch the next step before they know how one went, as on a GPU."""
    monkeypatch.setattr(TrainingLoop, "can_run_ahead", property(lambda loop: loop.processes.rank in ranks))


def test_processes_that_launch_ahead_learn_the_same_and_all_do_or_none(train_together, monkeypatch, tmp_path):
    def count_waits(loop: TrainingLoop) -> None:
        settle, loop.waits = loop._settle, []
        loop._settle = lambda: (loop.waits.append(loop._unsettled and loop._unsettled.step), settle())

    found = []
    for ranks in ((), (0, 1), (1,)):
        let_run_ahead(monkeypatch, *ranks)
        settings = {"training__max_steps": 4, "training__save_steps": 3, "logging__logging_steps": 1}
        folder = tmp_path / f"output{len(found)}"
        look = train_together(
            lambda loop: (adapter_list(loop), loop.waits), spoil=count_waits, training__output_dir=folder, **settings
        )
        found.append(look)
    alone, ahead, one = found
    at_once, later = [None, 1, None, 2, None, 3, None, 4], [None, 1, 2, 3, None, 4]
    assert [waits for _, waits in alone] == [waits for _, waits in one] == [at_once] * 2
    assert [waits for _, waits in ahead] == [later] * 2
    assert len({tuple(adapter) for look in found for adapter, _ in look}) == 1


@pytest.mark.parametrize("ahead", [(), (0, 1)])
def test_a_gradient_that_is_not_finite_in_one_process_stops_all_and_names_its_rows(
    train_together, monkeypatch, tmp_path, ahead
):
    let_run_ahead(monkeypatch, *ahead)

    def poison(loop: TrainingLoop) -> None:
        add_gradient = loop.micro_step.add_gradient

        def poisoned(*arguments: Any) -> Any:
            done = add_gradient(*arguments)
            if loop.processes.rank == 1 and loop.step == 1:
                loop.optimizer.gradient[0] = float("nan")
            return done

        loop.micro_step.add_gradient = poisoned

    first, second = train_together(adapter_list, spoil=poison, training__max_steps=3)
    assert first.kind == "NotFiniteError"
    assert "not finite at step 2" in first.message
    assert second == Raised("ReportedElsewhere", None, 2)
    assert [path.name for path in (tmp_path / "output").glob("checkpoint-*")] == ["checkpoint-1"]


def test_with_dropout_every_process_goes_on_with_its_own_random_numbers(train_together, tmp_path):
    settings = {"training__max_steps": 4, "training__save_steps": 2, "lora__dropout": 0.3}
    whole = train_together(adapter_list, **settings)
    resumed = train_together(adapter_list, resume_from=tmp_path / "output" / "checkpoint-2", **settings)
    assert resumed == whole
    states = [
        load_file(tmp_path / "output" / "checkpoint-2" / f"random_state_{rank}.safetensors")["cpu"] for rank in range(2)
    ]
    assert not torch.equal(*states)
