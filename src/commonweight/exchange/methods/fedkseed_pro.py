"""FedKSeed-Pro: directions along which the loss was steep are walked more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import Rng, config, option
from ..asks import Pools
from ..message import Part, Table
from ..registry import Reply, Setting, State, method
from .fedkseed import WALKING, gathering
from .fedkseed import begin as plain
from .fedkseed import down as sums


@config
class FedKSeedPro:
    seeds: int = option(2048, "directions K that there are, the same in all rounds", ge=1, le=32767)
    steps: int = option(200, "steps of a client in a round, a direction and a batch each", ge=1)
    rate: float = option(1e-3, "learning rate, constant; the recipe's own lr is not used", gt=0)
    eps: float = option(5e-4, "how far to both sides the loss is measured", gt=0)
    adapter: str = option("lora", "the method whose pools walk: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def begin(setting: Setting, start: Pools) -> State:
    """size: sum of |g| along each direction; times: how many there were."""
    state, none = plain(setting, start), torch.zeros(setting.config.seeds)
    return state._replace(tensors={**state.tensors, "size": none, "times": none.clone()})


def chances(state: State) -> Tensor:
    """softmax(minmax(mean |g|)), (K,) float64: at most e times as often as another. A direction that nobody walked
    counts as the mean of the others."""
    size, times = state.tensors["size"].double(), state.tensors["times"].double()
    been = times > 0
    if not been.any():
        return torch.full_like(size, 1 / len(size))
    each = size / times.clamp(min=1)
    each = torch.where(been, each, each[been].mean())
    low, high = each.min(), each.max()
    return torch.softmax((each - low) / (high - low) if high > low else torch.zeros_like(each), 0)


def drawn(setting: Setting, state: State, round: int, client: int) -> Tensor:
    """Which directions a client walks along, (steps,) int64, by their chances."""
    u = Rng(setting.seed, f"fedkseed/{round}/{client}").uniform((setting.config.steps,)).double()
    return torch.searchsorted(chances(state).cumsum(0), u, right=True).clamp(max=setting.config.seeds - 1)


def down(setting: Setting, round: int, client: int) -> Table:
    return {**sums(setting, round, client), "along": Part((setting.config.steps,), "int16")}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return {"sums": state.tensors["sums"], "along": drawn(setting, state, round, client).short()}


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    new = gathering(drawn)(setting, state, round, replies)
    size, times = state.tensors["size"].clone(), state.tensors["times"].clone()
    for r in replies:
        along = drawn(setting, state, round, r.client)
        size.index_add_(0, along, r.tensors["slopes"].abs())
        times.index_add_(0, along, torch.ones(len(along)))
    return new._replace(tensors={**new.tensors, "size": size, "times": times})


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    c = setting.config
    return 4 * c.steps, 4 * c.seeds + 2 * c.steps


@method(
    "fedkseed-pro",
    FedKSeedPro,
    paper="Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 "
    "Kilobytes, arXiv 2312.06353",
    id=198,
    **{
        **WALKING, "begin": begin, "down": down, "tell": tell, "gather": gather, "nbytes": nbytes, "broadcast": False,
        "formula": "4 steps up, 4 K + 2 steps down",
        "keeps": "K sums, sizes and counts; the first pools, which the seed gives",
    },
)  # fmt: skip
def adapter(config: FedKSeedPro) -> tuple[str, dict[str, Any]]:
    """As `fedkseed`; the server draws the directions of each client with chances softmax(minmax(mean |g|)).

    Source: arXiv 2312.06353, section 4.3. Differs: the drawn directions are sent (2 bytes a step) and not the chances
    (4 K bytes); |g| is not clipped; ours: a direction that nobody walked counts as the mean of the others.
    """
    return config.adapter, dict(config.options)
