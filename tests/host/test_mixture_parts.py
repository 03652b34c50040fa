"""Adapters and gates at the feed-forward parts of mixtures, some of which give their tokens in one list."""

from typing import Any

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.mixtures import MIXTURES, mixture


def scores(host: Any, route: Any, ids: torch.Tensor) -> torch.Tensor:
    with host.route(route):
        return host.model(ids).logits


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize(("method", "options"), [("parallel", {}), ("dyt", {"size": 4})])
def test_a_batch_of_one_tenant_is_its_rows_alone(kind, method, options):
    model, batch = mixture(kind)
    host: Any = cw.Host(model)
    stir(host.add("a", method, **options), 1, std=0.3)
    ids = batch["input_ids"]
    assert {host.base.modules[n].kind for n in host["a"].table} == {"ffn"}
    with torch.no_grad():
        together, mixed = scores(host, "a", ids), scores(host, ["a", None, "a", None], ids)
        rows = [scores(host, "a", ids[i : i + 1]) for i in range(len(ids))]
        bare = scores(host, None, ids)
    torch.testing.assert_close(together, torch.cat(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[::2], together[::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1::2], bare[1::2], rtol=1e-4, atol=1e-5)
    assert (together - bare).abs().max() > 1e-3
    mine = [*host["a"].parameters()]
    got = torch.autograd.grad(scores(host, "a", ids).square().sum(), mine)
    each = [torch.autograd.grad(scores(host, "a", row[None]).square().sum(), mine) for row in ids]
    for g, *parts in zip(got, *each):
        torch.testing.assert_close(g, torch.stack(parts).sum(0), rtol=1e-3, atol=1e-4 * float(g.abs().max() + 1))
