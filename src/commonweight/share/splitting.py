"""Splitting what is shared where its readers want different things: by their gradients, before they are summed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..adapt.tasks.scored import output_layer
from ..builder.shared import stack_of
from ..core import CommonweightError
from . import surveys

MOST = 16  # readers whose every partition is tried; of more, neighbours in depth stay together


def gradients(model: Any, rows: Sequence[Any]) -> list[Tensor]:
    """For each depth the gradient of the loss by what it reads of the blocks' linear weights, flattened.

    As if each depth had numbers of its own: the sum over the depths that share a tensor is its gradient. The loss is of
    the next token; of an encoder, half the mean square of its states. Cost: a forward and a backward pass, and the
    unrolled blocks in memory.
    """
    sharing = getattr(model.config, "sharing", None)
    path = surveys.stack(model) if sharing is None else stack_of(model, sharing["path"])[0]
    named = dict(model.named_parameters(remove_duplicate=False))
    inside = {
        n: p.detach().clone().requires_grad_() for n, p in named.items() if n.startswith(f"{path}.") and p.dim() == 2
    }
    outside = {n: p.detach() for n, p in named.items() if n not in inside}
    depth = len(model.get_submodule(path))
    total = [
        torch.zeros(sum(p.numel() for n, p in inside.items() if n.startswith(f"{path}.{i}."))) for i in range(depth)
    ]
    was = model.training
    model.eval()
    for batch in surveys.batches(model, rows):
        labels = {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
        heads = output_layer(model) is not None
        below = not heads and hasattr(model, model.base_model_prefix)  # a classifier's states are those of its base
        more = labels if heads else {"output_hidden_states": True} if below else {}
        out = functional_call(model, {**outside, **inside}, kwargs={**batch, **more}, tie_weights=False)
        last = None if heads else out.hidden_states[-1] if below else out.last_hidden_state
        loss = out.loss if last is None else last.square().mean() / 2
        grads = torch.autograd.grad(loss, list(inside.values()), allow_unused=True)
        for i in range(depth):
            mine = [
                (torch.zeros_like(p) if g is None else g).flatten()
                for (n, p), g in zip(inside.items(), grads)
                if n.startswith(f"{path}.{i}.")
            ]
            total[i] += torch.cat(mine).cpu()
    model.train(was)
    return total


def distances(found: Sequence[Tensor]) -> list[list[float]]:
    """1 - cosine of every two gradients of one length; 2 for opposite ones. Source: arXiv 2203.15207, eq. (4)."""
    same = lambda a, b: torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-6)  # noqa: E731
    return [[0.0 if a is b else float(1 - same(a, b)) for b in found] for a in found]


def partition(members: Sequence[int], apart: Sequence[Sequence[float]]) -> tuple[float, list[int], list[int]]:
    """(gain, one half, the other) of the two groups with the least sum of distances within.

    gain: the mean distance across them less the mean within. All halves are tried of up to 16 members; of more, cuts
    between neighbours."""
    members = list(members)
    if len(members) <= MOST:
        halves = [list(h) for n in range(1, len(members) // 2 + 1) for h in combinations(members, n)]
    else:
        halves = [members[:n] for n in range(1, len(members))]
    best: tuple[float, float, list[int], list[int]] | None = None
    for half in halves:
        other = [m for m in members if m not in half]
        within = [apart[a][b] for g in (half, other) for a, b in combinations(g, 2)]
        across = [apart[a][b] for a in half for b in other]
        gain = sum(across) / len(across) - (sum(within) / len(within) if within else 0.0)
        if best is None or (sum(within), -gain) < (best[0], -best[1]):
            best = (sum(within), gain, half, other)
    if best is None:
        raise CommonweightError(f"{len(members)} reader cannot be split")
    first, second = sorted((best[2], best[3]), key=min)
    return best[1], first, second


def groups(model: Any) -> list[list[int]]:
    """The depths that read the same blocks' weights, by the weight that most of them share."""
    tied = model.config.sharing["tied"]
    if not tied:
        return [[d] for d in range(model.config.num_hidden_layers)]
    owners = min((o for o in tied.values() if None not in o), key=lambda o: len(set(o)), default=[])
    return [[d for d, o in enumerate(owners) if o == own] for own in dict.fromkeys(owners)]


@torch.no_grad()
def split(model: Any, rows: Sequence[Any], optimizer: torch.optim.Optimizer | None = None) -> list[list[int]]:
    """Splits the group of depths whose gradients disagree most into two, each with a copy of what was shared: the
    answers stay what they were. `model` itself is changed.

    optimizer: gets the copies too, with what it remembers of the original. Returns the groups. Source: gradient
    matching of few-shot NAS, arXiv 2203.15207; candidates of an edge are depths here. Differs: the group with the
    largest gain is split, where theirs is the one with the least sum within, which one that agrees wins.
    Raises: CommonweightError where nothing is shared.
    """
    if getattr(model.config, "sharing", None) is None:
        raise CommonweightError(f"{type(model).__name__} is no shared model; make one with share.share(model, method)")
    with torch.enable_grad():
        apart = distances(gradients(model, rows))
    shared = [g for g in groups(model) if len(g) > 1]
    if not shared:
        raise CommonweightError(f"{type(model).__name__}: no depths share their layers; nothing can be split")
    _, _, leaving = max((partition(g, apart) for g in shared), key=lambda p: p[0])
    sharing = model.config.sharing
    _, blocks = stack_of(model, sharing["path"])
    made: dict[int, nn.Parameter] = {}
    tied = {n: list(o) for n, o in sharing["tied"].items()}
    for name, owners in tied.items():
        mine = [d for d in leaving if isinstance(owners[d], int)]
        for own in dict.fromkeys(owners[d] for d in mine):
            members = [d for d in mine if owners[d] == own]
            if len(members) == owners.count(own):
                continue
            old = blocks.get_parameter(f"{members[0]}.{name}")
            new = made.setdefault(id(old), _copy(old, optimizer))
            home = own if own in members else members[0]
            rest = [d for d, o in enumerate(owners) if o == own and d not in members]
            for d in members:
                module = blocks.get_submodule(f"{d}.{name}".rpartition(".")[0])
                setattr(module, name.rpartition(".")[2], new)
                owners[d] = home
            for d in rest:
                owners[d] = rest[0]
    sharing["tied"] = {n: o for n, o in tied.items() if any(own not in (None, d) for d, own in enumerate(o))}
    model.know()
    return groups(model)


def _copy(old: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> nn.Parameter:
    new = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
    if optimizer is not None:
        for group in optimizer.param_groups:
            if any(p is old for p in group["params"]):
                group["params"].append(new)
        if old in optimizer.state:
            optimizer.state[new] = {
                k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[old].items()
            }
    return new
