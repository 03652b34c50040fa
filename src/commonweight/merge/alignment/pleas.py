"""PLeaS: units that fit are merged, the others kept side by side; then each layer's weights by least squares.

PLeaS -- Merging Models with Permutations and Least Squares (arXiv 2407.02447). For networks of linear layers that
follow one another, with anything elementwise between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError
from ..statistics import open_statistics
from .align import Group, State, assign, chain, fits, match


class Layout(NamedTuple):
    """The merged layer's units: a and b (units,), the unit of each model that a merged one stands for, -1 for none."""

    a: Tensor
    b: Tensor

    def mean(self, which: int, n: int) -> Tensor:
        """(units, n) float64: how a merged unit's value is made of a model's: halves where both have it."""
        share = torch.where((self.a >= 0) & (self.b >= 0), 0.5, 1.0)
        return self.copy(which, n) * share[:, None]

    def copy(self, which: int, n: int) -> Tensor:
        """(units, n) float64: where a model's units are found among the merged ones."""
        index = self[which]
        out = torch.zeros(len(index), n, dtype=torch.float64)
        there = index >= 0
        out[there.nonzero().squeeze(1), index[there]] = 1.0
        return out


def layout(fit: Tensor, permutation: Tensor, share: float) -> Layout:
    """The `share` of units that fit best become one, the others stay: n + (1 - share) n units.

    permutation (n,): which unit of b fits each unit of a; fit (n,): how well.
    """
    n = len(permutation)
    order = fit.sort(descending=True, stable=True).indices
    one, alone = order[: round(share * n)], order[round(share * n) :].sort().values
    none = torch.full_like(alone, -1)
    return Layout(torch.cat([one, alone, none]), torch.cat([permutation[one], none, permutation[alone]]))


def pleas(
    layers: Sequence[str],
    a: State,
    b: State,
    *,
    share: float | Sequence[float] = 1.0,
    activations: tuple[Any, Any] | None = None,
    matching: Literal["activations", "weights"] | None = None,
    ridge: float = 1e-6,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A network of the layers' names whose hidden layers have n + (1 - share) n units, and whose outputs are near the
    mean of the two models' outputs.

    share: of merged units, for every hidden layer or for each: 1 keeps the width, 0 doubles it and gives the mean of
    the two exactly. activations: statistics of both models with `activations` of the layers, collected on the same
    rows: each layer's weights (and bias) are then the least-squares answer from the merged features before it to those
    after it, where merged units have both models' mean; without them the weights are averaged (the paper's data-free
    form is other rows, public ones, not none). matching: units are matched by the distance of their activations, where
    given, or by weights (see `align.match`). Weights from units that only one model has to units that only the other
    has are zero. ridge: relative to the mean square of the features.
    Source: arXiv 2407.02447 (from summaries, its text was not available) and the authors' code: matching, layout,
    averages and zeros are as there. Differs: solved in closed form, there 400 steps of Adam from the average; one share
    or one for each layer, where the authors also solve a quadratic program for shares within a budget; no convolutions
    and no normalisations. Cost: the matching, and three solves of a layer's width each.
    Raises: CommonweightError when layers do not follow one another, or activations do not belong together.
    """
    shapes = {k: tuple(t.shape) for k, t in a.items()}
    if not layers:
        raise CommonweightError("no layers given; name the linear layers in their order")
    groups = chain(layers, shapes)
    for name in (f"{layer}.{part}" for layer in layers for part in ("weight", "bias")):
        if shapes.get(name) != (found := tuple(b[name].shape) if name in b else None):
            raise CommonweightError(f"{name}: shape {shapes.get(name)} in model a, {found} in b; wanted the same")
    shares = [float(share)] * len(groups) if isinstance(share, int | float) else [float(s) for s in share]
    if len(shares) != len(groups) or not all(0 <= s <= 1 for s in shares):
        raise CommonweightError(
            f"share is {share}; wanted a number from 0 to 1, or one for each of {len(groups)} layers"
        )
    known = _inputs(layers, shapes, activations)
    found, fit = _matched(layers, groups, a, b, known, matching, seed)
    whole = torch.arange(shapes[f"{layers[0]}.weight"][1])
    before, out = Layout(whole, whole), {}
    for i, name in enumerate(layers):
        w = [s[f"{name}.weight"].double() for s in (a, b)]
        bias = [s[f"{name}.bias"].double() if f"{name}.bias" in s else None for s in (a, b)]
        if i < len(groups):
            after = layout(fit[name], found[name], shares[i])
        else:
            last = torch.arange(len(w[0]))
            after = Layout(last, last)
        weight, shift = (_average if known is None else _fit)(w, bias, before, after, known and known[name], ridge)
        out[f"{name}.weight"] = weight.float()
        if shift is not None:
            out[f"{name}.bias"] = shift.float()
        before = after
    return out


def _matched(
    layers: Sequence[str], groups: Sequence[Group], a: State, b: State, known: Any, how: str | None, seed: int
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Layer -> (n,) the unit of b that fits each unit of a, and layer -> (n,) how well."""
    if how == "activations" and known is None:
        raise CommonweightError("matching by activations wants them; give activations=, or matching='weights'")
    if known is None or how == "weights":
        found = match(groups, a, b, seed=seed)
        return found, fits(groups, found, a, b)
    found, fit = {}, {}
    for g, reader in zip(groups, layers[1:]):
        near = -torch.cdist(known[reader][0].T, known[reader][1].T)
        found[g.name] = assign(near)
        fit[g.name] = near[torch.arange(g.units), found[g.name]]
    return found, fit


