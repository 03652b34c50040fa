"""Optimizers by the names that people ask for, through the library that has each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from ..core import CommonweightError, unknown
from ..core.schedule import resizing
from ..host import Tenant
from ..host.common import distinct
from ..host.module import together
from .gradnormlorp import GradNormLoRP, weights
from .names import OPTIMIZERS
from .recipe import Recipe
from .scheduled import alone
from .stiefel import stiefel

Groups = list[dict[str, Any]]
Made = Callable[[Groups, float], Optimizer]  # of groups and a weight decay
Maker = Callable[[Groups, float, Mapping[int, str]], Optimizer]  # and of each pool's name, by its id
ONE_RATE = ("prodigy",)  # it finds its rate itself, one for all
IN_BLOCKS = ("adamw-8bit", "lion-8bit")  # what has no rows and columns that could be carried
OF_POOLS: dict[str, Callable[[Groups], Optimizer]] = {"stiefel": stiefel}  # what a pool may name


def make(recipe: Recipe, tenants: Sequence[Tenant], scheduled: bool = False, maker: Maker | None = None) -> Optimizer:
    """The optimizer of a run over the tenants' pools, each pool with its own rate.

    scheduled: each pool in a group of its own, whatever the methods ask. maker: in place of what the recipe names.
    Pools that name an optimizer are trained by that, beside it.

    Raises: CommonweightError for an unknown name, a library that is not there, and what does not go together.
    """
    name = recipe.optimizer
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    if name in ONE_RATE:
        if recipe.lora_plus is not None:
            raise CommonweightError(f"lora_plus with {name}: it has one learning rate for all pools; leave one out")
        groups = distinct(g for t in tenants for g in t.param_groups(recipe.lr or 1.0, one=True))
        groups = [{"params": [p for g in groups for p in g["params"]], "lr": recipe.lr or 1.0}]
    else:
        groups = distinct(
            g for t in tenants for g in t.param_groups(recipe.lr or t.method.lr, lora_plus=recipe.lora_plus)
        )
    own = [t.method.name for t in tenants if _between(t)]
    if scheduled or own:
        if name in ONE_RATE:
            one = next(iter(own), "what it is trained by")
            raise CommonweightError(f"{name} has one rate for all pools, {one} one for each: take another optimizer")
        groups = alone(groups)
    if name in IN_BLOCKS and (moving := [t.method.name for t in tenants if resizing(_between(t))]):
        raise CommonweightError(
            f"{name} holds its moments in blocks of 8 bits, and {moving[0]} gives its pools other shapes as it trains: "
            f"take {name.removesuffix('-8bit')}"
        )
    named = _named(tenants)
    if named and (name in ONE_RATE or maker is not None):
        what = f"{name} has one rate for all" if maker is None else "what it is trained by has an optimizer of its own"
        raise CommonweightError(f"{what}, and {_whose(tenants)}: take another one, or another method")
    if maker is not None:
        return maker(groups, recipe.weight_decay, {id(p): n for n, p in together(tenants).items()})
    frozen = weights(tenants) if name == "gradnormlorp" else None

    def rest(groups: Groups) -> Optimizer:
        if frozen is not None:
            return _projected(groups, recipe.weight_decay, frozen)
        return _MAKERS[name](groups, recipe.weight_decay)

    return _of_pools(groups, named, rest)


def _between(tenant: Tenant) -> Any:
    return tenant.method.scheduled(tenant.config, tenant.plan)


def schedule(name: str, optimizer: Optimizer, warm: int, steps: int) -> Any:
    """Linear warm-up and decay; schedule-free optimizers keep their rate after the warm-up."""
    if name == "schedule-free":
        return get_constant_schedule_with_warmup(optimizer, warm)
    return get_linear_schedule_with_warmup(optimizer, warm, steps)


def averaged(optimizer: Any) -> None:
    """Schedule-free optimizers train at one point and answer at another: the latter is put into the pools."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if callable(there := getattr(inner, "eval", None)):
        there()


def state(optimizer: Any, pools: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """(tensors by ``key/pool``, numbers of each group and, in the first, of each pool): what a resumed run needs."""
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors, numbers = {}, {}
    for n, p in pools.items():
        for k, v in inner.state.get(p, {}).items():
            if isinstance(v, Tensor):
                tensors[f"{k}/{n}"] = v
            else:
                numbers[f"{k}/{n}"] = v
    groups = [{k: v for k, v in g.items() if _plain(v)} for g in inner.param_groups]
    groups[0] = {**groups[0], "of pools": numbers}
    return tensors, groups


def restore(optimizer: Any, pools: Mapping[str, Tensor], tensors: Mapping[str, Tensor], groups: Groups) -> None:
    """What `state` gave."""
    inner = getattr(optimizer, "optimizer", optimizer)
    numbers = groups[0].pop("of pools")
    for key, value in {**tensors, **numbers}.items():
        k, _, n = key.partition("/")
        held = inner.state.get(pools[n]) or {}
        if isinstance(value, Tensor):  # AdamW counts its steps on the CPU
            value = value.clone() if k == "step" else value.to(pools[n].device)
        inner.state[pools[n]] = {**held, k: value}
    for group, was in zip(inner.param_groups, groups):
        group.update(was)


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | bool | str)


