"""A common: pools of scope `shared`, held once for all tenants that joined it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from copy import deepcopy
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from ..core import CommonweightError, Plan, Pool, counted


class Held(WeakValueDictionary):
    """Names for what others hold. A deep copy names the copies, where torch's and Python's own would name the same."""

    def __deepcopy__(self, memo: dict) -> Held:
        return Held({k: deepcopy(v, memo) for k, v in self.items()})

    def __reduce__(self):
        return (Held, (dict(self),))  # whoever holds a value is in the same file, or it would be gone


class Common:
    """Pools that several tenants of one host share, and train until the common is frozen.

    method: that of all its tenants: equal names and shapes mean other things in another one. pools: name -> the one
    tensor; each lives while a tenant reads it. frozen: its tenants train their own pools alone, and its bytes do not
    change.
    """

    def __init__(self, name: str, method: str, frozen: bool = False):
        self.name, self.method, self.frozen = name, method, frozen
        self.pools: MutableMapping[str, Tensor] = Held()
        self.specs: dict[str, Pool] = {}
        self.tenants = 0  # of its host

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable pools; none while it is frozen."""
        return (p for p in self.pools.values() if p.requires_grad)  # type: ignore[misc]

    @property
    def nbytes(self) -> int:
        """Bytes of the saved pools: what all its tenants together pay once."""
        return sum(t.nbytes for n, t in self.pools.items() if self.specs[n].save)

    def freeze(self, frozen: bool = True) -> None:
        self.frozen = frozen
        for name, pool in self.pools.items():
            if self.specs[name].train:
                pool.requires_grad_(not frozen)
                if frozen:  # an optimiser that was made before would go on with it: decay and momentum need no new one
                    pool.grad = None

    def known(self, plan: Plan, brought: Collection[str] = ()) -> dict[str, Tensor]:
        """The tensors that a tenant of this plan finds here. brought: pools that it has numbers for.

        Raises: CommonweightError for another method, a pool of another shape, and for one that a frozen common lacks.
        """
        out = {}
        for name in shared(plan.pools):
            wanted, there = plan.pools[name], self.pools.get(name)
            if there is None:
                if self.frozen and name not in brought:
                    some = ", ".join(sorted(self.pools)[:3])
                    raise CommonweightError(
                        f"the common {self.name!r} is frozen and has no pool {name}; it has {some}, ...: use the "
                        "method, options and sites of its tenants"
                    )
                continue
            if tuple(there.shape) != wanted.shape:
                raise CommonweightError(
                    f"the common {self.name!r} holds {name} as {tuple(there.shape)}; this tenant wants "
                    f"{wanted.shape}: use the options of its tenants, or another common"
                )
            out[name] = there
        return out

    def enter(self, plan: Plan, pools: Mapping[str, Tensor]) -> None:
        """Counts a new tenant, and takes from it what it does not have yet."""
        self.tenants += 1
        for name in shared(plan.pools):
            if name not in self.pools:
                self.pools[name], self.specs[name] = pools[name], plan.pools[name]
                if self.frozen and plan.pools[name].train:
                    pools[name].requires_grad_(False)

    def __repr__(self) -> str:
        state = "frozen" if self.frozen else "trained"
        return f"Common({self.name!r}, {counted(len(self.pools), 'pool')}, {self.nbytes:,} bytes, {state})"


def shared(pools: Mapping[str, Pool]) -> list[str]:
    """Names of the pools that many tenants may read; what is rebuilt instead of saved is common to all as it is."""
    return [n for n, p in pools.items() if p.scope == "shared" and (p.train or p.save)]


def distinct(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Optimiser groups in which every parameter stands once, at its first place."""
    seen: set[int] = set()
    out = []
    for group in groups:
        mine = [p for p in group["params"] if id(p) not in seen]
        seen.update(map(id, mine))
        if mine:
            out.append({**group, "params": mine})
    return out
