"""Diff pruning: gates by their formula, draws in training, what is left and stored."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.methods.selective.diff_pruning import HardConcrete, gate
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"start": 0.4, "penalty": 1e-3}
REACHED = {**SMALL, "noise": False}  # a draw that closes a matrix leaves it without a gradient
VARIANTS = [{"form": "stored"}]


def z(a, u=None):
    """The official formula, number by number."""
    s = 1 / (1 + math.exp(-(a + (0 if u is None else math.log(u / (1 - u))))))
    return min(1.0, max(0.0, 3 * s - 1.5))


def test_formula():
    host = cw.Host(make("qwen")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "diff-pruning", start=0.2), std=0.5)
    merged, name = host.merged("t"), host.sites[0].name
    dw, a, t = (tenant.pools[f"{name}.{k}"] for k in ("dw", "a", "t"))
    for i in range(dw.shape[0]):
        for j in range(dw.shape[1]):
            want = host.weight(name)[i, j] + z(t.item()) * z(a[i, j].item()) * dw[i, j]
            assert merged[f"{name}.weight"][i, j].item() == pytest.approx(want.item(), abs=1e-6)


def test_in_training_gates_are_drawn():
    torch.manual_seed(3)
    got = gate(torch.full((200_000,), 0.3), draw=True)
    torch.manual_seed(3)
    u = torch.rand(200_000).clamp(1e-4, 1 - 1e-4)
    assert got[:50].tolist() == pytest.approx([z(0.3, x) for x in u[:50].tolist()], abs=1e-5)
    assert (got > 0).float().mean().item() == pytest.approx(torch.tensor(0.3).sigmoid().item(), abs=5e-3)
    x, y, p = torch.randn(2, 3, 4), torch.zeros(2, 3, 5), (torch.randn(5, 4), torch.zeros(5, 4), torch.tensor(9.0))

    class Site:
        training = True

    assert not torch.equal(HardConcrete().output(x, y, Site, *p), HardConcrete().output(x, y, Site, *p))
    Site.training = False
    assert not HardConcrete().output(x, y, Site, *p).any(), "sigmoid(0) is where a gate closes"


def test_what_is_left_is_trained_on_and_stored():
    model, batch = make("llama")
    host = cw.Host(model, sites="*.up_proj")
    tenant = host.add("t", "diff-pruning", start=3.0, penalty=1e-8, rate=1e-3)
    with torch.no_grad():
        for n, p in tenant.pools.items():
            if n.endswith(".a"):
                p.normal_(generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(1e-3)), weight_decay=0.0)
    at = Scheduled(tenant, optimizer, None, 6)
    at.begin()
    own = tenant.method.penalty
    for step in range(1, 7):
        with host.route("t"):
            loss = model(**batch).logits.square().mean() + own(tenant.config, tenant.plan, tenant.pools)
        loss.backward()
        at.masked()
        optimizer.step()
        changes = {n: w - host.weight(n.removesuffix(".weight")) for n, w in host.merged("t").items()}
        if step == 3:
            left = {n: c != 0 for n, c in changes.items()}
            count = sum(int(m.sum()) for m in left.values())
            assert 0.4 < count / sum(m.numel() for m in left.values()) < 0.6
        at.after(step)
        optimizer.zero_grad()
        assert at.settled(step) == (step > 3)
    assert not own(tenant.config, tenant.plan, tenant.pools).requires_grad, "open gates cost nothing"
    after = {n: w - host.weight(n.removesuffix(".weight")) for n, w in host.merged("t").items()}
    for n, c in after.items():
        assert not c[~left[n]].any() and c[left[n]].any()
        dw = tenant.pools[n.removesuffix("weight") + "dw"]
        torch.testing.assert_close(c, dw, rtol=0, atol=1e-6)
    at.end()
    merged, kept = host.merged("t"), sum(int(p.count_nonzero()) for n, p in tenant.pools.items() if n.endswith(".dw"))
    assert host.compact("t").count() == kept
    for n, w in host.merged("t").items():
        torch.testing.assert_close(w, merged[n], rtol=0, atol=1e-6)


def test_count_and_what_does_not_go():
    sites = [cw.Site("q_proj", 48, 32)]
    assert cw.plan("diff-pruning", sites).count() == 2 * 48 * 32 + 1
    assert cw.plan("diff-pruning", sites, form="stored", kept=[["q_proj", 7]]).count() == 7
    assert cw.plan("diff-pruning", sites, form="stored").count() == 0
    with pytest.raises(cw.CommonweightError, match="kept goes with form='stored'"):
        cw.plan("diff-pruning", sites, kept=[["q_proj", 2]])
