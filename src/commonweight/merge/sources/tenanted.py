"""A model with a tenant of this project on it, as one source: its weights are changed as they are read."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, Site
from ...formats.fingerprint import close, of_derived, of_weights
from ...formats.peft import low_rank
from ...host.change import changed
from ...host.tenant import Derive, Entry, materialise
from .factored import product
from .laid import Piece, laid
from .names import bias_of, found_in, turned
from .opened import Opened, open_tenant
from .source import Source, held

_KEPT = 4  # tensors' changes at hand: what threads work on at one time


class _Place(NamedTuple):
    """What `changed` sees of a module."""

    name: str
    weight: Tensor
    bias: Tensor | None


class Tenanted:
    """The base's tensors, in float32 where the tenant changes them; numbers as `Host.merged` gives them.

    Memory: rows of changes that are products of factors; one weight where a method changes it as a whole (rotations,
    scales, DoRA, full). A head is left out: `notices`. That names and shapes fit is checked, the fingerprint of the
    weights that it reads, and numbers derived from the base; not the embeddings and layers that it does not read.
    Raises: CommonweightError for weights that the base does not have, another base than the tenant was trained on, and
    changes of anything else than weights.
    """

    def __init__(self, label: str, base: Source, tenant: str | Path | Opened):
        opened = tenant if isinstance(tenant, Opened) else open_tenant(tenant)
        self.label, self._base, self._lock = label, base, Lock()
        own = None if isinstance(tenant, Opened) else Path(tenant)
        self.files = (*base.files, *((own,) if own is not None and own.is_file() else ()))
        self.stored = own is not None and not own.is_file()  # in a store, where it may be published anew
        self.kept: Mapping[str, torch.dtype] = getattr(base, "kept", base.dtypes)  # those of the model that it changes
        self._sites = {s.name: s for s in opened.sites}
        for use in opened.plan.uses:
            if use.site in self._sites and getattr(use.bind, "weight", None) is None:
                raise CommonweightError(
                    f"{use.site}: {label} has a tenant of {opened.header['method']}, which changes no weights; "
                    "it cannot be merged"
                )
        self._names = found_in(base, {n.split("[")[0] for n in self._sites})
        other = [s for n, s in self._sites.items() if n.split("[")[0] not in self._names]
        self._laid = laid(label, base, other) if other else {}
        tables = {n.split("[")[0] for n, site in self._sites.items() if site.kind == "embedding"}
        self._turned = turned(base) | {self._names[n] for n in tables if n in self._names}
        self.notices: list[str] = []
        self._fit()
        if carried := opened.header.get("adapters"):
            raise CommonweightError(
                f"{label}: its tenant was trained on a base that carries the PEFT adapter {', '.join(carried)}, which "
                f"{base.label} has not; merge that into the base (PEFT's merge_and_unload), and train the tenant there"
            )
        self._same(opened.header.get("weights"), opened.header.get("float"))
        self._reads: dict[str, list[Entry]] = {}
        self._apart: dict[str, list[Entry]] = {}  # by site
        missing = [n for n in opened.plan.pools if n not in opened.pools]
        part = opened.plan._replace(pools={n: opened.plan.pools[n] for n in missing})
        pools = {**opened.pools, **materialise(part, Derive(self._weight), torch.device("cpu"), {})}
        here = of_derived(opened.plan, pools)
        if opened.check is not None and (here.shape != opened.check.shape or not close(here, opened.check)):
            raise CommonweightError(
                f"{label}: what {opened.header['method']} derives from the base differs here; give the base on which "
                "it was trained"
            )
        for use in opened.plan.uses:
            if use.site not in self._sites:
                self.notices.append(f"{label}: its head ({use.site}) is no part of the model, and is left out")
                continue
            reads = [(s, r.address, tuple(pools[p].detach() for p in r.pools)) for s, r in use.reads.items()]
            if use.site in self._laid:
                self._apart.setdefault(use.site, []).append(Entry(use.bind, reads, None))
                continue
            entry = Entry(use.bind, reads, self._sites[use.site].rows)
            self._reads.setdefault(self._names[use.site.split("[")[0]], []).append(entry)
        self._over: dict[str, list[tuple[Piece, str, int]]] = {}  # tensor -> (piece, its site, 0 its weight, 1 bias)
        for site, uses in self._apart.items():
            parts = self._laid[site] if any(getattr(e.bind, "bias", None) for e in uses) else self._laid[site][:1]
            for which, pieces in enumerate(parts):
                for piece in pieces:
                    self._over.setdefault(piece.tensor, []).append((piece, site, which))
        biases = {
            bias_of(n): n
            for n, uses in self._reads.items()
            if bias_of(n) in base.shapes and any(getattr(e.bind, "bias", None) for e in uses)
        }
        self._biases = biases
        self._kept: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        mine = dict.fromkeys([*self._reads, *biases, *self._over], torch.float32)
        self.dtypes: Mapping[str, torch.dtype] = {**base.dtypes, **mine}

    def flat(self, name: str, start: int, count: int) -> Tensor:
        if name in self._over:
            return self._in_pieces(name, start, count)
        if name in self._biases:
            return self._whole(self._biases[name])[1][start : start + count]
        if name not in self._reads:
            return self._base.flat(name, start, count)
        if any(getattr(e.bind, "factors", None) is None for e in self._reads[name]):
            return self._whole(name)[0].reshape(-1)[start : start + count]
        left, right = self._product(name)
        return self._base.flat(name, start, count).float() + product(left, right, start, count)

    def read(self, name: str) -> Tensor:
        return self.flat(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def where(self, name: str) -> str:
        return self.label

    def ahead(self, name: str) -> None:
        self._base.ahead(name)

    def held(self, count: int, threads: int) -> int:
        """Pools, the largest changes (one of them in the making, of which there are several copies), rows of others."""
        pools = {
            p.data_ptr(): p.nbytes for uses in self._reads.values() for e in uses for _, _, ps in e.reads for p in ps
        }
        apart = [4 * (s.out * s.inp + s.out) for n, s in self._sites.items() if n in self._apart]
        sizes = sorted([*map(self._size, self._reads), *apart], reverse=True)
        made = sum(sizes[:_KEPT]) + 4 * sizes[0] if sizes else 0
        return sum(pools.values()) + made + 4 * 3 * count * threads + held(self._base, count, threads)

    def _size(self, name: str) -> int:
        """Bytes of a tensor's change: as factors, or whole."""
        if any(getattr(e.bind, "factors", None) is None for e in self._reads[name]):
            return 4 * math.prod(self.shapes[name])
        return sum(t.nbytes for t in self._product(name))

    def _product(self, name: str) -> tuple[Tensor, ...]:
        """(left, right) of the update left @ right, as the weight lies."""

        def make() -> tuple[Tensor, ...]:
            shape = self.shapes[name]
            parts = [(*e.bind.factors(**e.slots(None)), e.rows) for e in self._reads[name]]
            low = low_rank.joined(parts, shape[1] if name in self._turned else shape[0])
            return (low.A.T, low.B.T) if name in self._turned else (low.B, low.A)

        return self._known(f"{name} factors", make)

    def _whole(self, name: str) -> tuple[Tensor, ...]:
        """(weight, bias), changed, as they lie."""

        def make() -> tuple[Tensor, ...]:
            weight, bias = self._matrix(name).float(), bias_of(name)
            turned = name in self._turned
            b = self._base.read(bias).float() if bias in self._base.shapes else None
            place: Any = _Place(name, weight, b)
            w, b = changed(place, self._reads[name])
            return (w.T.contiguous() if turned else w.contiguous(), torch.zeros(0) if b is None else b)

        return self._known(name, make)

    def _in_pieces(self, name: str, start: int, count: int) -> Tensor:
        out = self._base.flat(name, start, count).float().clone()
        for piece, site, which in self._over[name]:
            a, b = max(start, piece.start), min(start + count, piece.start + piece.count)
            if a < b:
                new = self._site(site)[which].view(-1, piece.inp)[piece.first : piece.first + piece.rows]
                lies = torch.empty(piece.count)
                piece.lay(lies).copy_(new)
                out[a - start : b - start] = lies[a - piece.start : b - piece.start]
        return out

    def _site(self, site: str) -> tuple[Tensor, ...]:
        """(weight, bias), changed, of a site that lies in pieces."""

        def make() -> tuple[Tensor, ...]:
            weight, bias = self._laid[site]
            place: Any = _Place(site, self._gather(weight), self._gather(bias)[:, 0] if bias else None)
            w, b = changed(place, self._apart[site])
            return w, torch.zeros(0) if b is None else b

        return self._known(f"site {site}", make)

    def _gather(self, pieces: tuple[Piece, ...]) -> Tensor:
        return torch.cat([p.lay(self._base.flat(p.tensor, p.start, p.count).float().contiguous()) for p in pieces])

    def _known(self, key: str, make: Any) -> tuple[Tensor, ...]:
        with self._lock, torch.no_grad():
            if key not in self._kept:
                self._kept[key] = make()
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def _fit(self) -> None:
        for name, site in self._sites.items():
            if name in self._laid:
                continue
            shape = self._base.shapes[self._names[name.split("[")[0]]]
            rows, numbers = site.rows[1] if site.rows else site.out, math.prod(shape)
            if numbers % site.inp or numbers // site.inp < rows or (site.rows is None and numbers != rows * site.inp):
                raise CommonweightError(
                    f"{name}: the tenant of {self.label} reads a weight of {rows} by {site.inp} numbers there, and "
                    f"{self._base.label} has one of {' by '.join(map(str, shape))}; give the base on which it was "
                    "trained"
                )

    def _same(self, said: str | None, of_float: str | None) -> None:
        """of_float: of the floating-point weights that a quantised copy was made of, on which it may be put too."""
        if said is None:
            self.notices.append(
                f"{self.label}: its tenant's file does not say on which weights it was trained; that was not checked"
            )
        elif (here := of_weights([*self._sites.values()], self._numbers)) not in (said, of_float):
            raise CommonweightError(
                f"{self.label}: its tenant was trained on another base: the weights that it reads have the fingerprint "
                f"{said[:8]} there, {here[:8]} in {self._base.label}; give the base on which it was trained"
            )

    def _numbers(self, site: Site, places: Tensor) -> Tensor:
        """Of a site's weight (out, inp), at these places."""
        if site.name in self._laid:
            at = [*zip((places // site.inp).tolist(), (places % site.inp).tolist())]
            pieces = [next(p for p in self._laid[site.name].weight if r < p.first + p.rows) for r, _ in at]
            return torch.cat([self._base.flat(p.tensor, p.at(r, c), 1) for p, (r, c) in zip(pieces, at)])
        name = self._names[site.name.split("[")[0]]
        row, column = places // site.inp + (site.rows or (0, 0))[0], places % site.inp
        shape = self._base.shapes[name]
        at = column * shape[1] + row if name in self._turned else row * site.inp + column
        return torch.cat([self._base.flat(name, i, 1) for i in at.tolist()])

    def _weight(self, site: str) -> Tensor:
        """A site's own, (out, inp), for pools that are derived from it."""
        if site in self._laid:
            return self._gather(self._laid[site].weight)
        name = self._names[site.split("[")[0]]
        weight, rows = self._matrix(name), self._sites[site].rows
        return weight if rows is None else weight[slice(*rows)]

    def _matrix(self, name: str) -> Tensor:
        """A tensor as sites see it, (out, inp): of a table a column is an entry, of a convolution a row a patch."""
        weight = self._base.read(name)
        return weight.T if name in self._turned else weight.flatten(1) if weight.dim() > 2 else weight
