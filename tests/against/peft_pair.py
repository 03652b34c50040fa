"""The same tiny Llama twice: wrapped by PEFT, and as a tenant of a host that is given the same numbers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import commonweight as cw
from commonweight.host import Tenant
from tests.models import answer, make

peft = pytest.importorskip("peft")

Twins = tuple[nn.Module, cw.Host, Tenant, dict[str, Tensor]]


def twins(config: peft.PeftConfig, method: str, std: float = 0.1, **options) -> Twins:
    """(the model by PEFT with its trainable tensors moved at random, a host, its tenant "t", a batch)."""
    model, batch = make("llama")
    host = cw.Host(copy.deepcopy(model))
    config.target_modules = "all-linear"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about transformers
        wrapped = peft.get_peft_model(model, config).eval()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(std * torch.randn(p.shape, generator=g))
    return wrapped, host, host.add("t", method, **options), batch


def layers(wrapped: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """PEFT's layers by site name; those that have an attribute called `prefix`."""
    return {n.removeprefix("base_model.model."): m for n, m in wrapped.named_modules() if hasattr(m, prefix)}


def copy_in(tenant: Tenant, values: dict[str, Tensor]) -> None:
    """Overwrites pools, trained and frozen; shapes must be equal."""
    with torch.no_grad():
        for name, value in values.items():
            assert tenant.pools[name].shape == value.shape, name
            tenant.pools[name].copy_(value)


def same_answers(both: Twins, atol: float = 1e-5) -> None:
    wrapped, host, _, batch = both
    with torch.no_grad():
        base = answer(host.model, batch)
        theirs = answer(wrapped, batch)
        with host.route("t"):
            ours = answer(host.model, batch)
    assert (theirs - base).abs().max() > 1e-2, "the adapter moves nothing"
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=atol)


def same_gradients(both: Twins, pairs: Callable[[], dict[str, Tensor]]) -> None:
    """pairs: our pool's name -> PEFT's parameter."""
    wrapped, host, tenant, batch = both
    answer(wrapped, batch).square().mean().backward()
    with host.route("t"):
        answer(host.model, batch).square().mean().backward()
    for name, theirs in pairs().items():
        assert theirs.grad is not None and theirs.grad.abs().max() > 0, name
        torch.testing.assert_close(tenant.pools[name].grad, theirs.grad, rtol=1e-3, atol=1e-6)
