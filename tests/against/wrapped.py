"""A small model as PEFT runs it and as we run it, with the same numbers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import commonweight as cw
from tests.models import answer, make

peft = pytest.importorskip("peft")

Translate = Callable[[str, str, Tensor], tuple[str, Tensor]]


def agree(
    kind: str, config: peft.PeftConfig, marker: str, translate: Translate, method: str, sites: str, **options: Any
) -> None:
    """Randomises PEFT's trainable tensors, copies them over, and compares outputs and merged models.

    marker: what divides a site from PEFT's tensor in a parameter's name; translate(site, rest, tensor) gives our
    pool's name and value.
    """
    model, batch = make(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about transformers and about layers it does not know
        theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    host = cw.Host(model)
    tenant = host.add("t", method, sites=sites, **options)
    g = torch.Generator().manual_seed(0)
    filled = []
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if not p.requires_grad:
                continue
            p.add_(0.2 * torch.randn(p.shape, generator=g))
            site, rest = name.removeprefix("base_model.model.").split(f".{marker}", 1)
            pool, value = translate(site, rest, p)
            tenant.pools[pool].copy_(value)
            filled.append(pool)
        assert sorted(filled) == sorted(tenant.pools)
        assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == tenant.count()
        plain, want = answer(model, batch), answer(theirs, batch)
        with host.route("t"):
            got = answer(model, batch)
        assert (want - plain).abs().max() > 1e-3
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        merged = make(kind)[0]
        merged.load_state_dict(host.merged("t"), strict=False)
        torch.testing.assert_close(
            answer(merged, batch), answer(theirs.merge_and_unload(), batch), rtol=1e-5, atol=1e-5
        )
