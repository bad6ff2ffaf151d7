"""Several processes, one GPU each, that train together as one.

`torchrun` and `accelerate launch` start them and tell each its place by environment variables. Each computes its share
of an effective batch, and the gradients are summed once an optimizer step. DistributedDataParallel is not used: it
reduces bucket by bucket through autograd, which the toolkit's decoder does without, and gains nothing where all
gradients are one buffer of 40 MB.

What one process says or decides goes through gloo on the CPU, gradients through NCCL where there are GPUs. Every
process calls the same methods of `Processes` in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tool_aware.console import Interrupted, UserError, exit_code_of, process_count, process_number

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Longer than any process waits for another, as when the first one writes a checkpoint to a slow disk.
PATIENCE = timedelta(minutes=30)


class ReportedElsewhere(UserError):
    """All processes stop for one reason, which another one reports."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("see the message of the first process")
        self.exit_code, self.is_silent = exit_code, True


class PeerLost(UserError):
    """Another process of the run has ended. Its own message says why."""

    def __init__(self) -> None:
        super().__init__("another process of this run has ended; its message says why", fix="continue with --resume")
        self.exit_code = 1


@dataclass(frozen=True)
class Processes:
    """The processes of one run, seen from number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return what each process gave, in their order; all wait for the last. Raises PeerLost."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with _watching_for_losses():
            dist.all_gather_object(values, value)
        return values

    def first(self, action: Callable[[], T]) -> T | None:
        """Run `action` in the first process while the others wait; return its result there, None elsewhere.

        Where it fails, the others raise ReportedElsewhere with its exit code.
        """
        result, failure = None, None
        if self.is_first:
            try:
                result = action()
            except BaseException as error:
                failure = error
        exit_code = self.gather(exit_code_of(failure) if failure else 0)[0]
        if failure:
            raise failure
        if exit_code:
            raise ReportedElsewhere(exit_code)
        return result

    def from_first(self, value: T) -> T:
        """Return the first process's value."""
        return self.gather(value)[0]

    def stop_together(self, error: UserError) -> UserError:
        """Return what to raise where all processes raise the same error: it is told once."""
        return error if self.is_first else ReportedElsewhere(error.exit_code)

    def check_equal(self, what: str, value: object, *, fix: str | None = None) -> None:
        """Raise UserError, on all processes, if `value` is not the same on each; of a dict it names the keys."""
        first, *others = self.gather(value)
        odd = {rank: other for rank, other in enumerate(others, start=1) if other != first}
        if odd:
            lines = [f"{what} differ between the processes: {', '.join(map(str, odd))} from 0"]
            if isinstance(first, dict):
                dicts = [other for other in odd.values() if isinstance(other, dict)]
                lines += [f"  {key}" for key in first if any(other.get(key) != first[key] for other in dicts)]
            raise self.stop_together(UserError("\n".join(lines), fix=fix))

    def check_replicas(self, parameters: Iterable[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Raise UserError, on all processes, unless each has the same weights and optimizer state, to the bit."""
        if self.count > 1:
            state = digest([*parameters, *tensors_of(optimizer.state_dict())])
            self.check_equal("the adapters or their optimizer states", state, fix="--resume from the last checkpoint")

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place and in one go."""
        if self.count == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        whole = tensors[0] if len(tensors) == 1 else torch._utils._flatten_dense_tensors(tensors)
        with _watching_for_losses():
            dist.all_reduce(whole)
        if len(tensors) > 1:
            torch._foreach_copy_(list(tensors), list(torch._utils._unflatten_dense_tensors(whole, tensors)))

    def copy_from_first_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite each tensor with the first process's."""
        if self.count == 1:
            return
        import torch.distributed as dist

        with _watching_for_losses():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


ALONE = Processes()


@contextlib.contextmanager
def _watching_for_losses() -> Iterator[None]:
    """Turn gloo's error about a broken connection into PeerLost. NCCL has none: there torchrun ends who is left."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise PeerLost from error


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that a launcher has started; without one this process is alone, and torch is not loaded."""
    _refuse_half_a_launcher()
    if process_count() == 1:
        yield ALONE
        return
    _refuse_plugins()
    import torch.distributed as dist

    dist.init_process_group(_backend(), timeout=PATIENCE)
    processes = Processes(dist.get_rank(), dist.get_world_size())
    try:
        yield processes
    except PeerLost:
        raise  # leaving the group in order would mean waiting for the lost one
    except (UserError, Interrupted):
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _refuse_half_a_launcher() -> None:
    """Raise UserError if variables of a launcher are left over or set by hand, so that processes would not meet."""
    count, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    numbers = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0")}
    problems = [f"{name}={value} is not a number" for name, value in numbers.items() if not value.isdecimal()]
    if not problems and int(count) > 1:
        problems = [
            f"{name} is not set"
            for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
            if name not in os.environ
        ]
        if int(rank) >= int(count):
            problems.append(f"RANK={rank}, but WORLD_SIZE={count}")
    if problems:
        error = UserError(
            "; ".join(problems),
            where="the environment of a launcher",
            fix="start with torchrun, which sets them all, or unset WORLD_SIZE, RANK and LOCAL_RANK",
        )
        # Where a launcher has set an address, there is a process 0, which says it for all.
        is_another = rank.isdecimal() and int(rank) > 0 and "MASTER_ADDR" in os.environ
        raise ReportedElsewhere(error.exit_code) if is_another else error


def _refuse_plugins() -> None:
    """Raise UserError if accelerate is told to shard by itself: it would shard the adapter and its optimizer too."""
    asked_for = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    if asked_for:
        error = UserError(
            f"accelerate is to use {asked_for[0]}, which shards the adapter as well",
            where="accelerate's config file",
            fix="distributed_type: MULTI_GPU there; --config config.fsdp.yaml spreads the frozen weights",
        )
        raise Processes(process_number()).stop_together(error)


def _backend() -> str:
    import torch

    if not torch.cuda.is_available():
        return "gloo"
    local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(
            f"process {local_rank} of this machine has no GPU of its own: there are {gpus}",
            fix=f"torchrun --nproc-per-node {gpus}",
        )
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"


def hint_at_launcher(processes: Processes) -> str | None:
    """Return how to use all GPUs that are visible, None if this run does."""
    import torch

    gpus = torch.cuda.device_count()
    if processes.count > 1 or gpus < 2:
        return None
    return f"one of {gpus} GPUs is used; all of them: torchrun --nproc-per-node {gpus} train_tool_aware.py ..."


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return the sha256 of the bytes of `tensors`, whatever device they are on."""
    import torch

    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return total.hexdigest()


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dicts and lists, in order."""
    import torch

    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            yield from tensors_of(item)
