"""What a run must share with another to give the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core import dump
from ..host import Host
from ..host.origin import quantised
from ..host.over import content
from .recipe import Recipe
from .tasks.base import HELD, Example
from .trainer import Part


def settings(host: Host, parts: Sequence[Part], recipe: Recipe) -> dict[str, Any]:
    """Of several tenants, what differs among them is called ``tenant: setting``."""
    out = of_all(host.model, host.fingerprint, parts[0], recipe)
    if (form := quantised(host.model)) is not None:
        out["quantised"] = form
    for p in parts:
        tenant, config = p.tenant, dump(p.tenant.config)
        config.pop("is")
        own = {
            "method": tenant.method.name, "options": config, "plan": tenant.plan.digest(),
            **of_rows(p),
        }  # fmt: skip
        if tenant.over:
            own["over"] = [content(t) for t in tenant.over]
        if tenant.common is not None:
            own["common"] = tenant.common.name
            if tenant.common.frozen:
                own["common"] += f" {_bits(tenant.common.pools)}"
        out |= own if len(parts) == 1 else {f"{tenant.name}: {k}": v for k, v in own.items()}
    return out


def of_all(model: nn.Module, base: str, part: Part, recipe: Recipe) -> dict[str, Any]:
    """What is the same for all tenants. base: the fingerprint of what the run begins with."""
    numbers = _fields(recipe)
    numbers.pop("checkpoint_every")
    return {
        "task": type(part.task).__name__.lower(), **numbers, "max_length": part.task.max_length,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."), "base": base,
    }  # fmt: skip


def of_rows(part: Part) -> dict[str, Any]:
    kept = {"kept rows": digest([*part.kept])} if part.kept else {}
    return {"train rows": digest(part.train), "dev rows": digest(part.dev), "labels": part.task.labels, **kept}


def _bits(pools: Mapping[str, torch.Tensor]) -> str:
    h = hashlib.blake2b(digest_size=8)
    for name in sorted(pools):
        h.update(name.encode() + pools[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {k: getattr(recipe, k) for k in recipe.__dataclass_fields__}  # type: ignore[attr-defined]


def digest(examples: Sequence[Example]) -> str:
    """Their number and 16 hex digits of what they hold, in order; a file goes by what its task says of it."""
    text = json.dumps([{k: v for k, v in e.items() if k != HELD} for e in examples]).encode()
    return f"{len(examples)} rows {hashlib.blake2b(text, digest_size=8).hexdigest()}" if examples else "none"
