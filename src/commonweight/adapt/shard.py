"""A frozen base of which each process holds a share (FSDP2).

A block's numbers are gathered when it runs, in the forward pass and once more in the backward pass, and let go after
it; what stands outside of the blocks, embeddings and a head, stays gathered between the two, and while measuring. Pools
stay whole in every process. Whatever reads the base, a fingerprint or an answer, must be asked for in all processes;
only one of them writes.
"""

from __future__ import annotations

import os

from torch import nn

from ..core import CommonweightError
from ..host.names import named
from ..host.sites import blocks
from . import processes

_YES = ("1", "true", "yes")


def asked(said: bool) -> bool:
    """Whether the base is to be sharded: it was said, or `accelerate launch` was given a configuration with FSDP.

    The latter would shard the pools too, and have other processes load no numbers; what is done here takes its place.
    Raises: CommonweightError for a configuration with DeepSpeed, and where there is but one process.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in _YES:
        raise CommonweightError("accelerate's configuration names DeepSpeed; adapt shards a base with FSDP2: --shard")
    configured = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in _YES
    if configured:
        os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    if said and processes.world() == 1:
        raise CommonweightError(
            "shard: there is one process, which holds the whole base; start several: torchrun --nproc-per-node 2 -m "
            "commonweight adapt ... --shard"
        )
    return (said or configured) and processes.world() > 1


def shard(model: nn.Module, device: str) -> nn.Module:
    """The model, frozen, each of its blocks and the rest of it sharded over all processes.

    Cost: each process has loaded the whole model before, on the CPU.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    processes.join(device)
    model.requires_grad_(False)
    mesh = init_device_mesh(device, (processes.world(),))
    for some in groups(model):
        fully_shard(some, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def groups(model: nn.Module) -> list[list[nn.Module]]:
    """The blocks, those that have a tensor in common together: FSDP2 takes such only in one call, and gathers them at
    the first and lets go after the last."""
    inner = dict(named(model))
    out: list[tuple[set[int], list[nn.Module]]] = []
    for name in blocks(model):
        held, mine = {id(p) for p in inner[name].parameters()}, [inner[name]]
        for group in [g for g in out if g[0] & held]:
            out.remove(group)
            held, mine = held | group[0], group[1] + mine
        out.append((held, mine))
    return [some for _, some in out]


def sharded(model: nn.Module) -> bool:
    if processes.world() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(m, FSDPModule) for m in model.modules())
