"""SHERL against its formula, written out token by token on the states that the model itself gives out."""

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"size": 5}
SLOTS = ("W", "b", "gain", "shift", "f", "f_bias", "W_out", "b_out", "gain_out", "shift_out", "gamma")


def late(xs, p):
    """One token: its states (n, d) -> what the last block is given."""
    h = [F.layer_norm(p["W"][i] @ x + p["b"][i], (len(p["f"]),), p["gain"][i], p["shift"][i]) for i, x in enumerate(xs)]
    g, others, w = h[-1], h[:-1], []
    for a in others:
        red = sum(torch.relu(F.cosine_similarity(a, b, dim=0)) for b in others)
        w.append(torch.relu(p["f"] @ (a * g) + p["f_bias"]) / red)
    total = sum(v.abs() for v in w) + 1e-8
    z = sum(v / total * a for v, a in zip(w, others)) + g
    out = F.layer_norm(p["W_out"] @ torch.relu(z) + p["b_out"], xs[0].shape, p["gain_out"], p["shift_out"])
    return out + torch.tanh(p["gamma"] / 0.1) * xs[-1]


def test_formula():
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "sherl", size=7), std=0.05)
    p = {k: tenant.pools[f"encoder.layer.early.{k}"].detach() for k in SLOTS}
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[:-1]
        given = torch.stack([torch.stack([late([s[i, t] for s in states], p) for t in range(6)]) for i in range(4)])
        last = model.encoder.layer[-1](given)
        with host.route("t"):
            found = model(**batch).last_hidden_state
    torch.testing.assert_close(found, last[0] if isinstance(last, tuple) else last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_a_state_of_one_or_two_numbers_is_refused(size):
    """Its norm is zero, or a sign, which has no gradient: nothing is learned of what it is made of."""
    with pytest.raises(cw.CommonweightError, match=f"SHERL: size is {size}; it must be >= 3"):
        cw.plan("sherl", [cw.Site("layers.early", 16, 4 * 16 + 1, "trunk")], size=size)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for c in (size, 3):
        W = torch.linspace(-1, 1, 16 * c).reshape(c, 16).sin().requires_grad_()
        F.layer_norm(x @ W.T, (c,), eps=0.0 if c > 1 else 1e-5).square().mul(torch.arange(1.0, c + 1)).sum().backward()
        assert W.grad is not None and (W.grad.abs().max() > 1e-2) == (c == 3)


def test_count_is_the_official_modules():
    """Four states of 16 numbers, compared in 8: 794 numbers, as the published module has."""
    plan = cw.plan("sherl", [cw.Site("layers.early", 16, 4 * 16 + 1, "trunk")])
    assert plan.count() == 4 * (16 * 8 + 3 * 8) + 9 + 1 + 8 * 16 + 3 * 16 == 794


@pytest.mark.parametrize("reader", ["t", ["t", None, "u", "t"]], ids=str)
def test_a_state_whose_norm_is_zero_has_no_part(reader):
    """Where all numbers of a state are one number, as may be in bfloat16: it has a cosine with none."""
    model, batch = make("bert")
    host = cw.Host(model)
    for name in "tu":
        tenant = stir(host.add(name, "sherl", size=3), std=0.05)
        with torch.no_grad():
            for slot in ("W", "b", "shift"):
                tenant.pools[f"encoder.layer.early.{slot}"][0] = 0
    with host.route(reader):
        found = model(**batch).last_hidden_state
        found.square().sum().backward()
    assert found.isfinite().all()
    assert all(p.grad.isfinite().all() for n in "tu" for p in host[n].parameters() if p.grad is not None)
