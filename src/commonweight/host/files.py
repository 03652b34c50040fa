"""Tenants to and from files: the checks that need the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..core import CommonweightError, Plan, Site, build_stored, dump, library
from ..formats import atomic, coding, native
from ..formats.coding import Choice
from ..formats.fingerprint import close, of_derived, of_weights, tells
from ..formats.order import site_fields
from ..methods import METHODS, OVER, Beside, beside, head, head_of
from ..methods import plan as make_plan
from .common import Common
from .follow import fit
from .names import adapters
from .origin import of_float, quantised
from .over import content, found, having, plan_over, pools_over, said
from .replanned import coded, levelled
from .roster import Roster
from .tenant import Tenant
from .vocabulary import brings, fingerprint, placed, ready, relied

if TYPE_CHECKING:
    from .hooked import HookedModel


class Stored(Protocol):
    """One tenant as a store holds it. where: for messages. parents: ``name@version`` of what it was made from. hashes:
    tensor -> hash of its dtype, shape and bytes."""

    name: str
    where: str
    header: Mapping[str, Any]
    hashes: Mapping[str, str]
    parents: tuple[str, ...]

    def read(self, tensor: str) -> Tensor: ...


class Source(Protocol):
    """Where tenants are fetched from: `commonweight.Commons` is one."""

    def fetch(self, name: str) -> Stored: ...


def save(
    base: HookedModel,
    tenant: Tenant,
    path: Path,
    metrics: Mapping[str, Any] | None,
    codec: Choice = None,
    overwrite: bool = True,
) -> Path:
    return atomic.write_new(path, encode(base, tenant, metrics, codec), overwrite=overwrite)


def encode(base: HookedModel, tenant: Tenant, metrics: Mapping[str, Any] | None, codec: Choice = None) -> bytes:
    """The bytes of the tenant's file."""
    bad = [n for n, t in tenant.pools.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CommonweightError(f"{tenant.name}: pool {bad[0]} holds NaN or infinity; nothing was written")
    with _named(tenant.name):
        tenant = tenant if codec is None else coded(tenant, codec)
    sites = _sites(base, tenant)
    config = dump(tenant.config)
    config.pop("is")
    header: dict[str, Any] = {
        "version": library(),
        "method": tenant.method.name,
        "config": config,
        "seed": tenant.plan.seed,
        **site_fields(sites),
        "weights": weights(base, tenant),
        "plan": tenant.plan.digest(),
        "base": fingerprint(base, (rows := relied(base, tenant))),
    }
    if tenant.vocabulary is not None:
        header["vocabulary"] = tenant.vocabulary
        if rows != tenant.vocabulary:
            header["rows"] = rows
    if (form := quantised(base.model)) is not None:
        header["quantised"] = form
    if carried := adapters(base.model):
        header["adapters"] = carried
    if (form is not None or not any(map(tells, sites))) and (origin := _origin(base, sites)) is not None:
        header["float"] = origin
    if tenant.labels is not None:
        header["labels"] = tenant.labels
    if tenant.apart:
        header["apart"] = True
    if tenant.held:
        held = tenant.beside
        beside: dict[str, Any] = {"sites": native.pack_sites(list(tenant.held)), "rows": dict(held.rows)}
        if held.biases:
            beside["biases"] = held.biases
        header["beside"] = beside
    if metrics:
        header["metrics"] = metrics
    if tenant.common is not None:
        header["common"] = tenant.common.name
    if tenant.over:
        header["over"] = said(tenant)
    with _named(tenant.name):
        return native.encode(header, tenant.plan, tenant.pools, of_derived(tenant.plan, tenant.pools), codec)


def weights(base: HookedModel, tenant: Tenant) -> str:
    """The fingerprint of the weights that the tenant's sites read."""
    return _weights(base, _sites(base, tenant))


def _weights(base: HookedModel, sites: list[Site]) -> str:
    return of_weights(sites, lambda s, places: base.modules[s.name.split("[")[0]].rows(s.rows).steady(places))


def _origin(base: HookedModel, sites: list[Site]) -> str | None:
    """The fingerprint in floating point of the weights that a tenant's sites read or, where none of them reads a matrix
    (prompts, blocks, tables, norms), of some that the base has outside of heads. None where these are not known."""
    if not any(map(tells, sites)):
        every = [s for s in base.every if tells(s) and s.name.split("[")[0] not in base.heads]
        sites = every[:: -(-len(every) // _SOME)] if every else []
    if not sites:
        return None
    if quantised(base.model) is not None:
        return of_float(base.model, base.modules, sites)
    try:
        return _weights(base, sites)
    except CommonweightError:  # a layer that nobody can read
        return None


_SOME = 64


def _related(base: HookedModel, header: Mapping[str, Any], sites: list[Site]) -> bool:
    """Whether the tenant's base and this one were made of the same weights, one of them or both quantised since."""
    if quantised(base.model) is None and "quantised" not in header:
        return False
    theirs = header.get("float", None if "quantised" in header else header.get("weights"))
    return theirs is not None and theirs == _origin(base, sites)


def _other(base: HookedModel, header: Mapping[str, Any]) -> str:
    here, there = quantised(base.model), header.get("quantised")
    if here == there:
        return ""
    forms = f"the base is {there or 'in floating point'} there, {here or 'in floating point'} here"
    return f"{forms}, and that both come from the same weights is not on record; "


def _sites(base: HookedModel, tenant: Tenant) -> list[Site]:
    """Those the plan was made for, where the tenant knows: a plan may pass over some of them, and count them all."""
    mine = {s.name: s for s in tenant.sites}  # a layer may have more rows by now than the tenant knew
    given = mine.keys() or {u.site for u in tenant.plan.uses} - {*tenant.beside.sites}
    return [mine.get(s.name, s) for s in base.every if s.name in given and s.kind != "head"]


def settle(tenant: Tenant, codec: Choice) -> None:
    """Gives the pools the values that they will have after saving with this codec and loading; see `coding.choose`.

    Then what is measured is what the file holds. A tenant whose method trains numbers behind its levels is at its
    levels from now on, as `Host.compact` makes it. Raises: as saving does; the pools are then as they were.
    """
    with _named(tenant.name):
        if codec is not None:
            levelled(tenant, codec)
        values = native.rounded(tenant.plan, tenant.pools, codec, tenant.common is not None)
    with torch.no_grad():
        for name, value in values.items():
            tenant.pools[name].copy_(value)


def load(roster: Roster, name: str, path: Path, check_base: bool) -> Tenant:
    header = native.read_header(path)
    return _enter(roster, name, str(path), header, lambda plan: (*native.decode(path, plan, header), {}), check_base)


def load_stored(roster: Roster, name: str, stored: Stored, check_base: bool, source: Source | None = None) -> Tenant:
    """A stored pool that is frozen, or of a common, exists once per host, however many read it; others are copies.
    source: where the tenants that it stands on are fetched from, if the host does not have them."""
    header = native.look(stored.where, dict(stored.header))
    below = _below(roster, name, stored, check_base, source) if "over" in header else None
    of = header.get("common")

    def read(plan: Plan) -> Read:
        order = native.layout(plan)
        codecs = coding.read(stored.where, plan, order, header.get("codec"))
        # what may be trained again is one with its like of the same common alone: equal numbers do not make it the same
        common = {
            n: (
                (of, n) if plan.pools[n].train else None,
                stored.hashes.get(tensor),
                None if len(names) == 1 else row,
                codecs.get(tensor),
            )
            for tensor, names in order.items()
            for row, n in enumerate(names)
            if not plan.pools[n].train or (of is not None and plan.pools[n].scope == "shared")
        }
        known = {n: roster.frozen[k] for n, k in common.items() if k in roster.frozen}
        known = {n: t for n, t in known.items() if tuple(t.shape) == plan.pools[n].shape}
        pools, check = native.unpack(stored.where, header, plan, stored.hashes, stored.read, known)
        return pools, check, common

    return _enter(roster, name, stored.where, header, read, check_base, below)


def _below(roster: Roster, name: str, stored: Stored, check_base: bool, source: Source | None) -> list[Tenant]:
    """The tenants that a stored one stands on: the host's, or such as nobody else knows, which go with it."""
    out = []
    for parent, wanted in stored.header["over"]:
        label = next((p for p in stored.parents if p.partition("@")[0] == parent), None)
        if (there := having(roster, parent, wanted)) is None and source is not None and label is not None:
            there = load_stored(roster, f"{parent[:40]}.under.{name[:40]}", source.fetch(label), check_base, source)
            with roster.lock:
                del roster.tenants[there.name]
                there.name, there.hidden = parent, True
            if content(there) != wanted:
                raise CommonweightError(f"{stored.where}: it stands on {label}, which holds other numbers by now")
        out += [] if there is None else [there]
    return out if len(out) == len(stored.header["over"]) else found(roster, stored.where, stored.header)


def same(tenant: Tenant, stored: Stored) -> bool:
    """Whether a store holds the numbers that a tenant has. Cost: reads them."""
    header = native.look(stored.where, dict(stored.header))
    if header["plan"] != tenant.plan.digest() or header.get("over", []) != said(tenant):
        return False
    pools, _ = native.unpack(stored.where, header, tenant.plan, stored.hashes, stored.read)
    return all(torch.equal(tenant.pools[n].detach().cpu(), t) for n, t in pools.items())


Read = tuple[dict[str, Tensor], Tensor | None, dict[str, Any]]


def _enter(
    roster: Roster, name: str, path: str, header: Mapping[str, Any], read: Callable[[Plan], Read], check_base: bool,
    below: Sequence[Tenant] | None = None,
) -> Tenant:  # fmt: skip
    with _named(path):
        method = (OVER if "over" in header else METHODS).get(header["method"])
        config = build_stored(method.config, header["config"])
    base = roster.base
    base.follow([*roster.tenants.values()])
    sites = placed(base, path, native.unpack_sites(path, header["sites"]))
    beside_, held = _beside(base, path, header.get("beside"))
    size = header.get("vocabulary", base.limit.own)  # older files do not say it
    brings(base, path, size, rows := header.get("rows", size))
    here = fingerprint(base, rows)
    if check_base and header["base"] != here and not _related(base, header, sites):
        raise CommonweightError(
            f"{path}: made for another base: same shapes, other weights (fingerprint {header['base'][:8]} there, "
            f"{here[:8]} here); {_other(base, header)}load(..., check_base=False) takes it all the same"
        )
    labels = header.get("labels")
    below = below or (found(roster, path, header) if "over" in header else [])
    with _named(path):
        made = plan_over(method, config, sites, below, header["seed"]) if below else None
        plan = beside(beside_, held, header["seed"]) + (made or make_plan(config, sites, seed=header["seed"]))
        if labels is not None:
            labels = tuple(labels)
            plan += head_of(method, config, sites, base.head_site(), len(labels))
    if plan.digest() != header["plan"]:
        if labels is not None and any(_with_head(plan, base, n, len(labels)) == header["plan"] for n in PLACES):
            raise CommonweightError(
                f"{path}: its head was trained on features that are pooled in another way than this host's; open the "
                'host as it was: adapt.open_host(..., pool="transformers") for heads from PEFT, without pool for others'
            )
        raise CommonweightError(
            f"{path}: written by commonweight {header.get('version')}, whose {method.name} reads its pools in "
            "another way; load it with that version"
        )
    pools, check, common = read(plan)
    with _named(path):
        of = roster.join(header.get("common"), method, plan, frozen=True)
        if of is not None:
            _same(of, pools)
        ready(base, size, [*roster.tenants.values()])
        if made is not None:
            pools = {**pools, **pools_over(method, config, made, below)}
        tenant = roster.attach(
            name, method, config, plan, labels, pools, common, sites, of, "apart" in header, beside_, held, below
        )
        tenant.vocabulary = size
        fit(tenant, {s.name: s for s in base.every})
    here = of_derived(plan, tenant.pools)
    if check_base and check is not None and (here.shape != check.shape or not close(here, check)):
        with roster.lock:
            roster.remove(name)
            if roster.next == tenant.number + 1:  # nobody has seen its number
                roster.next -= 1
        raise CommonweightError(
            f"{path}: what {method.name} derives from the base differs here; load it on the base in the precision "
            "in which it was trained"
        )
    return tenant


def _beside(base: HookedModel, path: str, said: Mapping[str, Any] | None) -> tuple[Beside, list[Site]]:
    """What a header says that the tenant holds beside its method, and the sites of it in the order of the plan."""
    if said is None:
        return Beside(), []
    sites = placed(base, path, native.unpack_sites(path, said["sites"]))
    of_bias = {*said.get("biases", ())}
    biases, rows = [s for s in sites if s.name in of_bias], [s for s in sites if s.name in said["rows"]]
    copies = [s for s in sites if s not in biases and s not in rows]
    entries = tuple((s.name, tuple(said["rows"][s.name])) for s in rows)
    return Beside(tuple(s.name for s in copies), entries, tuple(s.name for s in biases)), copies + rows + biases


PLACES = "head", "pooler_head"  # where heads stand in a classifier, by what they read


def _with_head(plan: Plan, base: HookedModel, place: str, labels: int) -> str:
    """The digest of the plan if the head stood in another place."""
    site = base.head_site()
    rest = Plan(
        {n: p for n, p in plan.pools.items() if not n.startswith(f"{site.name}.")},
        tuple(u for u in plan.uses if u.site != site.name), plan.seed,
    )  # fmt: skip
    return (rest + head(site._replace(name=place), labels)).digest()


def _same(common: Common, pools: Mapping[str, Tensor]) -> None:
    for n, here in common.pools.items():
        if n in pools and here is not pools[n] and not torch.equal(here.detach().cpu(), pools[n].detach().cpu()):
            raise CommonweightError(
                f"the host has another common {common.name!r}, whose pool {n} holds other numbers; remove its tenants "
                "first, or use another host"
            )


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Says in every error which file it came from."""
    try:
        yield
    except CommonweightError as e:
        raise CommonweightError(f"{path}: {e}") from e
