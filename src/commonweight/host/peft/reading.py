"""A PEFT adapter folder as a tenant."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Site, counted
from ...formats import peft
from ...formats.changes import adapter as settled
from ...formats.peft import grouped, keys, refusals
from ...formats.peft.keys import is_slot
from ...methods import head
from ..follow import fit
from ..hooked import HookedModel
from ..names import named
from ..roster import Roster
from ..sites import once
from ..tenant import Tenant
from ..vocabulary import brings, ready
from . import beside, names, replicated, through, tied, words
from .base import Frozen, of_layers, without_copies
from .entering import enter


def import_peft(
    roster: Roster,
    name: str,
    folder: Path,
    labels: Sequence[str] | None = None,
    *,
    tolerance: float | None = None,
    task: int | None = None,
    start: str | PathLike[str] | None = None,
) -> Tenant:
    """A tenant from a folder that PEFT's save_pretrained wrote: same weights in, same outputs out.

    Sites are taken from the keys in the file. Nothing is unpickled. Frozen projections that the file does not hold are
    drawn again as PEFT draws them, and are kept in the tenant's own files from then on.
    labels: the classes of the head that lies beside the adapter, in its order; a head without a bias gets zeros. The
    outputs are the same where the host's classifier pools as the model does on which the head was trained:
    ``adapt.open_host(model, pool="transformers")``. Without labels a head is refused, with () it is left out.
    Types of PEFT's that no method here has go through PEFT itself: what they do to each weight is measured, and becomes
    LoRA of its exact rank, or a whole difference where that is smaller; tolerance: a relative error that may remain.
    task: which one, of Poly. start: the folder of the same adapter before training, where what it began with was taken
    out of the base once (CorDA, LoRA-GA): see `formats.peft.started`.
    Raises: CommonweightError naming the file, the key or the option that is missing, damaged or not supported.
    """
    base = roster.base
    base.follow([*roster.tenants.values()])
    folder = peft.layout.snapshot(folder.parent if folder.is_file() else folder)
    config, tensors = peft.folder.read(folder)
    try:
        config = replicated.opened(base.inner, config)
        tops = names.tops(n for n, _ in named(base.model))
        tensors = keys.plain(tensors, tops)
        of_head: dict[str, Tensor] = {}
        if labels:
            peft.heads.of_texts(config)
        if labels is not None:
            config, tensors, of_head = peft.heads.part(config, tensors)
        values, extra = _head(base, peft.heads.read(of_head), labels) if labels else ({}, None)
        view = names.view_of(base, tensors)
        sites, frozen, parameters = names.sites(base, view), Frozen(base), names.parameters(base, view)
        config, tensors = without_copies(config, of_layers(tensors, parameters, sites), parameters)
        config, tensors, found = beside.part(base, config, tensors, sites)
        sites = {**sites, **found.sites}
        tensors = _narrow(tensors, sites, frozen)
        before = None if start is None else _before(Path(start), tops, sites, frozen)
        odd = _convolved(config, tensors, sites) or _turned_table(config, tensors, sites) or _biased(config, tensors)
        if before is not None:
            adapter = peft.started.read(config, tensors, before, sites, frozen)
        elif peft.through(config, tolerance is not None) or odd:
            about = getattr(base.inner, "config", None)
            changes = through.read(config, tensors, sites, frozen, about, task)
            adapter = settled(changes, {s.name: s for s in base.every}, frozen, tolerance)
        elif tolerance is not None or task is not None:
            what = "tolerance" if task is None else "task"
            raise CommonweightError(f"{what}: this adapter is read as it is ({config['peft_type']}); leave it out")
        else:
            adapter = peft.read(config, tensors, sites, frozen)
        if adapter.method == "tokens":  # whose rows PEFT writes once more for a head that is tied to the table
            mine = {s.name for s in once(base.ties, [s for s in base.every if s.name in adapter.sites])}
            values_of = {k: v for k, v in adapter.values.items() if k.removesuffix(".rows") in mine}
            adapter = adapter._replace(sites=tuple(n for n in adapter.sites if n in mine), values=values_of)
        # to PEFT a LoRA on a table is none on the head that is tied to it, unless the file says it there too
        apart = adapter.method != "tokens" and any(n in base.ties for n in adapter.sites)
        apart = apart and not tied.follows(base, adapter, bool(config.get("ensure_weight_tying")))
        apart = apart or any(n in base.ties and n not in found.tied for n in found.held.sites)
        found = beside.spread(base, found) if apart else found
        brings(base, "", found.size, beside.relied(base, found))
        ready(base, found.size, [*roster.tenants.values()])
        tenant = enter(
            roster, name, adapter, tuple(labels) if labels else None, extra, {**values, **found.values}, apart,
            found.held,
        )  # fmt: skip
        if found.size is not None:
            tenant.vocabulary = found.size
        fit(tenant, {s.name: s for s in base.every})
        if (said := words.notice(folder, base.inner)) is not None:
            warnings.warn(said, stacklevel=3)
        return tenant
    except CommonweightError as e:
        raise CommonweightError(f"{folder}: {e}") from e


def _before(
    folder: Path, tops: Collection[str], sites: Mapping[str, Site], base: Frozen
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, factors) of an adapter before training. Raises: CommonweightError naming its folder."""
    folder = peft.layout.snapshot(folder.parent if folder.is_file() else folder)
    try:
        config, tensors = peft.folder.read(folder)
        factors = {k: v for k, v in keys.plain(tensors, tops).items() if is_slot(k)}
        return {**config, "modules_to_save": None, "bias": "none"}, _narrow(factors, sites, base)
    except CommonweightError as e:
        raise CommonweightError(f"start: {folder}: {e}") from e


