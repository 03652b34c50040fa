"""LoRA whose start PEFT took out of the base once, when it was made: CorDA, LoRA-GA, PiSSA by a fast SVD.

A file holds the factors after training alone. With the adapter as it was saved before training, from which PEFT makes
plain LoRA (path_initial_model_for_weight_conversion), it is whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from ..pairs import commonest, others
from . import lora, moved

# PEFT's word -> our method whose file holds its start, and what alpha is of a scale and a rank
_OURS = {
    "corda": ("corda", lambda scale, rank: scale * rank),
    "lora_ga": ("lora-ga", lambda scale, rank: scale * math.sqrt(rank)),
}


def read(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    start: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    sites: Mapping[str, Site],
    base: Frozen,
) -> Adapter:
    """h = W0 x + s (B A - B0 A0) x. start: (config, tensors) before training, A0 and B0, of the same sites and scale.

    Our own `corda` and `lora-ga` where all sites are alike, else LoRA, or DoRA, of twice the rank.
    """
    init = config.get("init_lora_weights")
    if config["peft_type"] != "LORA" or not isinstance(init, str) or not moved.takes_out(init):
        said = f"init_lora_weights={init!r}" if config["peft_type"] == "LORA" else f"peft_type {config['peft_type']}"
        raise CommonweightError(
            f"adapter_config.json: {said} took nothing out of the base that a start could tell; leave start out"
        )
    end, first = (
        lora.read({**c, "init_lora_weights": True}, t, sites, base) for c, t in ((config, tensors), start)
    )  # fmt: skip
    scales, before = _scales(end), _scales(first)
    if scales != before:
        raise CommonweightError(
            f"start: its ranks, alphas or sites are other than the adapter's "
            f"({_shown(before)}; the adapter: {_shown(scales)}); give the same adapter as it was before training"
        )
    taken = {n: (first.values[f"{n}.A"], first.values[f"{n}.B"]) for n in scales}
    if all(end.values[f"{n}.{k}"].equal(t) for n, pair in taken.items() for k, t in zip("AB", pair)):
        raise CommonweightError(
            "start: its factors are the adapter's own, so that nothing would be left of its training; give the same "
            "adapter as it was saved before training"
        )
    ours = _OURS.get(init.lower())
    kinds = {s.kind for s in sites.values() if s.name in scales}
    if ours and len({*scales.values()}) == 1 and kinds == {"linear"} and end.values.keys() == first.values.keys():
        method, alpha = ours
        if end.method == "lora" and not (end.options.get("bias") or end.options.get("invocation")):
            rank, scale = next(iter(scales.values()))
            values = dict(end.values)
            for n, (A0, B0) in taken.items():
                values |= {f"{n}.A0": A0, f"{n}.B0": B0}
            return Adapter(method, {"rank": rank, "alpha": alpha(scale, rank), "start": "given"}, end.sites, values)
    ranks = {n: r for n, (r, _) in scales.items()}
    ranks, alphas, values = moved.doubled(taken, ranks, {n: s for n, (_, s) in scales.items()}, end.values)
    rank, alpha_ = commonest(ranks.values()), commonest(alphas.values())
    options = {
        **end.options, "rank": rank, "alpha": alpha_, "rslora": False, "ranks": others(ranks, rank),
        "alphas": others(alphas, alpha_),
    }  # fmt: skip
    return Adapter(end.method, options, end.sites, values)


def _scales(adapter: Adapter) -> dict[str, tuple[int, float]]:
    """(rank, scale) by site."""
    o, out = adapter.options, {}
    ranks, alphas = dict(o["ranks"]), dict(o["alphas"])
    for n in adapter.sites:
        r = ranks.get(n, o["rank"])
        out[n] = r, alphas.get(n, o["alpha"]) / (math.sqrt(r) if o["rslora"] else r)
    return out


def _shown(scales: Mapping[str, tuple[int, float]]) -> str:
    rank, scale = commonest(scales.values())
    return f"{len(scales)} sites, rank {rank}, scale {scale:g}"
