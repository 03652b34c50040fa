"""Answers to what clients ask, on one host: many clients in one mixed batch, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapt.tasks import Example, Task
from ..adapt.tasks.base import length
from ..adapt.trainer import still
from ..core import CommonweightError, Rng
from ..host import Host, Tenant
from ..host.route import Route
from ..host.weights import device_of
from .asks import Ask, Gradient, Loss, Slope, Train, Trained
from .local import Local
from .losses import by_row
from .moving import moving
from .stacked import beside, stack, stacked, together

CELLS = 64
TOKENS = 4096  # ours: of a mixed batch at most, padding counted; a client's own batch may be longer


@dataclass
class Work:
    """A host, the tenant that all clients train, and every client's examples.

    like: a tenant of the host, whose plan and frozen pools all clients have. rows: client -> its examples. rate: the
    adapter's own learning rate. mixed: rows of a batch at most, of several clients.
    """

    host: Host
    like: Tenant
    task: Task
    rows: Any  # client -> Sequence[Example]
    local: Local
    rounds: int
    seed: int = 0
    mixed: int = 256

    def __post_init__(self) -> None:
        self.by_row = by_row(self.task)
        self.names = [n for n, _ in self.like.named_parameters()]
        if by := next((f"{n} by {p.optimizer}" for n, p in self.like.plan.pools.items() if p.optimizer), None):
            raise CommonweightError(
                f"{self.like.method.name} trains {by}, and clients' changes are summed; take another option"
            )
        self.plans: dict[int, Any] = {}
        self.device = device_of(self.host.model)
        readers = self.like.plan.readers()
        base = self.like.method.lr
        self.rates = {n: base * self.like.plan.pools[n].lr / max(1, readers[n]) ** 0.5 for n in self.names}
        self.base_rate = base
        self.still = still(self.host, False)

    @property
    def apart(self) -> str:
        """Why clients cannot be in one batch; empty: they can."""
        if self.by_row is None:
            return f"the task {type(self.task).__name__.lower()}: a row's loss depends on the other rows of its batch"
        return ""

    def answer(self, round: int, asks: Sequence[tuple[int, Ask]]) -> list[Any]:
        """asks: (client, what it asks). The answers do not depend on who asks beside it, but for the last digits."""
        out: list[Any] = [None] * len(asks)
        was = self.host.model.training
        try:
            kinds: dict[type, Callable[..., list[Any]]]  # each takes asks of its own kind
            kinds = {Train: self._train, Gradient: self._gradient, Loss: self._loss}
            for kind, many in kinds.items():
                self.host.model.train(kind is not Loss)
                for part in self.still:
                    part.training = False
                places = [i for i, (_, ask) in enumerate(asks) if isinstance(ask, kind)]
                for group in self._groups(places, asks):
                    for i, value in zip(group, many(round, [asks[i] for i in group])):
                        out[i] = value
        finally:
            self.host.model.train(was)
        return out

    def _groups(self, places: list[int], asks: Sequence[tuple[int, Ask]]) -> list[list[int]]:
        """Those of as many steps and of rows of like length together, the most first; of each at most `mixed` rows and
        `TOKENS` tokens, padding counted. One optimiser counts its steps for all, so that clients which keep theirs
        stand beside those that are as far."""
        size = {i: self._size(*asks[i]) for i in places}
        long = {i: max(length(e) for e in self.rows[asks[i][0]]) for i in places}
        far = {i: _steps_done(asks[i][1]) for i in places}
        order = sorted(places, key=lambda i: (far[i], -size[i][0], -size[i][1], -long[i], i))
        groups: list[list[int]] = []
        widest = longest = 0
        for i in order:
            widest, longest = max(widest, size[i][1]), max(longest, long[i])
            rows = widest * (len(groups[-1]) + 1) if groups else 0
            fits = groups and not self.apart and rows <= self.mixed and rows * longest <= TOKENS
            if fits and far[groups[-1][0]] == far[i]:
                groups[-1].append(i)
            else:
                groups.append([i])
                widest, longest = size[i][1], long[i]
        return groups

    def _size(self, client: int, ask: Ask) -> tuple[int, int]:
        """(steps, rows of a step)."""
        steps, batch = self.local.of(len(self.rows[client]))
        if not isinstance(ask, Train):
            return 1, batch
        return ask.steps or steps, batch

    # -- training --------------------------------------------------------------------------------------------------

    def _train(self, round: int, asks: list[tuple[int, Train]]) -> list[Trained]:
        """Clients in order of their steps, most first: those that are done leave the batch at its end."""
        sizes = [self._size(client, ask) for client, ask in asks]
        steps = [s for s, _ in sizes]
        streams = [self._stream(client, round) for client, _ in asks]
        torch.manual_seed(
            int(Rng(self.seed, f"noise/{round}/{asks[0][0]}").integers((1,), 2**31))
        )  # dropout of adapters
        pools = {k: v.to(self.device) for k, v in stack([ask.pools for _, ask in asks], self.names).items()}
        state = _stacked_moments([ask.moments or {} for _, ask in asks])
        masks = self._masks([ask for _, ask in asks])
        wants = asks[0][1].moments is not None
        losses = torch.zeros(len(asks), dtype=torch.float64)
        done: list[Trained] = []
        at, n = 0, len(asks)
        while n:
            until = steps[n - 1]  # the fewest of those that are left
            tenant = together(self.like, pools, self._plan(n))
            optimizer = self._optimizer(tenant, round)
            _restore(optimizer, tenant, state)
            for step in range(at, until):
                places = [s.rows(step + ask.first) for s, (_, ask) in zip(streams[:n], asks)]
                clients = [c for c, _ in asks[:n]]
                found = self._step(tenant, optimizer, places, clients, {k: m[:n] for k, m in masks.items()})
                losses[:n] += found.double().cpu()
            at = until
            pools = {k: tenant.pools[k].detach() for k in self.names}
            state = _moments(optimizer, tenant)
            left = sum(s > at for s in steps)
            for i in range(n - 1, left - 1, -1):
                mine = {k: v[i].clone().cpu() for k, v in pools.items()}
                kept = {k: (v[i] if v.dim() else v).clone().cpu() for k, v in state.items()} if wants else {}
                done.append(Trained(mine, steps[i], float(losses[i]) / steps[i], kept))
            pools = {k: v[:left].clone() for k, v in pools.items()}
            state = {k: v[:left].clone() if v.dim() else v for k, v in state.items()}
            n = left
        return done[::-1]

    def _masks(self, asks: list[Train]) -> dict[str, Tensor]:
        """Of each pool of which a client trains a part, (n, *shape)."""
        named = {k for ask in asks for k in ask.mask or ()}
        one = torch.ones((), device=self.device)
        return {
            k: torch.stack([
                (ask.mask or {}).get(k, one).to(self.device).float().expand(ask.pools[k].shape) for ask in asks
            ])
            for k in self.names if k in named
        }  # fmt: skip

    def _step(
        self, tenant: Tenant, optimizer: torch.optim.Optimizer, places: list[list[int]], clients: list[int],
        masks: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """One step of all clients; gives the loss of each, (n,)."""
        loss = self._losses(tenant, places, clients)
        optimizer.zero_grad()
        loss.sum().backward()
        was = {k: tenant.pools[k].detach().clone() for k in masks}  # weight decay and moments move what has no gradient
        for k, m in masks.items():
            tenant.pools[k].grad.mul_(m)  # type: ignore[union-attr]
        if self.local.clip:
            clip([tenant.pools[k] for k in self.names], self.local.clip)
        optimizer.step()
        with torch.no_grad():
            for k, m in masks.items():
                tenant.pools[k].copy_(torch.where(m > 0, tenant.pools[k], was[k]))
        return loss.detach()

    def _losses(self, tenant: Tenant, places: list[list[int]], clients: list[int]) -> Tensor:
        """Each client's mean loss, (n,). A client with fewer rows than another is filled up with its first, which
        counts for nothing."""
        width = max(map(len, places))
        examples: list[Example] = []
        weights: list[float] = []
        for client, mine in zip(clients, places):
            rows = self.rows[client]
            examples += [rows[i] for i in mine] + [rows[mine[0]]] * (width - len(mine))
            weights += [1.0] * len(mine) + [0.0] * (width - len(mine))
        batch = {k: v.to(self.device) for k, v in self.task.collate(examples).items()}
        with self.host.roster.base.current.within(Route(single=tenant)):
            if self.by_row is None:
                return self.task.loss(self.host.model, batch)[None]
            sums, items = self.by_row(self.host.model, batch)
        if 0.0 in weights:
            w = torch.tensor(weights, device=sums.device)
            sums, items = torch.where(w > 0, sums, 0.0), items * w
        return sums.view(len(clients), width).sum(1) / items.view(len(clients), width).sum(1).clamp(min=1)

    def _stream(self, client: int, round: int) -> Stream:
        rows = self.rows[client]
        return Stream(self.seed, client, round, [length(e) for e in rows], self.local.of(len(rows))[1])

    def _plan(self, n: int) -> Any:
        if n not in self.plans:
            self.plans[n] = stacked(self.like.plan, n, self.names)
        return self.plans[n]

    def _optimizer(self, tenant: Tenant, round: int) -> torch.optim.Optimizer:
        factor = self.local.rate(self.base_rate, round, self.rounds) / self.base_rate
        groups: dict[float, list[nn.Parameter]] = {}
        for name in self.names:
            groups.setdefault(self.rates[name] * factor, []).append(tenant.pools[name])  # type: ignore[arg-type]
        given = [{"params": ps, "lr": rate} for rate, ps in groups.items()]
        if self.local.optimizer == "sgd":
            return torch.optim.SGD(given, momentum=self.local.momentum)
        return torch.optim.AdamW(given, weight_decay=self.local.weight_decay, fused=self.device.type == "cpu" or None)

    def _gradient(self, round: int, asks: list[tuple[int, Gradient]]) -> list[Slope]:
        first, at = asks[0]
        torch.manual_seed(int(Rng(self.seed, f"noise/{round}/{first}/{at.step}").integers((1,), 2**31)))
        pools = {k: v.to(self.device) for k, v in stack([ask.pools for _, ask in asks], self.names).items()}
        tenant = together(self.like, pools, self._plan(len(asks)))
        places = [self._stream(client, round).rows(ask.step) for client, ask in asks]
        loss = self._losses(tenant, places, [c for c, _ in asks])
        loss.sum().backward()
        found = loss.tolist()
        grads = {k: tenant.pools[k].grad for k in self.names}
        grads = {k: torch.zeros_like(tenant.pools[k]) if g is None else g for k, g in grads.items()}
        return [
            Slope({k: g[i].cpu() for k, g in grads.items()}, found[i], self.local.of(len(self.rows[client]))[0])
            for i, (client, _) in enumerate(asks)
        ]

    # -- losses ----------------------------------------------------------------------------------------------------

    def _loss(self, round: int, asks: list[tuple[int, Loss]]) -> list[float]:
        pools = {k: beside([ask.pools[k] for _, ask in asks]).to(self.device) for k in self.names}
        tenant = together(self.like, pools, moving(self._plan(len(asks)), [ask for _, ask in asks], self.names))
        places = [self._stream(client, round).rows(ask.batch) for client, ask in asks]
        with torch.no_grad():
            return self._losses(tenant, places, [c for c, _ in asks]).tolist()


class Stream:
    """A client's rows in a round, in batches of like length. Depends on its arguments alone.

    In an epoch rows are drawn anew, sorted by length (in steps of four tokens) and cut into batches, the last of which
    may have fewer. All clients take short batches at the same time and long ones at the same time, in an order that is
    drawn for all: so a mixed batch is padded as little as each one's own. lengths: of its rows, in tokens.
    """

    def __init__(self, seed: int, client: int, round: int, lengths: Sequence[int], batch: int):
        self.seed, self.client, self.round, self.lengths, self.batch = seed, client, round, lengths, batch
        self.epochs: dict[int, list[list[int]]] = {}

    def rows(self, step: int) -> list[int]:
        """Places of the rows of a step, which counts on through the epochs."""
        each = -(-len(self.lengths) // self.batch)
        return self._epoch(step // each)[step % each]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self.epochs:
            drawn = Rng(self.seed, f"rows/{self.client}/{self.round}/{epoch}").permutation(len(self.lengths)).tolist()
            order = sorted(drawn, key=lambda i: self.lengths[i] // 4)
            batches = [order[at : at + self.batch] for at in range(0, len(order), self.batch)]
            when = Rng(self.seed, f"order/{self.round}/{epoch}").permutation(CELLS).tolist()
            n = len(batches)
            self.epochs[epoch] = [batches[k] for k in sorted(range(n), key=lambda k: (when[k * CELLS // n], k))]
        return self.epochs[epoch]


@torch.no_grad()
def clip(pools: Sequence[Any], most: float) -> None:
    """Scales each client's gradient, over all pools together, to a norm of at most `most`."""
    squares = sum(p.grad.flatten(1).square().sum(1) for p in pools if p.grad is not None)
    factor = (most / (torch.as_tensor(squares).sqrt() + 1e-6)).clamp(max=1.0)
    for p in pools:
        if p.grad is not None:
            p.grad.mul_(factor.view(-1, *(1 for _ in p.shape[1:])))


