"""Several processes that work as one: PyTorch's own, started by torchrun; DDP where they train.

    torchrun --nproc-per-node 2 train.py --steps 16000

Batch k is the same function of the seed and of k for any number of processes; each works on its rows of it, and DDP
averages the gradients, so that they are those of one process (to rounding). Clips are shared by many.py. One process,
rank 0, writes. Without torchrun every function here is that of a single process.

With --max-restarts torchrun starts all of them anew when one has died, and training goes on from its last state. Over
several machines that needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, else the new ones find addresses of the dead ones.

Used by train.py, objective.py, many.py, sample.py and evaluate.py.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

RESTARTS = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # how often torchrun started us again after a failure


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Joins the others, if there are any, and yields this process's device."""
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    store, rank, count = next(dist.rendezvous("env://"))
    # the store of a single torchrun outlives a restart, dead addresses in it
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = dist.PrefixStore(f"start {RESTARTS}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rows(n: int) -> slice:
    """This process's share of n rows: as many as every other's, in the order of the ranks."""
    if n % count():
        raise ValueError(f"{n} rows cannot be shared by {count()} processes: take a multiple of it")
    share = n // count()
    return slice(rank() * share, (rank() + 1) * share)


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Rank 0 does what leaves files behind (an index, a cache); the others then find it done."""
    if rank() > 0:
        dist.barrier()
    yield
    if count() > 1 and rank() == 0:
        dist.barrier()


def agree(*values: float) -> tuple[float, ...]:
    """The largest of each value among all processes: whether any was asked to stop, and how far all have come."""
    if count() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        shared = shared.cuda()
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return tuple(shared.tolist())


def union(parts: dict) -> dict:
    """What all processes hold, in each of them."""
    if count() == 1:
        return parts
    held = [None] * count()
    dist.all_gather_object(held, parts)
    return {key: value for part in held for key, value in part.items()}


class Step(nn.Module):
    """One training step's loss as the forward of a module that holds the network, which is what DDP wraps."""

    def __init__(self, network: nn.Module, loss_of):
        super().__init__()
        self.network, self.loss_of = network, loss_of

    def forward(self, batch: tuple) -> tuple:
        return self.loss_of(batch)


def shared(network: nn.Module, loss_of):
    """loss_of, with gradients averaged over the processes by its backward.

    The network's parts take turns (cross-entropy alone asks no repair), hence find_unused_parameters. Gradients within
    the loss are those of inputs, of which DDP knows nothing; only its own backward reaches parameters.
    """
    if count() == 1:
        return loss_of
    return nn.parallel.DistributedDataParallel(Step(network, loss_of), find_unused_parameters=True)
