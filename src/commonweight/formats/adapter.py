"""An adapter of another tool in our words."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..core import CommonweightError, Plan, Source


class Adapter(NamedTuple):
    """A method, its options, the names of its sites, and values for its pools by name."""

    method: str
    options: dict[str, Any]
    sites: tuple[str, ...]
    values: dict[str, Tensor]


class Frozen(Source, Protocol):
    """What may be asked of the base: its weights (out, inp) in float32, their SVD, biases, and how the model keeps a
    weight: transposed is (inp, out), as in GPT-2's Conv1D."""

    def bias(self, site: str) -> Tensor: ...

    def transposed(self, site: str) -> bool: ...

    def crossed(self, site: str) -> bool: ...

    def moves(self, site: str) -> bool:
        """Whether keys in front at this site move the positions of the tokens behind them."""
        ...

    def scale(self, site: str) -> float:
        """What the model multiplies vectors of tokens by, but not those that it is given in their place."""
        ...

    def pools_all(self, site: str) -> bool:
        """Of a prompt: whether the model's own head reads all places of a row."""
        ...

    def kernel(self, site: str) -> tuple[int, ...]:
        """Of a convolution; () of any other layer."""
        ...


def fits(adapter: Adapter, plan: Plan) -> None:
    """Every pool that is trained or kept in files has a value of its shape, and every value a pool."""
    for name, value in adapter.values.items():
        if name not in plan.pools:
            raise CommonweightError(f"{adapter.method}: no pool is called {name}")
        if value.is_floating_point() != plan.pools[name].dtype.startswith(("float", "bfloat")):
            raise CommonweightError(f"{name} is of {value.dtype}, {adapter.method} wants {plan.pools[name].dtype}")
        if tuple(value.shape) != plan.pools[name].shape:
            raise CommonweightError(f"{name} is {tuple(value.shape)}, {adapter.method} wants {plan.pools[name].shape}")
    for name, pool in plan.pools.items():
        if (pool.train or pool.save) and name not in adapter.values:
            raise CommonweightError(f"{adapter.method}: the folder holds nothing for the pool {name}")
