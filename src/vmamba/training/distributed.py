"""The processes of a run: started by torchrun, or just this one."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vmamba.errors import OptionError, TrainingError, VMambaError

T = TypeVar("T")

#: A smaller module is sharded together with the one around it.
MIN_SHARDED_PARAMETERS = 100_000
#: How long processes wait for each other.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """Rank of this process among those that take part.

    Attributes:
        device: Where this process computes.
        rank: Its number.
        size: How many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; a rendezvous."""
        if self.size == 1:
            return list(values)
        double = torch.float64 if self.device.type != "mps" else torch.float32
        total = torch.tensor(values, dtype=double, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """Let the first process work; its result in all of them, or its error.

        Raises:
            VMambaError: What `work` raises; as `TrainingError` in the other processes.
            OSError: Likewise.
        """
        if self.size == 1:
            return work()
        result: T | None = None
        error: Exception | None = None
        if self.first:
            try:
                result = work()
            except (VMambaError, OSError) as caught:
                error = caught
        problem, result = self.broadcast((None if error is None else str(error), result))
        if error is not None:
            raise error
        if problem is not None:
            raise TrainingError(problem)
        return cast(T, result)


@contextmanager
def init_distributed(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did.

    Args:
        device: Kind of device; with several GPUs each process takes the one of its local rank.

    Raises:
        OptionError: If torchrun started more processes on this machine than it has GPUs.
        TrainingError: If the first process cannot be reached.
    """
    size, rank, local = (int(os.environ.get(name, usual)) for name, usual in _ENVIRONMENT)
    if "WORLD_SIZE" not in os.environ:
        yield Processes(device)
        return
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise OptionError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = _unused(store, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Processes(device, rank, size)
    finally:
        dist.destroy_process_group()


def _unused(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of the store that no earlier start of these processes has written to.

    PyTorch 2.15's torchrun keeps its store when it starts workers anew, and with it the addresses of dead ones. The
    first process names a new part; the others take the name once it comes with the number that they answered with.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("vmamba/part", mine)
        answers = [store.get(f"vmamba/{mine}/{other}").decode() for other in range(1, size)]  # waits for each
        store.set(f"vmamba/{mine}/answers", ",".join(["", *answers]))
        return dist.PrefixStore(mine, store)
    end = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < end:
        part = store.get("vmamba/part").decode()
        store.set(f"vmamba/{part}/{rank}", mine)
        if store.check([f"vmamba/{part}/answers"]):
            answers = store.get(f"vmamba/{part}/answers").decode().split(",")
            if len(answers) == size and answers[rank] == mine:
                return dist.PrefixStore(part, store)
        time.sleep(0.05)
    raise TrainingError("the first process of the run did not answer; is it running, and its address reachable?")


_ENVIRONMENT = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))


def restarted() -> bool:
    """True if torchrun started these processes anew after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def distribute(model: nn.Module, how: str, processes: Processes) -> nn.Module:
    """The model to call in training.

    Args:
        model: On the device of this process; sharded in place by ``"fsdp"``.
        how: ``"ddp"`` or ``"fsdp"``.
        processes: Who takes part.

    Raises:
        OptionError: For ``"fsdp"`` without torchrun.
    """
    if how == "fsdp":
        if not dist.is_initialized():
            raise OptionError("distribution: fsdp needs several processes; launch with torchrun")
        shard(model)
        return model
    if processes.size == 1:
        return model
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: nn.Module) -> None:
    """FSDP2, in place: one group of parameters per block of a sequence of blocks, one for the rest."""
    blocks = [b for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList)) for b in m.children()]
    for block in reversed(blocks):  # inner ones first
        if sum(p.numel() for p in block.parameters()) >= MIN_SHARDED_PARAMETERS and not isinstance(
            block, nn.ModuleList
        ):
            fully_shard(block)
    fully_shard(model)


def without_sync(model: nn.Module, accumulating: bool) -> AbstractContextManager[Any]:
    """While gradients are accumulated, processes need not exchange them."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not accumulating)
        return nullcontext()
    if isinstance(model, DistributedDataParallel) and accumulating:
        return model.no_sync()
    return nullcontext()
