"""Tenants of this project read without a model: the plan is made anew from the file's header, and must be its plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...commons import Commons
from ...core import CommonweightError, Plan, Site, build_stored
from ...formats import native
from ...formats.order import places
from ...host.sites import role
from ...host.tenant import Derive, materialise
from ...methods import get, head
from ...methods import plan as make_plan
from .safefile import metadata


class Opened(NamedTuple):
    """label: for messages. pools: every pool but those derived from the base. check: numbers of those derived."""

    label: str
    header: Mapping[str, Any]
    plan: Plan
    pools: dict[str, Tensor]
    check: Tensor | None
    sites: tuple[Site, ...]


Read = Callable[[Plan], tuple[dict[str, Tensor], Tensor | None]]


def is_tenant(path: Path) -> bool:
    """Whether this is a tenant's file, damaged as it may be, and no model's; a merged model has a mark of its own."""
    if not path.is_file():
        return False
    try:
        native.read_header(path)
    except CommonweightError:
        try:
            said = json.loads(metadata(path)["commonweight"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return isinstance(said, dict) and "merge" not in said
    return True


def stored(name: str | Path) -> tuple[str, str] | None:
    """(folder, tenant) of "STORE:TENANT", where there is such a store; else None."""
    folder, colon, tenant = str(name).rpartition(":")
    return (folder, tenant) if colon and (Path(folder) / "store.json").is_file() else None


def open_tenant(name: str | Path) -> Opened:
    """A tenant's file, or "STORE:TENANT". Raises: CommonweightError for files that are damaged, and for tenants whose
    sites cannot be told from their header (rows of fused layers in another order, modules of unusual kinds)."""
    label, header, read, shapes = _parts(name)
    if "beside" in header:
        raise CommonweightError(
            f"{label}: holds whole modules or rows of the vocabulary beside its method, which are not merged as an "
            "adapter; load it on a host of its base and give cw.merge the state dict with host.merged(name) over it"
        )
    try:
        config = build_stored(get(header["method"]).config, header["config"])
        known = _known(label, header)
        for sites in _guesses(label, header) if known is None else [known]:
            try:
                plan = make_plan(config, sites, seed=header["seed"])
            except CommonweightError:
                if known is not None:
                    raise
                continue
            for extra in _heads(header, shapes) if header.get("labels") else (None,):
                whole = plan if extra is None else plan + extra
                if whole.digest() == header["plan"]:
                    pools, check = read(whole)
                    return Opened(label, header, whole, _whole(whole, pools), check, tuple(sites))
    except CommonweightError as e:
        raise CommonweightError(str(e) if str(e).startswith(label) else f"{label}: {e}") from e
    if known is not None:
        raise CommonweightError(
            f"{label}: written by commonweight {header.get('version')}, whose {header['method']} reads its pools in "
            "another way; load it with that version"
        )
    raise CommonweightError(
        f"{label}: the order of its sites in the model cannot be told from the file; load it on a host of its base and "
        "give cw.merge the state dict with host.merged(name) over it"
    )


def _parts(name: str | Path) -> tuple[str, Mapping[str, Any], Read, Mapping[str, tuple[int, ...]]]:
    """(label, header, how to read it, shapes of its tensors)."""
    if (found := stored(name)) is not None:
        got = Commons(found[0]).fetch(found[1])
        header = native.look(got.where, dict(got.header))
        shapes = {k: tuple(got.content(k).shape) for k in got.hashes}
        return str(name), header, lambda plan: native.unpack(got.where, header, plan, got.hashes, got.read), shapes
    path = Path(name)
    header = native.read_header(path)
    with native.opened(path) as f:
        shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}
    return str(path), header, partial(native.decode, path, header=header), shapes


def _known(label: str, header: Mapping[str, Any]) -> list[Site] | None:
    """The sites as the header says them."""
    found, shapes = places(label, header), native.unpack_sites(label, header["sites"])
    return None if found is None else [_site(p.name, *shapes[p.name], p.kind, p.bias, p.role) for p in found]


def _guesses(label: str, header: Mapping[str, Any]) -> Iterator[list[Site]]:
    """For files of before: the sites in the order of the model, as far as names and shapes tell; a plan may depend on
    that order. The digest says which guess is right."""
    shapes = native.unpack_sites(label, header["sites"])
    for order, back, bias, block in product(_ORDERS, (False, True), (True, False), ("linear", "block")):
        found = {n: _site(n, *shapes[n], _kind(n, *shapes[n], block), bias) for n in shapes}
        roles = {n: order.index(s.role) if s.kind == "linear" else len(order) for n, s in found.items()}
        homes: dict[str, int] = {}
        for n, r in roles.items():
            homes[_home(n)] = min(r, homes.get(_home(n), r))
        stacks = sorted({native.template(n)[0].partition("{}")[0] for n in shapes}, reverse=back)

        def place(name: str, roles=roles, homes=homes, stacks=stacks) -> tuple[Any, ...]:
            key, number = native.template(name)
            home = _home(name)
            return (stacks.index(key.partition("{}")[0]), number or 0, homes[home], home, roles[name], name)

        yield [found[n] for n in sorted(shapes, key=place)]


_ORDERS = tuple(
    (*attention, "qkv", "attn_out", "gate", "up", "down", "")
    for attention in (("query", "key", "value"), ("key", "value", "query"))
)


def _home(name: str) -> str:
    return name.rpartition(".")[0]


def _kind(name: str, out: int, inp: int, block: str) -> str:
    return "norm" if inp == 1 else block if name.rpartition(".")[2].isdigit() and out == inp else "linear"


def _site(name: str, out: int, inp: int, kind: str, bias: bool, said: str | None = None) -> Site:
    whole, bracket, part = name.partition("[")
    rows = (int(part[:-1]) * out, (int(part[:-1]) + 1) * out) if bracket else None
    named = role(whole) if kind in ("linear", "expert") else ""
    return Site(name, out, inp, kind, named if said is None else said, bias, rows)


def _heads(header: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Iterator[Plan]:
    """The classification heads that the tensors could be of."""
    n = len(header["labels"])
    for key, shape in shapes.items():
        site = key.removesuffix(".W")
        if site != key and len(shape) == 2 and shape[0] == n and tuple(shapes.get(f"{site}.b", ())) == (n,):
            yield head(Site(site, 0, shape[1], "head", "", False), n)


def _whole(plan: Plan, pools: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the pools that are drawn anew from the seed; those that come from the base are not at hand."""
    out = dict(pools)
    for name in plan.pools.keys() - pools.keys():
        try:
            out |= _drawn(plan, [name])
        except _NeedsBase:
            continue
    return out


def start(opened: Opened, names: Sequence[str]) -> dict[str, Tensor]:
    """What these pools were before training. Raises: CommonweightError for those that the base's weights start."""
    return {n: t.detach() for n, t in _drawn(opened.plan, names).items()}


def _drawn(plan: Plan, names: Sequence[str]) -> dict[str, Tensor]:
    part = plan._replace(pools={n: plan.pools[n] for n in names})
    return materialise(part, Derive(_no_base), torch.device("cpu"), {})


class _NeedsBase(CommonweightError):
    pass


def _no_base(site: str) -> Tensor:
    raise _NeedsBase(
        f"{site}: its pools start from the base's weights, which a method that wants a base would need; "
        "take one without, as linear, or merge the tenants as models of a recipe: BASE+TENANT"
    )
