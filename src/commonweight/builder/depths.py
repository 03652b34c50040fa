"""A model that runs one module at several depths, as one with a module for each depth."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from ..core import CommonweightError
from .tree import known


def depths(model: nn.Module) -> Any:
    """A copy of an ALBERT in which every depth has a module of its own, with the same tensors: a host on it has sites
    for each depth, so that adapters differ from depth to depth. The answers are the same.

    Cost: a copy of the parameters, each once. Raises: CommonweightError for another model.
    """
    out: Any = deepcopy(model)
    config = getattr(out, "config", None)
    encoder = next((m for m in out.modules() if hasattr(m, "albert_layer_groups")), None)
    if config is None or encoder is None:
        raise CommonweightError(f"{type(model).__name__} is no ALBERT; others have a module for each depth")
    groups: Any = encoder.albert_layer_groups
    of = [i * len(groups) // config.num_hidden_layers for i in range(config.num_hidden_layers)]
    same: dict[int, Any] = {id(p): p for p in groups.parameters()} | {id(config): config}
    encoder.albert_layer_groups = nn.ModuleList(deepcopy(groups[g], dict(same)) for g in of)
    config.num_hidden_groups = config.num_hidden_layers
    owners = [of.index(g) for g in of]
    tied = {n: owners for n, _ in groups[0].named_parameters()}
    config.sharing = {"path": "encoder.albert_layer_groups", "tied": tied, "forms": [], "method": "depths"}
    known(out)
    return out
