"""OFT and BOFT in PEFT's format."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from .common import PREFIX, Native, Subject, check, count, number, one_of, split, understood, whole

_R, _BR, _BS = "oft_R.weight", "boft_R", "boft_s"


def _size(sizes: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    """The option that says how every site's input is split: by one size of blocks, or by one number of them."""
    if len({*sizes.values()}) > 1 and len({*counts.values()}) == 1:
        return {"blocks": next(iter(counts.values()))}
    return {"block_size": one_of("the size of the blocks", sizes)}


def read_oft(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """R (d_in / b, b (b - 1) / 2): upper triangles; one row with block_share."""
    known = ("r", "oft_block_size", "block_share", "coft", "eps", "module_dropout")
    understood(config, *known, "use_cayley_neumann", "num_cayley_neumann_terms")
    found = split(tensors, (_R,), sites)
    share, values, sizes, counts = bool(config.get("block_share")), {}, {}, {}
    for key, given in found.items():
        s, R = sites[key], given[_R]
        b = (1 + math.isqrt(1 + 8 * R.shape[-1])) // 2 if R.dim() == 2 else 0
        if b < 2 or b * (b - 1) // 2 != R.shape[1] or s.inp % b:
            raise CommonweightError(
                f"adapter_model.safetensors: {PREFIX}{key}.{_R} is {tuple(R.shape)}; the base wants upper triangles of "
                f"blocks that divide an input of {s.inp}"
            )
        check(f"{PREFIX}{key}.{_R}", R, (1 if share else s.inp // b, R.shape[1]))
        values[f"{s.name}.R"], sizes[s.name], counts[s.name] = R, b, s.inp // b
    options = {
        **_size(sizes, counts),
        "share": share,
        "neumann": bool(config.get("use_cayley_neumann", True)),
        "terms": count(config, "num_cayley_neumann_terms", 5, most=1000),
        "eps": float(number(config, "eps", 6e-5)) if config.get("coft") else None,
        "dropout": float(number(config, "module_dropout", 0.0)),
    }
    return Adapter("oft", options, tuple(sizes), values)


def write_oft(subject: Subject) -> Native:
    ours = subject.config
    by_count = ours.blocks is not None
    config = {
        "peft_type": "OFT",
        "r": ours.blocks if by_count else 0,
        "oft_block_size": 0 if by_count else subject.plan.uses[0].bind.block,
        "block_share": ours.share,
        "use_cayley_neumann": ours.neumann,
        "num_cayley_neumann_terms": ours.terms,
        "coft": ours.eps is not None,
        "eps": ours.eps or 6e-5,
        "module_dropout": ours.dropout,
        "bias": "none",
    }
    return Native(config, {f"{n}.{_R}": subject.pool(n, "R") for n in subject.sites})


def read_boft(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """R (m, d_in / b, b, b), s (d_out, 1). m is the file's: without its CUDA kernel PEFT makes one factor only."""
    understood(config, "boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout")
    found = split(tensors, (_BR, _BS), sites)
    whole(found, _BR, _BS)
    values, sizes, counts, factors = {}, {}, {}, {}
    for key, given in found.items():
        s, R = sites[key], given[_BR]
        m, b = (R.shape[0], R.shape[-1]) if R.dim() == 4 and R.numel() else (1, 1)
        check(f"{PREFIX}{key}.{_BR}", R, (m, s.inp // b, b, b))
        check(f"{PREFIX}{key}.{_BS}", given[_BS], (s.out, 1))
        values[f"{s.name}.R"], values[f"{s.name}.s"] = R, given[_BS][:, 0].contiguous()
        sizes[s.name], counts[s.name], factors[s.name] = b, s.inp // b, R.shape[0]
    options = {
        **_size(sizes, counts),
        "factors": one_of("the number of butterfly factors", factors),
        "dropout": float(number(config, "boft_dropout", 0.0)),
    }
    return Adapter("boft", options, tuple(sizes), values)


def write_boft(subject: Subject) -> Native:
    """Warns of more than one factor, for whoever has no CUDA extension."""
    ours, tensors = subject.config, {}
    if ours.factors > 1:
        warnings.warn(
            f"boft factors={ours.factors}: PEFT opens this folder where its CUDA extension builds, and nowhere else: "
            "without it, it makes one factor, which this file does not fit. For PEFT on a CPU train factors=1",
            stacklevel=6,
        )
    for name in subject.sites:
        tensors[f"{name}.{_BR}"], tensors[f"{name}.{_BS}"] = subject.pool(name, "R"), subject.pool(name, "s")[:, None]
    by_count = ours.blocks is not None
    config = {
        "peft_type": "BOFT",
        "boft_block_num": ours.blocks if by_count else 0,
        "boft_block_size": 0 if by_count else subject.pool(subject.plan.uses[0].site, "R").shape[-1],
        "boft_n_butterfly_factor": ours.factors,
        "boft_dropout": ours.dropout,
        "bias": "none",
    }
    return Native(config, tensors)
