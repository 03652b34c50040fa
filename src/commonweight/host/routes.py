"""Which experts of a mixture the tokens of rows go to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Site
from ..methods.shown import Shown

if TYPE_CHECKING:
    from .hooked import HookedModel


@torch.no_grad()
def routes(
    base: HookedModel, sites: Sequence[Site], shown: Shown, forward: Callable[[Any, Shown], None]
) -> dict[str, Tensor]:
    """{site of an expert: the share of its layer's routes that the expert gets, a number}.

    Experts in one tensor say it by the indices that their module is given; those that are modules by how many tokens
    each is given, padding among them. forward: of a batch. Raises: CommonweightError where a module is given no
    indices, and for no rows.
    """
    counts: dict[str, Tensor] = {}
    mask: Tensor | None = None

    def see(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if "[" not in names[name]:
            many = torch.tensor(args[0].numel() // args[0].shape[-1], dtype=torch.float64)
        else:
            many = _chosen(name, (*args, *kwargs.values()), mask, base.modules[name].count)  # type: ignore[union-attr]
        counts[name] = counts[name] + many if name in counts else many

    names = {s.name.split("[")[0]: s.name for s in sites}
    handles = [
        base.modules[n].module.register_forward_pre_hook(partial(_told, see, n), with_kwargs=True) for n in names
    ]
    try:
        for batch in shown.batches:
            given = batch.get("attention_mask")
            mask = None if given is None else given.bool().reshape(-1)
            forward(batch, shown)
    finally:
        for h in handles:
            h.remove()
    if not counts:
        raise CommonweightError("rows: no rows to take statistics of")
    found = {s.name: _count(counts, s.name) for s in sites}
    totals: dict[str, Tensor] = {}
    for n, c in found.items():
        totals[_layer(n)] = totals.get(_layer(n), torch.zeros(())) + c
    return {n: (c / totals[_layer(n)].clamp(min=1)).float() for n, c in found.items()}


def _told(see: Callable[..., None], name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
    see(name, module, args, kwargs)


def _chosen(name: str, given: Sequence[Any], mask: Tensor | None, experts: int) -> Tensor:
    """How many tokens each expert gets, of indices (tokens, K)."""
    at = next((g for g in given if isinstance(g, Tensor) and not g.is_floating_point() and g.dtype != torch.bool), None)
    if at is None:
        raise CommonweightError(
            f"{name}: its module is not told by indices which experts a token goes to, so that routes cannot be "
            "counted; use start='random', or name the experts by sites="
        )
    at = at.reshape(-1, at.shape[-1])
    if mask is not None and len(mask) == len(at):
        at = at[mask.to(at.device)]
    return torch.bincount(at.reshape(-1).cpu(), minlength=experts).double()


def _count(counts: Mapping[str, Tensor], site: str) -> Tensor:
    name, _, at = site.partition("[")
    if name not in counts:
        return torch.zeros((), dtype=torch.float64)
    return counts[name][int(at[:-1])] if at else counts[name]


def _layer(site: str) -> str:
    """The projection of a layer, whatever the expert."""
    return re.sub(r"(\bexperts)\.\d+\b", r"\1.*", site.split("[")[0])