def _average(w: Any, bias: Any, before: Layout, after: Layout, x: Any, ridge: float) -> tuple[Tensor, Tensor | None]:
    n, m = w[0].shape
    made = [after.mean(k, n) for k in (0, 1)]
    weight = sum(made[k] @ w[k] @ before.copy(k, m).T for k in (0, 1))
    shift = None if bias[0] is None else sum(made[k] @ bias[k] for k in (0, 1))
    return weight, shift  # type: ignore[return-value]


def _fit(w: Any, bias: Any, before: Layout, after: Layout, x: Any, ridge: float) -> tuple[Tensor, Tensor | None]:
    """Least squares, one solve for each kind of unit: what both models have reads every feature, what one has only
    those that it knows."""
    n, m = w[0].shape
    features = sum(x[k] @ before.mean(k, m).T for k in (0, 1))
    answers = [x[k] @ w[k].T + (0 if bias[k] is None else bias[k]) for k in (0, 1)]
    goal = sum(answers[k] @ after.mean(k, n).T for k in (0, 1))
    assert isinstance(features, Tensor) and isinstance(goal, Tensor)
    if bias[0] is not None:
        features = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    gram = features.T @ features
    start, shift = _average(w, bias, before, after, None, ridge)
    if shift is not None:
        start = torch.cat([start, shift[:, None]], 1)
    left = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    right = features.T @ (goal - features @ start.T)  # the ridge pulls to the average
    fitted, always = start.clone(), torch.ones(features.shape[1] - len(before.a), dtype=torch.bool)
    for mine, reads in (
        ((True, True), before.a >= -1),
        ((True, False), before.a >= 0),
        ((False, True), before.b >= 0),
    ):
        rows = ((after.a >= 0) == mine[0]) & ((after.b >= 0) == mine[1])
        if rows.any():
            cols = torch.cat([reads, always]).nonzero().squeeze(1)
            step = torch.linalg.solve(left[cols][:, cols], right[cols][:, rows]).T
            fitted[rows.nonzero(), cols] += step
    return (fitted[:, :-1], fitted[:, -1]) if bias[0] is not None else (fitted, None)


def _inputs(
    layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]], files: tuple[Any, Any] | None
) -> Mapping[str, list[Tensor]] | None:
    if files is None:
        return None
    opened = [open_statistics(f, f"activations of model {n}", "activations") for f, n in zip(files, "ab", strict=True)]
    out = {n: [s.whole("activations", f"{n}.weight").double() for s in opened] for n in layers}
    for name, (x, y) in out.items():
        for model, given in (("a", x), ("b", y)):
            if given.shape[1] != shapes[f"{name}.weight"][1]:
                raise CommonweightError(
                    f"{name}: the activations of model {model} have width {given.shape[1]}, its layer "
                    f"{shapes[f'{name}.weight'][1]}; collect them on this model"
                )
        if len(x) != len(y):
            raise CommonweightError(
                f"{name}: {len(x)} activations of model a, {len(y)} of b; collect both on equal rows"
            )
    rows = [s.header.get("rows") for s in opened]
    if rows[0] != rows[1]:
        raise CommonweightError(f"the activations are of other rows ({rows[0]}, {rows[1]}); collect both on the same")
    return out
