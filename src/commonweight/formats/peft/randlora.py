"""RandLoRA in PEFT's format. As with VeRA, PEFT's random bases become saved pools of the tenant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from .common import PREFIX, Native, Subject, check, count, number, seed, split, understood, whole

_LAMBDA, _GAMMA, _A, _B = "randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """lambda (r, n), gamma (n, d_min); bases A (r, 1, d_min) and B (d_max, n, r), which PEFT writes at every site."""
    known = ("r", "randlora_alpha", "randlora_dropout", "projection_prng_key", "save_projection")
    understood(config, *known, "sparse", "very_sparse")
    found = split(tensors, (_LAMBDA, _GAMMA, _A, _B), sites, (f"base_model.{_A}", f"base_model.{_B}"))
    whole(found, _LAMBDA, _GAMMA)
    r, mine = count(config, "r"), [sites[k] for k in found]
    d_in, d_out = max(s.inp for s in mine), max(s.out for s in mine)
    small, large = sorted((d_in, d_out))
    n = math.ceil(small / r)
    values = {}
    for key, given in found.items():  # first of all: r is what the file holds, before anything of that size is drawn
        s = sites[key]
        width = min(s.inp, s.out)
        bases = math.ceil(width / r)
        check(f"{PREFIX}{key}.{_LAMBDA}", given[_LAMBDA], (r, bases))
        check(f"{PREFIX}{key}.{_GAMMA}", given[_GAMMA], (bases, width))
        values[f"{s.name}.lam"], values[f"{s.name}.gamma"] = given[_LAMBDA], given[_GAMMA]
    first = next(iter(found.values()))
    A = first.get(_A, tensors.get(f"base_model.{_A}"))
    B = first.get(_B, tensors.get(f"base_model.{_B}"))
    if A is None or B is None:
        if config.get("save_projection", True):
            raise CommonweightError(f"adapter_model.safetensors: has no {_A} and {_B}, though save_projection is true")
        A, B = _drawn(config, r, small, large, n)
    check(_A, A, (r, 1, small), "its config and the base want")
    check(_B, B, (large, n, r), "its config and the base want")
    values |= {"randlora.A": A[:, 0].contiguous(), "randlora.B": B.flatten(1)}
    options = {
        "rank": r,
        "alpha": float(number(config, "randlora_alpha", 640)),
        "dropout": float(number(config, "randlora_dropout", 0.0)),
        "stored": True,
    }
    return Adapter("randlora", options, tuple(s.name for s in mine), values)


def _drawn(config: Mapping[str, Any], r: int, small: int, large: int, n: int) -> tuple[Tensor, Tensor]:
    """The bases as PEFT draws them: uniform, or -1, 0 and 1 (sparse, very_sparse), scaled to unit deviation."""
    g = torch.Generator().manual_seed(seed(config, "projection_prng_key"))
    if config.get("sparse") or config.get("very_sparse"):
        edge = 1 / (2 * (math.sqrt(small) if config.get("very_sparse") else 3))
        parts = [torch.rand(shape, generator=g) for shape in ((r, 1, small), (large, n, r))]
        A, B = ((p > 1 - edge).float() - (p < edge).float() for p in parts)
    else:
        A = _bases((r, 1, small), g)
        B = torch.cat([_bases((large, 1, r), g) for _ in range(n)], 1)
    return (A / A.std()).float(), (B / B.std()).float()


def _bases(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """In bfloat16, for so does PEFT wherever there is bfloat16; where there is none its own files differ too."""
    return nn.init.kaiming_uniform_(torch.empty(shape, dtype=torch.bfloat16), a=math.sqrt(5), generator=generator)


def write(subject: Subject) -> Native:
    """With the bases in the file (save_projection), at every site as PEFT wants them."""
    tensors, first = {}, subject.plan.uses[0].site
    r, ours = subject.config.rank, subject.config
    A = subject.pool(first, "A")[:, None]
    B = subject.pool(first, "B").unflatten(1, (-1, r))
    for name in subject.sites:
        tensors[f"{name}.{_LAMBDA}"], tensors[f"{name}.{_GAMMA}"] = (
            subject.pool(name, "lam"),
            subject.pool(name, "gamma"),
        )
        tensors[f"{name}.{_A}"], tensors[f"{name}.{_B}"] = A, B
    alpha = 20.0 * r if ours.alpha is None else ours.alpha
    config = {
        "peft_type": "RANDLORA",
        "r": r,
        "randlora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "randlora_dropout": ours.dropout,
        "projection_prng_key": 0,
        "save_projection": True,
        "bias": "none",
    }
    return Native(config, tensors)
