"""CorDA: its start against the decomposition written out."""

import pytest
import torch

import commonweight as cw
from tests.methods.low_rank.test_eva import batch, inputs
from tests.models import answer, make

SMALL = {"rank": 3, "start": "random"}
VARIANTS = [{"start": "given"}, {"mode": "kpm"}]
SITES = "*.q_proj|*.down_proj"


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_start(mode):
    model, given = make("llama")
    host = cw.Host(model, sites=SITES)
    plain = answer(model, given)
    rows = {"rows" if mode == "ipm" else "retain": [batch()]}
    tenant = host.add("t", "corda", rank=3, alpha=6, mode=mode, **rows)
    X = inputs(model, [s.name for s in host.sites], batch())
    for n, x in X.items():
        C = x.double().T @ x.double()
        C = C / C.diagonal().mean() + 0.01 * torch.eye(len(C))
        w = host.weight(n).double()
        u, s, v = torch.linalg.svd(w @ C, full_matrices=False)
        at = slice(3) if mode == "ipm" else slice(-3, None)
        part = u[:, at] * s[at] @ v[at] @ torch.linalg.inv(C)
        A, B = (tenant.pools[f"{n}.{k}"].detach().double() for k in "AB")
        torch.testing.assert_close(2.0 * B @ A, part, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(B.norm(), A.norm(), rtol=1e-4, atol=0.0)
        even = (B.norm(dim=0) ** 2 / s[at]).mean()
        torch.testing.assert_close(B.norm(dim=0) ** 2, even * s[at], rtol=1e-3, atol=1e-4)
    with torch.no_grad(), host.route("t"):
        assert torch.equal(answer(model, given), plain)


def test_the_start_is_saved(tmp_path):
    host = cw.Host(make("llama")[0], sites=SITES)
    tenant = host.add("t", "corda", rank=2, rows=[batch()])
    host.save("t", tmp_path / "t.cw")
    again = cw.Host(make("llama")[0]).load("t", tmp_path / "t.cw")
    assert all(torch.equal(again.pools[n], p) for n, p in tenant.pools.items())


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {}, r"corda begins from data: X\^T X / n .* give rows="),
        ({"mode": "kpm"}, {}, r"corda with mode='kpm' begins from data: .* give retain="),
        (
            {"mode": "kpm"},
            {"rows": []},
            r"rows: corda with mode='kpm' .*; give retain= in place of rows=",
        ),
        ({}, {"rows": [], "retain": []}, r"retain: corda does not ask for rows to keep; leave retain out"),
        ({"rank": 40}, {"rows": [batch()]}, r"corda: .*: rank 40 is more than its weight"),
    ],
)
def test_what_it_begins_from(options, given, message):
    with pytest.raises(cw.CommonweightError, match=message):
        cw.Host(make("llama")[0], sites=SITES).add("t", "corda", **options, **given)


def test_an_input_that_is_always_zero():
    model, _ = make("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    with pytest.raises(cw.CommonweightError, match="down_proj: its input is zero in all rows; leave the site out"):
        cw.Host(model, sites=SITES).add("t", "corda", rank=2, rows=[batch()])