def _narrow(tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> dict[str, Tensor]:
    """LoRA on convolutions in groups as a change of their weights. Raises: CommonweightError where it is none."""
    out = dict(tensors)
    for name, s in sites.items():
        keys = [f"{peft.PREFIX}{name}.lora_{f}.weight" for f in "AB"]
        if s.kind != "conv" or (g := base.groups(s.name)) == 1 or not all(k in tensors for k in keys):
            continue
        A, B = (tensors[k].flatten(1) for k in keys)
        if (found := grouped.narrow(A, B, grouped.Shape(g, s.inp))) is None:
            raise refusals.tensor(
                keys[0],
                f"a convolution in {g} groups, where PEFT's factors read the channels of all groups for each of them: "
                "that is no change of its weight, and PEFT cannot merge it either. Serve it with PEFT, or train it "
                "here: lora reads convolutions in groups",
            )
        out[keys[0]], out[keys[1]] = found
    return out


def _convolved(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site]) -> bool:
    """Whether some of an adapter lies on convolutions that the readers of our own methods do not know."""
    convs = [n for n, s in sites.items() if s.kind == "conv"]
    plain = config["peft_type"] == "LORA" and not config.get("use_dora")
    if plain and all(
        tensors[k].flatten(1).shape[1] == sites[n].inp
        for n in convs
        if (k := f"{peft.PREFIX}{n}.lora_A.weight") in tensors
    ):
        return False
    return any(is_slot(k) and k.startswith(f"{peft.PREFIX}{n}.") for k in tensors for n in convs)


def _turned_table(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site]) -> bool:
    """Whether DoRA lies on a table of embeddings, whose entries it rescales dimension by dimension, or TinyLoRA, whose
    factors are of the table as PEFT keeps it."""
    slot = "tinylora_" if config["peft_type"] == "TINYLORA" else "lora_" if config.get("use_dora") else None
    tables = [n for n, s in sites.items() if s.kind == "embedding" and slot is not None]
    return any(k.startswith(f"{peft.PREFIX}{n}.{slot}") for k in tensors for n in tables)


def _biased(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether biases were trained with a method whose own reader knows none."""
    asked = config.get("bias") not in (None, "none")
    plain = config["peft_type"] in ("LORA", "ADALORA") and not config.get("use_dora")
    return asked and not plain and not config.get("lora_bias") and any(k.endswith(".bias") for k in tensors)


def _head(
    base: HookedModel, found: peft.heads.Head | None, labels: Sequence[str]
) -> tuple[dict[str, Tensor], Plan | None]:
    """(values of the head's pools, its plan)."""
    if found is None:
        raise CommonweightError(f"{len(labels)} labels were given, but the adapter brings no head; leave them out")
    site, n = base.head_site(), found.W.shape[0]
    if tuple(found.W.shape) != (len(labels), site.inp):
        raise CommonweightError(
            f"adapter_model.safetensors: its head {found.name} has {counted(n, 'class', 'classes')} of "
            f"{counted(found.W.shape[1], 'feature')}; wanted "
            f"{len(labels)}, as labels were given, of {site.inp}"
        )
    b = torch.zeros(n) if found.b is None else found.b
    return {f"{site.name}.W": found.W, f"{site.name}.b": b}, head(site, n)
