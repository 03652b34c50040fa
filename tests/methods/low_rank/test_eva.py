"""EVA: its directions against the singular vectors of the inputs as they came."""

import pytest
import torch

import commonweight as cw
from tests.models import make

SMALL = {"rank": 3, "start": "random"}
VARIANTS = [{"start": "given", "ranks": [["model.layers.0.self_attn.q_proj", 0]]}]
SITES = "*.q_proj|*.down_proj"


def batch(n=4, seed=3):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 40, (n, 6), generator=g)
    mask = torch.ones(n, 6).long()
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def inputs(model, names, given):
    seen = {}
    handles = [
        model.get_submodule(n).register_forward_pre_hook(lambda m, a, n=n: seen.setdefault(n, a[0].detach()))
        for n in names
    ]  # fmt: skip
    with torch.no_grad():
        model(**given)
    for h in handles:
        h.remove()
    return {n: x[given["attention_mask"].bool()] for n, x in seen.items()}


def test_directions_and_ranks():
    model, _ = make("llama")
    with torch.no_grad():  # one number alone comes into this layer: another has its place
        model.model.layers[0].mlp.up_proj.weight[1:] = 0
    host = cw.Host(model, sites=SITES)
    given = batch()
    tenant = host.add("t", "eva", rank=2, alpha=4, rho=3, rows=[given])
    X = inputs(model, [s.name for s in host.sites], given)
    shares = {}
    for n, x in X.items():
        _, s, v = torch.linalg.svd(x.double(), full_matrices=False)
        share = s**2 / (s**2).sum()
        shares |= {(n, i): float(share[i]) for i in range(6)}
        if f"{n}.A" in tenant.pools:
            A = tenant.pools[f"{n}.A"].detach().double()
            if "0.mlp" in n:
                continue
            torch.testing.assert_close((A @ v[: len(A)].T).abs(), torch.eye(len(A)).double(), rtol=0, atol=2e-3)
            assert not tenant.pools[f"{n}.B"].any()
    best = sorted(shares, key=shares.__getitem__, reverse=True)[: 2 * len(X)]
    want = {n: sum(m == n for m, _ in best) for n in X}
    assert dict(tenant.config.ranks) == want and max(want.values()) > 2
    scales = {u.bind.scale for u in tenant.plan.uses}
    assert scales == {2.0}, "alpha / r for all, whatever they won"


def test_without_redistribution_all_have_r():
    tenant = cw.Host(make("llama")[0], sites=SITES).add("t", "eva", rank=3, rho=1, rows=[batch()])
    assert {r for _, r in tenant.config.ranks} == {3}


def test_without_rows():
    with pytest.raises(cw.CommonweightError, match=r"eva begins from data: X\^T X / n"):
        cw.Host(make("llama")[0]).add("t", "eva")
