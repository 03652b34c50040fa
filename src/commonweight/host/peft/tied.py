"""LoRA on a table of embeddings that the head follows. PEFT's files say it at both modules.

PEFT 0.21.2 takes ensure_weight_tying alone for models whose table is ``model.embed_tokens``; with GPT-2 it does nothing
then, without a word. So the head is written as a target of its own, and what is read is what the factors say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...formats import peft
from ...formats.adapter import Adapter
from ...formats.peft.common import exactly
from ..hooked import HookedModel


def with_heads(
    base: HookedModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """What `peft.write` made, with factors of each head that is tied to a table (B A there is A.T B.T); the heads.

    Keys are ``<site>.lora_A.weight``. A head has the rank and the alpha of its table.
    """
    config, out, heads = dict(config), dict(tensors), []
    for table in (n for n in base.ties if f"{n}.lora_A.weight" in tensors):
        for head in (n for n, across in base.ties[table] if across):
            out[f"{head}.lora_A.weight"] = tensors[f"{table}.lora_B.weight"].T.contiguous()
            out[f"{head}.lora_B.weight"] = tensors[f"{table}.lora_A.weight"].T.contiguous()
            config["ensure_weight_tying"] = True
            heads.append(head)
            for what in ("rank_pattern", "alpha_pattern"):
                known = config[what].get(exactly(peft.short(table, prefix)))
                if known is not None:
                    config[what] = {**config[what], exactly(peft.short(head, prefix)): known}
    return config, out, heads


def by_heads(base: HookedModel, table: str) -> bool:
    """Whether heads alone are tied to a table, and no other table."""
    return all(across for _, across in base.ties.get(table, ()))


def follows(base: HookedModel, adapter: Adapter, ensured: bool) -> bool:
    """Whether each head that is tied to a table of the adapter's changes as it does. ensured: ensure_weight_tying."""
    special = [dict(adapter.options.get(what) or ()) for what in ("ranks", "alphas")]

    def same(table: str, head: str) -> bool:
        if head not in adapter.sites:
            return False
        if adapter.method != "lora":
            return ensured
        theirs = [adapter.values.get(f"{head}.{f}") for f in "AB"]
        mine = [adapter.values.get(f"{table}.{f}") for f in "BA"]
        alike = all(a is not None and b is not None and torch.equal(a, b.T) for a, b in zip(theirs, mine))
        return alike and all(known.get(table) == known.get(head) for known in special)

    return all(same(t, n) for t in adapter.sites for n, across in base.ties.get(t, ()) if across)
