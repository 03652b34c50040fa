"""Several processes that train one tenant together, as torchrun and `accelerate launch` start them.

Each has the whole base, or a share of it (`shard`), and a share of the rows of every batch; pools, order and settings
are the same everywhere. Their gradients are summed before each step, so that the step is that of one process with all
rows. The first one alone writes and tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def world() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def first() -> bool:
    return rank() == 0


def local() -> int:
    """Its number on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def join(device: str) -> None:
    """The processes find each other, on the device's own way to talk. Again: nothing."""
    if world() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")


def total(*numbers: float) -> list[float]:
    """The sums over all processes. Every process must ask."""
    if world() == 1:
        return [*numbers]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    out = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(out)
    return out.tolist()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Every parameter's gradient becomes the sum of those of all processes. Every process must ask."""
    mine = list(parameters)
    for p, g in zip(mine, summed([torch.zeros_like(p) if p.grad is None else p.grad for p in mine])):
        p.grad = g


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of tensors over all processes, in one message. Every process must ask, with the same shapes."""
    if world() == 1 or not tensors:
        return [*tensors]
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    return [found.view_as(t).clone() for t, found in zip(tensors, flat.split([t.numel() for t in tensors]))]


def wait() -> None:
    if world() > 1 and dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """The end of a command: a process group that is left open warns."""
    if world() > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def alone_of(parent: Sequence[str] | None = None) -> int:
    """How many processes `accelerate launch` was asked for where it has started this one alone, else 1.

    On a CPU it starts several with MPI alone, and says nothing. parent: its command line; None to look for it.
    """
    if world() > 1 or "ACCELERATE_USE_CPU" not in os.environ:
        return 1
    line = [*(_parent() if parent is None else parent)]
    if not any("accelerate" in part for part in line):
        return 1
    said = _option(line, "--num_processes", "--num-processes")
    if said is None:
        try:
            from accelerate.commands.config.config_args import load_config_from_file

            said = getattr(load_config_from_file(_option(line, "--config_file", "--config-file")), "num_processes", 1)
        except (ImportError, OSError, ValueError, TypeError, KeyError):
            return 1
    return int(said) if str(said).isdigit() else 1


def _option(line: Sequence[str], *names: str) -> str | None:
    for i, part in enumerate(line):
        key, _, value = part.partition("=")
        if key in names:
            return value or (line[i + 1] if i + 1 < len(line) else None)
    return None


def _parent() -> list[str]:
    """The command that has started this process; nothing where the system does not tell."""
    try:
        import psutil  # accelerate brings it

        return psutil.Process(os.getppid()).cmdline()
    except Exception:  # of the system: another user's process, one that has ended, no /proc
        return []


def told(asked: int) -> str:
    """What is said of so many."""
    return (
        f"accelerate launch was asked for {asked} processes and has started one: on a CPU it starts several with MPI "
        f"alone. Start them with `torchrun --nproc-per-node {asked} -m commonweight adapt ...`, or with `accelerate "
        f"launch --multi_gpu --num_processes {asked}`, which works on a CPU too"
    )
