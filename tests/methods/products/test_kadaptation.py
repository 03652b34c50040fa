"""KAdaptation against a sum of torch.kron."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"terms": 4}


def test_formula_and_what_is_shared():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "kadaptation", terms=4, alpha=8))
    kinds = {n for n in tenant.pools if n.startswith("kadaptation.")}
    assert len(kinds) == 4, "a and b of the queries, a and b of the values"
    for site in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"):
        kind = site.replace(".0.", ".*.").replace(".1.", ".*.")
        a, b = (tenant.pools[f"kadaptation.{kind}.{k}"].detach() for k in "ab")
        u, v = (tenant.pools[f"{site}.{k}"].detach() for k in "uv")
        change = sum(torch.kron(torch.outer(a[i], b[i]), torch.outer(u[i], v[i])) for i in range(4))
        got = host.merged("t")[f"{site}.weight"] - host.weight(site)
        torch.testing.assert_close(got, 2 * change, rtol=1e-3, atol=1e-4)


def test_all_factors_learn():
    """With both right factors at zero, as released, no factor ever gets a gradient: the second half shows it."""
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "kadaptation", terms=4)
    with host.route("t"):
        model(**batch).logits.square().sum().backward()
    moved = [n for n, p in tenant.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert moved and all(n.endswith(".u") for n in moved), "u first, the others follow it"
    with torch.no_grad():
        for n, p in tenant.named_parameters():
            p.grad = None
            if n.endswith((".u", ".v")):
                p.zero_()
    with host.route("t"):
        model(**batch).logits.square().sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in tenant.parameters())


def test_widths_that_do_not_divide():
    with pytest.raises(cw.CommonweightError, match=r"terms=32 does not divide \(48, 32\)"):
        cw.plan("kadaptation", [cw.Site("q", 48, 32)])


def test_values_have_their_own_right_factors():
    """The released code makes the value's change of its left factors and the query's right ones: the value's own are
    counted, and nothing ever reads them."""
    model, batch = make("bert")
    host = cw.Host(model, sites="*.query|*.value")
    tenant = stir(host.add("t", "kadaptation", terms=4, alpha=4))
    q, v = (next(s.name for s in host.sites if s.name.endswith(k)) for k in ("query", "value"))
    pools = {n: p.detach().clone().requires_grad_() for n, p in tenant.pools.items()}

    def change(left, right):
        kind = next(n[:-2] for n in pools if n.startswith("kadaptation.") and n.endswith(f"{left.split('.')[-1]}.a"))
        a, b, u, w = (pools[n] for n in (f"{kind}.a", f"{kind}.b", f"{right}.u", f"{right}.v"))
        return sum(torch.kron(torch.outer(a[i], b[i]), torch.outer(u[i], w[i])) for i in range(4))

    got = host.merged("t")[f"{v}.weight"] - host.weight(v)
    ours, official = change(v, v), change(v, q)
    torch.testing.assert_close(got, ours.detach(), rtol=1e-3, atol=1e-4)
    assert (ours - official).norm() > 0.1 * ours.norm()
    mine = [pools[f"{v}.{k}"] for k in "uv"]
    assert torch.autograd.grad(official.sum(), mine, allow_unused=True) == (None, None)
    assert all(g.any() for g in torch.autograd.grad(ours.sum(), mine))
    with host.route("t"):
        model(**batch).last_hidden_state.square().sum().backward()
    assert all(tenant.pools[f"{v}.{k}"].grad.any() for k in "uv")
