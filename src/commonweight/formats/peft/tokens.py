"""Trained entries of the vocabulary, PEFT's TRAINABLE_TOKENS: the rows that stand in place of the base's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from . import refusals
from .common import PREFIX, Native, Subject, check, split, understood, whole

_ROWS = "trainable_tokens_delta"


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """Rows (n, d) of the entries ``token_indices``, whole and not as a difference, at each table or head."""
    understood(config, "token_indices")
    ids = config.get("token_indices")
    if not isinstance(ids, list) or not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise CommonweightError(f"adapter_config.json: token_indices is {ids!r}; wanted numbers of entries")
    found = split(tensors, (_ROWS,), sites, kind="embedding", more=("linear",))
    whole(found, _ROWS)
    values = {}
    for key, given in found.items():
        s = sites[key]
        size, width = (s.inp, s.out) if s.kind == "embedding" else (s.out, s.inp)
        if max(ids) >= size:
            raise refusals.tensor(f"{PREFIX}{key}", f"entry {max(ids)} of {size}: resize the model first")
        check(f"{PREFIX}{key}.{_ROWS}", given[_ROWS], (len(ids), width))
        values[f"{s.name}.rows"] = given[_ROWS]
    return Adapter("tokens", {"tokens": tuple(ids)}, tuple(sites[k].name for k in found), values)


def write(subject: Subject) -> Native:
    ids = {n: t.tolist() for n, t in subject.pools.items() if n.endswith(".ids")}
    config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": next(iter(ids.values())), "init_weights": True}
    return Native(config, {f"{u.site}.{_ROWS}": subject.pool(u.site, "rows") for u in subject.plan.uses})
