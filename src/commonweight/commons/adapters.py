"""Folders of finished PEFT adapters into a store, as tenants of one common: `share`'s bases, and few numbers each."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..bind import Classify
from ..core import CommonweightError, safe
from ..formats.peft import FAMILIES, heads, kinds, layout, refusals
from ..formats.peft import folder as peft
from .manifest import Manifest
from .pool import size
from .subspace import Lora, Subspace, distance, fit

if TYPE_CHECKING:
    from ..formats.coding import Choice
    from ..host import Host, Tenant
    from .store import Commons


class Imported(NamedTuple):
    """name: the tenant's, in the store. rank: of its update. before: bytes of its adapter_model.safetensors; None for a
    tenant that was in the store already and is expressed anew. own: bytes of what it alone has in the store, its
    manifest included. error: |B A - what it is now| / |B A|, Frobenius norms over all its sites."""

    name: str
    rank: int
    before: int | None
    own: int
    error: float


class Import(NamedTuple):
    """tenants: by name. common: bytes of the bases, which all of them read, and of the tenants' blueprints."""

    tenants: tuple[Imported, ...]
    common: int

    @property
    def before(self) -> int:
        return sum(t.before or 0 for t in self.tenants)

    @property
    def after(self) -> int:
        return self.common + sum(t.own for t in self.tenants)


def import_peft(
    store: Commons,
    host: Host,
    folders: Sequence[str | os.PathLike[str]],
    *,
    common: str = "adapters",
    keep: float = 0.95,
    k: int | None = None,
    codec: Choice = None,
    labels: Mapping[str, Sequence[str] | int] | None = None,
) -> Import:
    """Writes PEFT LoRA adapters into a store as tenants of method `share` with one common.

    host: a host of the adapters' base; it is not changed. folders: adapters, or folders of adapters; a tenant is
    named after its folder. common: the name of the common. Tenants of the store that already use it are included: the
    bases grow, and these tenants get a new version for them, whose parent is the old one.
    keep: the mean share of an adapter's squared norm that is kept at least; k: so many directions in place of it.
    codec: as for `Commons.publish`.
    labels: name -> the classes of the head in the folder, see `Host.import_peft`; the head is imported unchanged, or
    left out with (). A head without labels is refused.
    All tenants are published at once, after everything is computed.
    Cost: two SVDs a site of (sum of ranks, width) matrices.
    Raises: CommonweightError naming the folder: no adapter there, another base, a change that is not a product of two
    factors (DoRA, a trained bias), or a repeated name.
    """
    if common in host.roster.commons:
        raise CommonweightError(f"the host has tenants of a common {common!r}; remove them first, or use another host")
    found = adapters(folders)
    _one_base(found)
    loras: dict[str, Lora] = {}
    others: dict[str, tuple[tuple[str, ...], dict[str, Tensor]]] = {}
    for name in [n for n in store if n not in found]:
        header = store.manifest(name).tenant
        if header.get("common") != common:
            continue
        if header["method"] != "share":
            raise CommonweightError(
                f"{name}: a tenant of {header['method']} has the common {common!r} in this store; choose another name"
            )
        tenant = host.load_from(store, name)
        loras[name] = _factors(name, tenant)
        others[name] = (tenant.labels or (), {n: t.detach().clone() for n, t in tenant.pools.items()})
        host.remove(name)
    for name, folder in found.items():
        tenant = host.import_peft(name, folder, labels=(labels or {}).get(name))
        try:
            loras[name] = _factors(str(folder), tenant)
            if tenant.labels is not None:
                others[name] = (tenant.labels, {n: t.detach().clone() for n, t in tenant.pools.items()})
        finally:
            host.remove(name)
    sites = {s for lora in loras.values() for s in lora}
    return _publish(store, host, found, loras, others, sites, common=common, keep=keep, k=k, codec=codec)


def _publish(
    store: Commons, host: Host, found: Mapping[str, Path], loras: Mapping[str, Lora],
    others: Mapping[str, tuple[tuple[str, ...], dict[str, Tensor]]], sites: set[str],
    *, common: str, keep: float, k: int | None, codec: Choice,
) -> Import:  # fmt: skip
    from ..host.files import settle
    from ..methods import families
    from ..methods.shared_pools.share import Share

    groups = {
        f: [s.name for s in group] for f, group in families([s for s in host.base.every if s.name in sites]).items()
    }
    space = fit(loras, groups, keep, k or 0)
    counts = {f: (len(space.bases[group[0]][0]), len(space.bases[group[0]][1])) for f, group in groups.items()}
    named = [(p, *counts[f]) for f, group in groups.items() for p in (group if "[" in f else [f])]
    ks = tuple(sorted(named, key=lambda k: -len(k[0])))  # the first match wins: the narrower pattern
    made: list[Tenant] = []
    try:
        for name, coefficients in space.coefficients.items():
            rank = max(eps.shape[1] for pair in coefficients.values() for eps in pair)
            labels, kept = others.get(name, ((), {}))
            tenant = host.add(
                name, Share(k=1, rank=rank, ks=ks), sites=lambda s, _: s in sites, common=common, labels=labels or None
            )
            made.append(tenant)
            with torch.no_grad():
                for pool, value in tenant.pools.items():
                    site, _, slot = pool.rpartition(".")
                    value.copy_(_value(space, name, site, slot, value) if site in sites else kept[pool])
            settle(tenant, codec)
        errors = {t.name: distance(loras[t.name], _factors(t.name, t)) for t in made}
        published = store.publish_all(
            host,
            errors,
            codecs=dict.fromkeys(errors, codec),
            metrics={n: {"relative_error": e} for n, e in errors.items()},
            parents={n: [n] for n in errors if n not in found},
        )
    finally:
        for tenant in made:
            host.remove(tenant.name)
    costs = {n: _costs(m) for n, m in published.items()}
    bases = {h: n for _, shared in costs.values() for h, n in shared.items()}
    told = []
    for t in made:
        before = (found[t.name] / peft.TENSORS).stat().st_size if t.name in found else None
        told.append(Imported(t.name, t.config.rank, before, costs[t.name][0], errors[t.name]))
    return Import(tuple(sorted(told, key=lambda t: t.name)), sum(bases.values()))


