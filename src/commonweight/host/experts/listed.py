"""Experts that are modules in a list: each is given some of the tokens, picked by code of the model that is not ours.

Around such a list, the tokens that come in carry their readers with them: a tensor that does with a second one, which
holds a reader's number at every place, whatever is done to arrange the first. What an expert is given so says whose
each row is, and its layers serve the rows as a route of tokens does. Where a row's reader is lost on the way, the batch
runs reader by reader, as in `apart`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..carried import Carried, bare
from ..current import Current
from ..foremost import foremost
from ..route import Route

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class Around:
    """Before the module that calls the experts: its tokens carry their readers."""

    def __init__(self, sites: list[str], current: Current):
        self.sites, self.current = sites, current

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        route = None if torch.compiler.is_compiling() else self.current.route
        if route is None or route.single is not None or not any(route.touches(s) for s in self.sites):
            return None
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()), None)
        if x is None or isinstance(x, Carried) or (readers := readers_of(route, x)) is None:
            return None
        carried = Carried.of(x, readers)
        return tuple(carried if v is x else v for v in args), {k: carried if v is x else v for k, v in kwargs.items()}


def readers_of(route: Route, x: Tensor) -> Tensor | None:
    """At each place of x the number of its reader among the route's groups; None where rows cannot be found in x."""
    if (folded := route.fold(x)) is None:
        return None
    of = torch.empty(route.length, dtype=torch.int32)
    for g, (_, places) in enumerate(route.groups):
        of[torch.tensor(places)] = g
    each = of.to(x.device).view(-1, *[1] * (folded[0].dim() - 1))
    return each.expand(folded[0].shape).reshape(x.shape)


class Given:
    """Before and after one expert: while it runs, `Current.thread.given` is the route of the rows that it was given."""

    def __init__(self, current: Current):
        self.current = current

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Carried)), None)
        if x is None:
            return None
        thread, route = self.current.thread, self.current.route
        thread.given = None if route is None else tokens_of(route, x.readers[..., 0].flatten())
        return tree_map(bare, tuple(args)), tree_map(bare, kwargs)

    def leave(self, module: nn.Module, args: tuple, y: Any) -> None:
        if not torch.compiler.is_compiling():
            self.current.thread.given = None


def tokens_of(route: Route, readers: Tensor) -> Route:
    """The route of so many rows, each by the number of its reader among the groups."""
    order = torch.argsort(readers, stable=True)
    sizes = torch.bincount(readers, minlength=len(route.groups)).tolist()
    groups = [(t, p.tolist()) for (t, _), p in zip(route.groups, order.split(sizes)) if len(p)]
    return Route(groups, shape=(len(readers),))


def hooks(names: Mapping[str, nn.Module], sites: list[str], current: Current) -> list[RemovableHandle]:
    """Around every list of experts with sites in it, and at each of its members."""
    out: list[RemovableHandle] = []
    for name, module in names.items():
        if name.rpartition(".")[2] != "experts" or not isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        mine = [s for s in sites if s.startswith(f"{name}.")]
        home = name.rpartition(".")[0]
        if not mine or home not in names:
            continue
        out.append(names[home].register_forward_pre_hook(Around(mine, current), with_kwargs=True))
        for expert in module.children():
            given = Given(current)
            out.append(foremost(expert, given.enter, with_kwargs=True))
            out.append(expert.register_forward_hook(given.leave, always_call=True))
    return out
