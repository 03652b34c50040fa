"""LoRA adapters in, one LoRA adapter out: merged as the weight updates that they are, not factor by factor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, counted
from ...formats.peft import PREFIX
from ..call.run import tasks
from ..registry import Method, get
from ..sources.factored import Factored, Pair, Zeros
from ..stream.engine import Engine
from ..stream.pool import cores
from ..stream.work import Task

A, B = ".lora_A.weight", ".lora_B.weight"
Adapter = Mapping[str, Tensor]
_Sites = dict[str, list[tuple[Tensor, Tensor]]]  # site -> (A, B) of each adapter


class Merged(NamedTuple):
    """The adapter, with its scale in B (lora_alpha = rank); error: per site, |left out|_F / |wanted|_F of the
    update.
    """

    adapter: dict[str, Tensor]
    error: dict[str, float]


def lora(
    adapters: Sequence[Adapter],
    *,
    weights: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    method: str = "linear",
    rank: int | None = None,
    compat: Literal["peft"] | None = None,
    **options: Any,
) -> Merged:
    """Merges LoRA adapters into one: its update is the merge of their updates scale_t B_t A_t.

    adapters: PEFT's state dicts (keys ending in .lora_A.weight, .lora_B.weight: A (r, d_in), B (d_out, r)); scales:
    each one's lora_alpha / r (1 if not given). method "linear" is sum_t w_t scale_t B_t A_t, exact, of rank sum r_t, by
    concatenation; with `rank`, its best approximation by SVD. Any other method merges the full updates of all sites in
    one call, as it merges models (base zero, tensors named as the weights that they change, without PEFT's prefix; as
    many layers as the adapters reach), and is brought to `rank` by SVD (rank none: the largest r among the adapters);
    what that leaves out is in `error`. Memory: the factors, and the rows that the method works on, made anew in each of
    its rounds; then one site's update at a time in float64.

    compat="peft" with "linear": PEFT's form, sums of sqrt(|w scale|)-weighted A and B, whose product is NOT the
    weighted sum: it has the cross terms B_i A_j.
    """
    n = len(adapters)
    if n == 0:
        raise CommonweightError("lora: no adapters given; give at least one")
    for i, x in enumerate(adapters):
        if not isinstance(x, Mapping):
            raise CommonweightError(
                f"lora: adapter {i} is {x!r}; wanted a state dict: cw.merge.adapter_folders takes folders of PEFT"
            )
    w = [1.0] * n if weights is None else [float(x) for x in weights]
    s = [1.0] * n if scales is None else [float(x) for x in scales]
    for name, values in (("weights", w), ("scales", s)):
        if len(values) != n or not all(map(math.isfinite, values)):
            raise CommonweightError(
                f"lora: {name} are {values} for {counted(n, 'adapter')}; give one finite number for each"
            )
    if rank is not None and rank < 1:
        raise CommonweightError(f"lora: rank is {rank}; it must be at least 1")
    if compat == "peft":
        if method != "linear" or rank is not None or options:
            raise CommonweightError("lora: compat='peft' is the form of method='linear' without a rank")
        return _peft(adapters, w, s)
    if compat is not None:
        raise CommonweightError(f"lora: unknown compat {compat!r}; known: 'peft'")
    found = None if method == "linear" else get(method)
    if found is None and options:
        raise CommonweightError(f"lora: method 'linear' takes no options here; {sorted(options)} given")
    sites = _sites(adapters)
    out, error = dict[str, Tensor](), dict[str, float]()
    if found is None:
        for site, pairs in sites.items():
            a = torch.cat([p[0] for p in pairs])
            b = torch.cat([w[i] * s[i] * p[1] for i, p in enumerate(pairs)], 1)
            error[site] = 0.0
            if rank is not None and rank < len(a):
                a, b, error[site] = _truncate(b.double() @ a.double(), rank)
            out[site + A], out[site + B] = a, b
        return Merged(out, error)
    for site, update in _merged(found, sites, s, None if weights is None else w, options):
        most = max(len(a) for a, _ in sites[site])
        out[site + A], out[site + B], error[site] = _truncate(update.double(), rank or most)
    return Merged({f"{n}{x}": out[f"{n}{x}"] for n in sites for x in (A, B)}, {n: error[n] for n in sites})


def _merged(
    method: Method, sites: _Sites, scales: Sequence[float], weights: Sequence[float] | None, options: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Each site's merged update as soon as it is whole. All of them are one model, under the names of the weights that
    they change: thresholds are then those of the whole model, and layers have their numbers."""
    prefix = PREFIX if all(n.startswith(PREFIX) for n in sites) else ""
    names = {f"{n.removeprefix(prefix)}.weight": n for n in sites}
    sources = [
        Factored(f"adapter {i}", {n: Pair(*sites[site][i], scales[i]) for n, site in names.items()})
        for i in range(len(scales))
    ]
    root = None if method.base == "none" else Zeros("base", sources[0].shapes)
    todo = tasks(method, sources, root, weights, options)
    whole = _Whole(todo)
    for done in Engine(cores()).run(todo, whole):
        yield names[done.tensor], whole.take(done.tensor)


