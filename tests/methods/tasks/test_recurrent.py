"""Updates that an LSTM emits, against torch's own."""

import torch
from torch import nn

import commonweight as cw
from commonweight.methods.tasks.recurrent import drift
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"hidden": 6, "inputs": 3, "rank": 2}
VARIANTS = [{"alone": True}]


def of(host, name, **more):
    return stir(host.add(name, "recurrent", **SMALL, **more), std=0.3)


def test_each_layer_follows_from_those_before_it():
    host = cw.Host(make("llama")[0])
    tenant = of(host, "t", alpha=3.0)
    p = {k: v.detach() for k, v in tenant.pools.items()}
    lstm = nn.LSTM(3, 6)
    with torch.no_grad():
        for name, value in zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), ("wi", "wh", "bi", "bh")):
            getattr(lstm, name).copy_(p[value])
        states, _ = lstm(p["inputs"], (p["code"][None], torch.zeros(1, 6)))
    for at, use in enumerate(tenant.plan.uses):
        site = next(s for s in host.sites if s.name == use.site)
        a = (states[at] @ p[f"head.A.{site.inp}"]).view(2, site.inp)
        b = (states[at] @ p[f"head.B.{site.out}"]).view(site.out, 2)
        want = host.weight(use.site) + 3.0 / 2 * b @ a
        torch.testing.assert_close(host.merged("t")[f"{use.site}.weight"], want)


def test_with_the_recurrence_cut_each_layer_is_a_plain_hypernetwork_s():
    host = cw.Host(make("llama")[0])
    tenant = of(host, "t", alone=True)
    p = {k: v.detach() for k, v in tenant.pools.items()}
    use = tenant.plan.uses[5]
    gates = p["wi"] @ p["inputs"][5] + p["bi"] + p["wh"] @ p["code"] + p["bh"]
    i, _, g, o = gates.chunk(4)
    h = torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g))
    site = next(s for s in host.sites if s.name == use.site)
    dw = (h @ p[f"head.B.{site.out}"]).view(site.out, 2) @ (h @ p[f"head.A.{site.inp}"]).view(2, site.inp)
    torch.testing.assert_close(host.merged("t")[f"{use.site}.weight"], host.weight(use.site) + 2 * dw)


def test_drift_of_earlier_tasks():
    before = {"a": {"A": torch.ones(2, 2)}, "b": {"A": torch.zeros(2, 2)}}
    now = {t: {k: v.clone().requires_grad_() for k, v in s.items()} for t, s in before.items()}
    assert drift(now, before) == 0
    with torch.no_grad():
        now["a"]["A"].add_(2)
    assert drift(now, before) == (4 * 4 + 0) / 2
    drift(now, before).backward()
    assert torch.equal(now["a"]["A"].grad, torch.full((2, 2), 2.0))