def _moments(optimizer: torch.optim.Optimizer, tenant: Tenant) -> dict[str, Tensor]:
    """What the optimiser knows, by ``key/pool``; a count of steps has no dimension."""
    out = {}
    for name, p in tenant.named_parameters():
        for k, v in optimizer.state.get(p, {}).items():
            if isinstance(v, Tensor):
                out[f"{k}/{name}"] = v
    return out


def _restore(optimizer: torch.optim.Optimizer, tenant: Tenant, state: Mapping[str, Tensor]) -> None:
    for name, p in tenant.named_parameters():
        mine = {k.partition("/")[0]: v for k, v in state.items() if k.partition("/")[2] == name}
        if mine:
            optimizer.state[p] = {k: v.clone() if k == "step" else v.to(p.device) for k, v in mine.items()}


def _stacked_moments(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of clients that have come as far: counts of steps stay, all else gets a leading dimension."""
    return {k: v if v.dim() == 0 else torch.stack([m[k] for m in each]) for k, v in each[0].items()}


def _steps_done(ask: Ask) -> float:
    """Optimiser steps that a kept optimiser has done; -1 where nobody keeps it."""
    moments = getattr(ask, "moments", None)
    if moments is None:
        return -1.0
    return next((float(v) for k, v in moments.items() if k.startswith("step/")), 0.0)
