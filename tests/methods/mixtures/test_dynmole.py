"""DynMoLE against its formula, token by token, and its losses written out."""

import math

import pytest
import torch

import commonweight as cw

from .tokens import mixture, site

SMALL = {"rank": 2, "experts": 3}


def gates(z, top_p=0.75, least=2, threshold=0.9, q=1.1):
    """Of one token's logits."""
    p = [math.exp(v) / sum(math.exp(u) for u in z.tolist()) for v in z.tolist()]
    if entropy(p, q) > threshold:
        return p
    order, total, kept = sorted(range(len(p)), key=lambda i: -p[i]), 0.0, set()
    for rank, i in enumerate(order):
        total += p[i]
        if rank < least or total <= top_p:
            kept.add(i)
    return [v if i in kept else 0.0 for i, v in enumerate(p)]


def entropy(p, q=1.1, eps=1e-5):
    top = (1 - len(p) ** (1 - q)) / (q - 1)
    return (1 - sum((v + eps) ** q for v in p)) / (q - 1) / top


@pytest.mark.parametrize("threshold", [0.9, 0.999])
def test_formula(threshold):
    pools, x, got = site("dynmole", rank=2, experts=5, alpha=6.0, threshold=threshold, entropy=0.0)
    want = 3.0 * mixture(x, lambda z: gates(z, threshold=threshold), pools, 2)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert want.abs().max() > 0.01


def test_gates_where_tokens_differ():
    """Some tokens take two experts, some more, and some all."""
    from commonweight.bind.mixture import Dynamic

    z = 2 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    z[:20] /= 20
    got = Dynamic()(z)
    torch.testing.assert_close(got, torch.tensor([gates(row) for row in z]), rtol=1e-5, atol=1e-6)
    assert {2, 3, 6} <= set((got > 0).sum(-1).tolist())


def test_losses():
    from commonweight.methods.said import Said

    g = torch.Generator().manual_seed(1)
    one, two = 2 * torch.randn(4, 3, generator=g), 2 * torch.randn(2, 3, generator=g)
    real = torch.tensor([1.0, 1.0, 0.0, 1.0])
    config = cw.methods.get("dynmole").config(experts=3)
    loss = cw.methods.get("dynmole").router_loss(config)
    assert loss is not None
    got = loss({"a": Said(one, real), "b": Said(two, torch.ones(2))})
    tokens = [one[0], one[1], one[3], two[0], two[1]]
    p = [torch.softmax(t, -1).tolist() for t in tokens]
    kept = [gates(t) for t in tokens]
    load = sum(sum(v[i] for v in p) / 5 * sum(v[i] for v in kept) / 5 for i in range(3))
    assert float(got) == pytest.approx(1e-2 * sum(map(entropy, p)) / 5 + 1e-3 * 3 * load, rel=1e-5)
    quiet = cw.methods.get("dynmole").config(balance=0.0, entropy=0.0)
    assert cw.methods.get("dynmole").router_loss(quiet) is None


def test_count():
    assert cw.plan("dynmole", [cw.Site("q", 48, 32)], rank=2, experts=3).count() == 3 * (2 * (48 + 32) + 32)


def test_the_code_leaves_padding_in_the_mean_entropy():
    """moe_utils.py @9354b27 has the attention mask in the load alone; ours has it in both, so that a row's padding does
    not change its loss. Without padding both are one."""
    from commonweight.methods.said import Said

    z, real = 2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(2)), torch.tensor([1.0, 1, 0, 1, 0, 1])

    def code(real):
        p, kept = z.softmax(-1), torch.tensor([gates(t) for t in z])
        load = (p * real[:, None]).sum(0) / real.sum() * (kept * real[:, None]).sum(0) / real.sum()
        return 1e-2 * sum(entropy(t.tolist()) for t in p) / len(p) + 1e-3 * 3 * float(load.sum())

    ours = cw.methods.get("dynmole").router_loss(cw.methods.get("dynmole").config(experts=3))
    assert ours is not None
    assert float(ours({"a": Said(z, torch.ones(6))})) == pytest.approx(code(torch.ones(6)), rel=1e-5)
    padded = float(ours({"a": Said(z, real)}))
    assert padded == pytest.approx(float(ours({"a": Said(z[real > 0], torch.ones(4))})), rel=1e-5)
    assert abs(padded - code(real)) > 1e-5