class Several(Optimizer):
    """Optimizers side by side, as one: each has its own groups; rates are set in them as in one's own."""

    def __init__(self, parts: Sequence[Optimizer]):
        self.parts = list(parts)
        self.defaults = {}

    # looked up each time: loading a state, which accelerate does at the start, puts new ones in
    @property
    def param_groups(self) -> Groups:  # type: ignore[override]
        return [g for p in self.parts for g in p.param_groups]

    @property
    def state(self) -> _States:  # type: ignore[override]
        return _States(self.parts)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for p in self.parts:
            p.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.parts:
            p.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [p.state_dict() for p in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for p, s in zip(self.parts, state_dict["parts"]):
            p.load_state_dict(s)


class _States:
    """The states of several optimizers, each parameter's in its own."""

    def __init__(self, parts: Sequence[Optimizer]):
        self.of = {q: p.state for p in parts for g in p.param_groups for q in g["params"]}

    def get(self, key: Tensor, default: Any = None) -> Any:
        return self.of[key].get(key, default)

    def __setitem__(self, key: Tensor, value: Any) -> None:
        self.of[key][key] = value


def _adamw(groups: Groups, decay: float) -> Optimizer:
    pools = [p for g in groups for p in g["params"]]
    plain = all(p.device.type == "cpu" and p.is_floating_point() and p.is_contiguous() for p in pools)
    # one pass over all pools; on a GPU the step's number would have to lie there too. It goes through memory, whatever
    # the strides: of a pool that lies otherwise than its gradient or moments it would pair the wrong numbers
    return torch.optim.AdamW(groups, weight_decay=decay, fused=True if plain else None)


def _muon(groups: Groups, decay: float) -> Optimizer:
    """Muon for matrices, at AdamW's rates (Moonlight's scaling); AdamW for all other pools."""

    def made(matrices: Groups) -> Optimizer:
        return torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw")

    return _beside_adamw(groups, decay, lambda p: p.dim() == 2, made)


def _named(tenants: Sequence[Tenant]) -> dict[Tensor, str]:
    """What the pools name that are trained by an optimizer of their own; a whole model has no plan."""
    plans = [(t, t.plan.pools) for t in tenants if t.plan is not None]
    return {p: by for t, pools in plans for n, p in t.named_parameters() if (by := pools[n].optimizer)}


def _whose(tenants: Sequence[Tenant]) -> str:
    t, n = next((t, n) for t in tenants for n, _ in t.named_parameters() if t.plan.pools[n].optimizer)
    return f"{t.method.name} trains {n} by {t.plan.pools[n].optimizer}"


def _of_pools(groups: Groups, named: Mapping[Tensor, str], rest: Callable[[Groups], Optimizer]) -> Optimizer:
    """Each pool by the optimizer that it names, all other ones by `rest`."""
    for by in sorted(set(named.values())):
        if by not in OF_POOLS:
            raise unknown("optimizer of a pool", by, OF_POOLS)
        rest = partial(_beside, mine=lambda p, by=by: named.get(p) == by, make=OF_POOLS[by], rest=rest)
    return rest(groups)


def _projected(groups: Groups, decay: float, frozen: Mapping[Tensor, Callable[[], Tensor]]) -> Optimizer:
    """GradNormLoRP for whole weights; AdamW for all other pools."""
    return _beside_adamw(groups, decay, lambda p: p in frozen, lambda mine: GradNormLoRP(mine, frozen, decay))


def _beside_adamw(
    groups: Groups, decay: float, mine: Callable[[Tensor], bool], make: Callable[[Groups], Optimizer]
) -> Optimizer:
    """An optimizer for some pools, and AdamW for the rest."""
    return _beside(groups, mine, make, lambda rest: _adamw(rest, decay))


def _beside(
    groups: Groups,
    mine: Callable[[Tensor], bool],
    make: Callable[[Groups], Optimizer],
    rest: Callable[[Groups], Optimizer],
) -> Optimizer:
    """An optimizer for some pools, and another for the rest."""
    first = [{**g, "params": [p for p in g["params"] if mine(p)]} for g in groups]
    others = [{**g, "params": [p for p in g["params"] if not mine(p)]} for g in groups]
    parts: list[Optimizer] = []
    if first := [g for g in first if g["params"]]:
        parts.append(make(first))
    if others := [g for g in others if g["params"]]:
        parts.append(rest(others))
    return parts[0] if len(parts) == 1 else Several(parts)


def _from(module: str, cls: str, install: str, **fixed: Any) -> Made:
    def build(groups: Groups, decay: float) -> Optimizer:
        try:
            found = getattr(import_module(module), cls)
        except ImportError as e:
            raise CommonweightError(f"this optimizer needs {install}: pip install {install}") from e
        return found(groups, weight_decay=decay, **fixed)

    return build


_MAKERS: dict[str, Made] = {
    "adamw": _adamw,
    "adamw-8bit": _from("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "adafactor": _from("torch.optim", "Adafactor", "torch"),
    "lion": _from("bitsandbytes.optim", "Lion", "bitsandbytes"),
    "lion-8bit": _from("bitsandbytes.optim", "Lion8bit", "bitsandbytes"),
    "muon": _muon,
    "prodigy": _from("prodigyopt", "Prodigy", "prodigyopt"),
    "schedule-free": _from("schedulefree", "AdamWScheduleFree", "schedulefree"),
    "sgd": _from("torch.optim", "SGD", "torch", momentum=0.9),
}
