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
