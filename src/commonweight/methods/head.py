"""The classification head of a tenant: two pools and one use at the model's head site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..address import WHOLE
from ..bind import Classify
from ..core import ZEROS, Plan, Pool, Read, Site, Use, kaiming

if TYPE_CHECKING:
    from .registry import Method


def head_of(method: Method, config: Any, sites: Sequence[Site], site: Site, labels: int) -> Plan:
    """What a tenant of a method has at the head's site; sites: those that it reads."""
    return head(site, labels) if method.heads is None else method.heads(config, sites, site, labels)


def head(site: Site, labels: int) -> Plan:
    """logits = x W^T + b. Shapes: W (labels, d), b (labels,). Count: labels (d + 1).

    Learning rate: 5 times the method's. A head starts from nothing, the rest from a trained model.
    """
    pools = {
        f"{site.name}.W": Pool((labels, site.inp), kaiming(site.inp), lr=5.0),
        f"{site.name}.b": Pool((labels,), ZEROS, lr=5.0),
    }
    return Plan(pools, (Use(site.name, Classify(), {k: Read(WHOLE, (f"{site.name}.{k}",)) for k in "Wb"}),))