def _value(space: Subspace, name: str, site: str, slot: str, like: Tensor) -> Tensor:
    """One pool's numbers: a basis, or coefficients with zeros up to the tenant's rank; all zeros where it has none."""
    kind, _, side = slot.partition("_")
    if kind == "basis":
        return space.bases[site]["AB".index(side)]
    given = space.coefficients[name].get(site)
    out = torch.zeros(tuple(like.shape))
    if given is not None:
        eps = given["AB".index(side)]
        out[:, : eps.shape[1]] = eps
    return out


def _costs(m: Manifest) -> tuple[int, dict[str, int]]:
    """(bytes of its own, bytes of each file that others read too, by hash)."""
    made = m.blueprint
    assert made is not None
    shared = {r.hash: r.nbytes for r in made.pools.values()} | {made.hash: len(made.text)}
    return sum(size(*content) for hash, content in m.files.items() if hash not in shared) + len(m.text), shared


def _factors(where: str, tenant: Tenant) -> Lora:
    """What a tenant adds at each site, as (A, B)."""
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for use in tenant.plan.uses:
        if isinstance(use.bind, Classify):
            continue
        factors = getattr(use.bind, "factors", None)
        if factors is None:
            raise CommonweightError(
                f"{where}: {tenant.method.name} at {use.site} ({type(use.bind).__name__}) is not a product of two "
                "factors, which a common subspace wants; import it by itself, with Host.import_peft, and publish it"
            )
        with torch.no_grad():
            A, B = factors(**{k: r.address(*(tenant.pools[p] for p in r.pools)) for k, r in use.reads.items()})
        out[use.site] = A.detach().clone(), B.detach().clone()
    return out


def adapters(folders: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """Name -> folder of every adapter: the given folders, those right inside them, and those that lie in an adapter.

    A tenant is called as its folder, and as its repository for a snapshot in the hub's cache. Warns of the checkpoints
    of a training that lie beside its adapter: they are left out, unless they are named. Raises: CommonweightError for a
    folder without an adapter, and for a name twice.
    """
    out: dict[str, Path] = {}
    for given in map(Path, folders):
        inside, left = layout.found(given)
        left = [f for f in left if f.resolve() not in {Path(g).resolve() for g in folders}]
        if left:
            warnings.warn(
                f"{left[0].parent}: {len(left)} checkpoints of its training are left out ({left[0].name}, ...); name "
                "them to import them too",
                stacklevel=2,
            )
        for folder in inside:
            name = safe(layout.title(folder))
            if out.get(name, folder).resolve() != folder.resolve():
                raise CommonweightError(
                    f"{folder}: another adapter is called {name!r} too, {out[name]}; a tenant is named after its folder"
                )
            out[name] = folder
    if not out:
        raise CommonweightError("no adapters were named; wanted folders that PEFT's save_pretrained wrote")
    return out


def known(found: Mapping[str, Path]) -> None:
    """Refuses adapters of a kind that nothing here reads, before a base is loaded for them."""
    for folder in found.values():
        if (kind := peft.config(folder)["peft_type"]) not in FAMILIES and kind not in kinds.THROUGH:
            raise CommonweightError(f"{folder}: {refusals.kind(kind)}")


def of_task(found: Mapping[str, Path]) -> str:
    """What the adapters are for, as their ``task_type`` says: classify, embed or lm; without one, lm unless one of them
    brings a head. Raises: CommonweightError for several tasks."""
    tasks = {n: _task(f) for n, f in found.items()}
    first = next(iter(tasks))
    for n, task in tasks.items():
        if task != tasks[first]:
            raise CommonweightError(
                f"{found[n]}: is for {task}, {found[first]} for {tasks[first]}; import them apart, or say which with "
                "--task"
            )
    return tasks[first]


def _task(folder: Path) -> str:
    config, tensors = peft.read(folder)
    said = config.get("task_type")
    if said is not None and said not in TASKS:
        raise CommonweightError(
            f"{folder / peft.CONFIG}: task_type {said!r}: wanted one of {', '.join(TASKS)}; name the task with --task"
        )
    return TASKS[said] if said is not None else "classify" if heads.part(config, tensors)[2] else "lm"


TASKS = {"CAUSAL_LM": "lm", "SEQ_CLS": "classify", "FEATURE_EXTRACTION": "embed"}


def classes_of(found: Mapping[str, Path]) -> dict[str, int]:
    """How many classes the head has that lies beside an adapter, of those that bring one."""
    out = {}
    for name, folder in found.items():
        try:
            head = heads.read(heads.part(*peft.read(folder))[2])
        except CommonweightError as e:
            raise CommonweightError(str(e) if str(e).startswith(str(folder)) else f"{folder}: {e}") from e
        if head is not None:
            out[name] = len(head.W)
    return out


def _one_base(found: Mapping[str, Path]) -> None:
    """Adapters that name different bases do not belong together, whatever their shapes."""
    named = {n: peft.config(f).get("base_model_name_or_path") for n, f in found.items()}
    first = next((n for n in named if named[n]), None)
    for n, base in named.items():
        if first and base and base != named[first]:
            raise CommonweightError(
                f"{found[n]}: its base is {base}, that of {found[first]} is {named[first]}; import them apart"
            )
