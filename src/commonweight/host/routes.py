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

_MODULES = "its module is not told with which weights the answers of a token's experts are added"


@torch.no_grad()
def routes(
    base: HookedModel, sites: Sequence[Site], shown: Shown, forward: Callable[[Any, Shown], None], gates: bool = False
) -> dict[str, Tensor]:
    """{site of an expert: the share of its layer's routes that the expert gets, a number}. gates: the mean over tokens
    of the expert's weight in place of it, whose sum over a layer is 1 only where the model makes it so.

    Experts in one tensor say it by the indices that their module is given; those that are modules by how many tokens
    each is given, padding among them, and no weights. forward: of a batch. Raises: CommonweightError where a module is
    given no indices, or no weights of them, and for no rows.
    """
    counts: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    mask: Tensor | None = None

    def see(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if "[" not in names[name]:
            if gates:
                raise CommonweightError(f"{name}: {_MODULES}; use score='token', or start='random'")
            many = torch.tensor(args[0].numel() // args[0].shape[-1], dtype=torch.float64)
        else:
            given = (*args, *kwargs.values())
            at, weights = _chosen(name, given, mask, gates)
            tokens[name] = tokens.get(name, 0) + len(at)
            many = torch.bincount(at.reshape(-1), weights, base.modules[name].count).double()  # type: ignore[union-attr]
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
    if not any(bool(c.any()) for c in counts.values()):
        raise CommonweightError("rows: no token of them is no padding; give others")
    found = {s.name: _count(counts, s.name) for s in sites}
    if gates:
        return {n: (c / max(1, tokens.get(n.split("[")[0], 0))).float() for n, c in found.items()}
    totals: dict[str, Tensor] = {}
    for n, c in found.items():
        totals[_layer(n)] = totals.get(_layer(n), torch.zeros(())) + c
    return {n: (c / totals[_layer(n)].clamp(min=1)).float() for n, c in found.items()}


def _told(see: Callable[..., None], name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
    see(name, module, args, kwargs)


def _chosen(name: str, given: Sequence[Any], mask: Tensor | None, gates: bool) -> tuple[Tensor, Tensor | None]:
    """(the experts of each token that is no padding, (tokens, K); with gates their weights, laid flat)."""
    at = next((g for g in given if isinstance(g, Tensor) and not g.is_floating_point() and g.dtype != torch.bool), None)
    if at is None:
        raise CommonweightError(
            f"{name}: its module is not told by indices which experts a token goes to, so that routes cannot be "
            "counted; use start='random', or name the experts by sites="
        )
    at = at.reshape(-1, at.shape[-1])
    real = mask.to(at.device) if mask is not None and len(mask) == len(at) else slice(None)
    if not gates:
        return at[real].cpu(), None
    fits = (
        g.reshape(at.shape)
        for g in given[::-1]
        if isinstance(g, Tensor) and g.is_floating_point() and g.numel() == at.numel()
    )
    if (weights := next(fits, None)) is None:
        raise CommonweightError(f"{name}: {_MODULES}; use score='token', or start='random'")
    return at[real].cpu(), weights[real].reshape(-1).double().cpu()


def _count(counts: Mapping[str, Tensor], site: str) -> Tensor:
    name, _, at = site.partition("[")
    if name not in counts:
        return torch.zeros((), dtype=torch.float64)
    return counts[name][int(at[:-1])] if at else counts[name]


def _layer(site: str) -> str:
    """The projection of a layer, whatever the expert."""
    return re.sub(r"(\bexperts)\.\d+\b", r"\1.*", site.split("[")[0])
