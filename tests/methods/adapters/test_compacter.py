"""Compacter against the paper's formula, with torch.kron and plain sums."""

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from commonweight.address import Kronecker
from tests.laws.subjects import stir
from tests.methods.adapters.test_bottleneck import bert_base
from tests.models import answer, make

SMALL = {"n": 2, "size": 4, "rank": 2}


def matrix(A, s, t):
    """sum_i A_i kron B_i with B_i = sum over the rank of outer(s, t)."""
    total = 0
    for i in range(A.shape[0]):
        B = sum(torch.outer(s[i, :, k], t[i, k]) for k in range(s.shape[2]))
        total = total + torch.kron(A[i], B)
    return total


@pytest.mark.parametrize("rank", [1, 3])
def test_address_is_the_sum_of_kronecker_products(rank):
    A, s, t = torch.randn(4, 4, 4), torch.randn(4, 2, rank), torch.randn(4, rank, 8)
    torch.testing.assert_close(Kronecker()(A, s, t), matrix(A, s, t))
    assert Kronecker()(A, s, t).shape == (8, 32)


def test_formula_at_every_site():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "compacter", n=4, rank=2, size=8, act="relu"), std=0.3)
    seen = {}
    names = [u.site for u in tenant.plan.uses]
    hooks = [
        # registered after the host's own: it sees the adapted output
        model.get_submodule(n).register_forward_hook(lambda m, args, y, n=n: seen.update({n: (args[0], y)}))
        for n in names
    ]
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
    for h in hooks:
        h.remove()
    assert len(names) == 4
    p = {k: v.detach() for k, v in tenant.pools.items()}
    for n in names:
        x, got = seen[n]
        down, up = (matrix(p["A"], p[f"{n}.{w}.s"], p[f"{n}.{w}.t"]) for w in ("down", "up"))
        y = F.linear(x, model.get_submodule(n).weight)
        want = y + F.linear(F.relu(F.linear(y, down, p[f"{n}.down_bias"])), up, p[f"{n}.up_bias"])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_one_pool_is_read_by_every_matrix():
    plan = cw.plan("compacter", bert_base(), reduction=32, n=4)
    assert plan.readers()["A"] == 2 * len(bert_base()) == 48
    assert [n for n, p in plan.pools.items() if p.shape == (4, 4, 4)] == ["A"]


def test_count_is_the_papers():
    """2 k (r + d) for the factors and r + d for the biases of an adapter, and n^3 once."""
    plan = cw.plan("compacter", bert_base(), reduction=32, n=4)
    assert plan.count() == 4**3 + 24 * (2 * (24 + 768) + 24 + 768)
    assert plan.count() == 57_088
    better = cw.plan("compacter", bert_base(), reduction=32, n=4, placement="pfeiffer")
    assert better.count() == 4**3 + 12 * 3 * (24 + 768)


def test_down_starts_with_the_variance_of_a_linear_layer():
    site = cw.Site("down", 768, 3072, "linear", "down")
    tenant = cw.plan("compacter", [site], size=192, n=4, seed=1)
    values = {k: p.init(p.shape, cw.core.Rng(1, k), None) for k, p in tenant.pools.items()}
    down = matrix(values["A"], values["down.down.s"], values["down.down.t"])
    assert 0.5 < down.std() * (3 * 768) ** 0.5 < 2.0


@pytest.mark.parametrize(
    ("site", "options", "message"),
    [
        (
            cw.Site("layers.3.down", 768, 768),
            {"n": 5, "size": 24},
            r"layers.3.down: width 768 and bottleneck 24 are not both multiples of n=5; choose n from \[1, 2, 3, 4, 6",
        ),
        (cw.Site("down", 16, 16), {"n": 2}, "width 16 and bottleneck 0 .*; choose a smaller reduction, or give size"),
    ],
)
def test_n_must_divide_the_widths(site, options, message):
    with pytest.raises(cw.CommonweightError, match=message):
        cw.plan("compacter", [site], **options)


def test_pfeiffer_without_a_feed_forward_site():
    with pytest.raises(cw.CommonweightError, match="compacter: placement='pfeiffer'"):
        cw.plan("compacter", bert_base()[:1], placement="pfeiffer")