class _Whole:
    """A sink that holds a tensor from its first piece until it is taken."""

    def __init__(self, todo: Sequence[Task]):
        self._at = {t.at.name: t for t in todo}
        self._flat: dict[str, Tensor] = {}

    def write(self, name: str, start: int, values: Tensor) -> None:
        if name not in self._flat:  # of two threads that come here the second one's is dropped
            self._flat.setdefault(name, torch.empty(self._at[name].numel))
        self._flat[name][start : start + values.numel()] = values

    def take(self, name: str) -> Tensor:
        return self._flat.pop(name).view(self._at[name].at.shape)


def _truncate(update: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    root = s[:rank].sqrt()
    lost, whole = s[rank:].norm().item(), s.norm().item()
    return (root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float(), lost / whole if whole else 0.0


def _peft(adapters: Sequence[Adapter], w: Sequence[float], s: Sequence[float]) -> Merged:
    out: dict[str, Any] = {}
    for site, pairs in _sites(adapters).items():
        if len({p[0].shape for p in pairs}) > 1:
            raise CommonweightError(
                f"{site}: the ranks {[len(p[0]) for p in pairs]} differ; PEFT's linear wants one rank"
            )
        root = [math.sqrt(abs(x * y)) for x, y in zip(w, s)]
        sign = [math.copysign(1, x * y) for x, y in zip(w, s)]
        out[site + A] = sum(r * g * p[0] for r, g, p in zip(root, sign, pairs))
        out[site + B] = sum(r * p[1] for r, p in zip(root, pairs))
    return Merged(out, {})


def _sites(adapters: Sequence[Adapter]) -> _Sites:
    """Site -> (A, B) in float32 of each adapter; all of them must have the same sites, of the same shapes."""
    names = [{k.removesuffix(A) for k in x if k.endswith(A)} for x in adapters]
    out: _Sites = {}
    for i, adapter in enumerate(adapters):
        for key, t in adapter.items():
            if not key.endswith((A, B)):
                raise CommonweightError(
                    f"{key}: adapter {i} has this beside LoRA's factors; only {A} and {B} are merged"
                )
            if not t.isfinite().all():
                raise CommonweightError(f"{key}: adapter {i} has NaN or infinity there")
        if odd := names[i] ^ names[0]:
            raise CommonweightError(
                f"{min(odd)}: not in both adapter 0 and adapter {i}; merge adapters of the same sites"
            )
        for site in sorted(names[i]):
            if site + B not in adapter:
                raise CommonweightError(f"{site + B}: adapter {i} has no such tensor, but its A")
            a, b = adapter[site + A].float(), adapter[site + B].float()
            if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
                raise CommonweightError(
                    f"{site}: adapter {i} has A {tuple(a.shape)} and B {tuple(b.shape)}; wanted (r, d_in), (d_out, r)"
                )
            first = out.setdefault(site, [])
            if first and (first[0][0].shape[1], first[0][1].shape[0]) != (a.shape[1], b.shape[0]):
                raise CommonweightError(f"{site}: adapter {i} changes a weight of another shape than adapter 0")
            first.append((a, b))
    return out
