"""The model changes under its host: layers that are replaced are followed, or their tenants refused by name.

``resize_token_embeddings`` puts a new head in the old one's place, quantising puts other classes in, PEFT wraps layers.
A host looks before each route whether what it hooked still stands where it stood.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..core import CommonweightError, Site
from .sites import Physical
from .tenant import Tenant
from .weights import widths


class Places(NamedTuple):
    """Where every module stands: (a parent's members, key, module), how many members each has, and the widths of linear
    layers and tables. Cost of a look: some 50 ns for each."""

    links: list[tuple[dict[str, Any], str, nn.Module | None]]
    members: list[tuple[dict[str, Any], int]]
    shapes: list[tuple[nn.Module, tuple[int, int] | None]]

    @classmethod
    def of(cls, model: nn.Module, modules: Iterable[Physical]) -> Places:
        held = [m._modules for m in model.modules() if m._modules]
        links = [(h, key, child) for h in held for key, child in h.items()]
        sized = [at.module for at in modules if at.kind in ("linear", "embedding") and at.slot == "weight"]
        shapes = [(m, _size(m)) for m in sized]
        return cls(links, [(h, len(h)) for h in held], shapes)

    def moved(self) -> bool:
        return (
            any(held.get(key) is not module for held, key, module in self.links)
            or any(len(held) != n for held, n in self.members)
            or any(_size(module) != shape for module, shape in self.shapes)
        )


def _size(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return widths(module)


def fit(tenant: Tenant, sites: Mapping[str, Site]) -> None:
    """Holds a tenant against the sites as they are now.

    A linear layer with more rows than the tenant knew keeps it, on the rows that were there, and a table with more
    entries: new words of a vocabulary are the base's. After any other change of shape or kind it cannot be served:
    `served` says so.
    """
    tenant.misfit = None
    used = {u.site for u in tenant.plan.uses}
    known: dict[str, int] = {}
    for old in (s for s in (*tenant.sites, *tenant.held) if s.name in used):
        new = sites.get(old.name)
        if new is None:
            tenant.misfit = f"{old.name} is no longer in the model"
        elif old.kind == new.kind == "embedding" and new.out == old.out and new.inp >= old.inp:
            if new.inp > old.inp:
                known[old.name] = old.inp
        elif (new.kind, new.inp) != (old.kind, old.inp) or new.out < old.out or (new.rows and new.out != old.out):
            shapes = f"{old.kind} {(old.out, old.inp)}", f"{new.kind} {(new.out, new.inp)}"
            tenant.misfit = f"{old.name} was {shapes[0]} and is now {shapes[1]}"
        elif old.rows is None:
            tenant.narrow(old.name, (0, old.out) if new.out > old.out else None)
    tenant.keep(known)


def served(tenant: Tenant) -> None:
    """Raises: CommonweightError where a tenant reads a site that is no longer what it was."""
    if tenant.misfit is not None:
        raise CommonweightError(
            f"{tenant.misfit}: the model was changed after the tenant {tenant.name!r} was made for it; put the old "
            "layer back, or make the tenant anew"
        )
