"""Fed-SB: r x r numbers a site."""

import pytest
import torch

from commonweight.exchange import simulate
from tests.adapt import tiny
from tests.exchange import small


def test_r_squared_a_site(bert):
    p = small.prepared(bert, "fed-sb", {"rank": 3})
    sites = [u.site for u in p.setting.plan.uses if "M" in u.reads]
    assert p.setting.count == 9 * len(sites) + 3 * 33


def test_a_and_b_are_the_base_s_own(bert):
    """W' = W + 2 U_r R S_r V_r^T; the mean of R is the mean of the updates."""
    p = small.prepared(bert, "fed-sb", {"rank": 3})
    site = next(u.site for u in p.setting.plan.uses if "M" in u.reads)
    u, s, v = torch.linalg.svd(p.host.weight(site).bfloat16().float(), full_matrices=False)
    R = torch.randn(3, 3)
    change = small.changes(p, {f"{site}.R": R})[site]
    A, B = p.tenant.pools[f"{site}.A"], p.tenant.pools[f"{site}.B"]
    torch.testing.assert_close(change.float(), 2.0 * B @ R @ A, atol=1e-5, rtol=1e-5)
    signs = (A * v[:3]).sum(1).sign()
    torch.testing.assert_close(A, signs[:, None] * s[:3, None] * v[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(B, u[:, :3] * signs, atol=1e-4, rtol=1e-4)


def test_factors_of_a_gradient_are_sent_once(bert):
    """The first client makes them of its rows; a client is sent them before its first round, and they are counted."""
    rows, how = tiny.rows(40), {"clients": 4, "sample": 2, "rounds": 5, "batch_size": 4, "lr": 1e-2, "seed": 2}
    plain = simulate(small.prepared_host(bert), rows, method="fed-sb", options={"rank": 2}, **how)
    run = simulate(
        small.prepared_host(bert), rows, method="fed-sb", options={"rank": 2, "factors": "gradient"}, shown=8, **how
    )
    assert run.setting.count == plain.setting.count and run.tenant.method.name == "lora-sb"
    sites = [u.site for u in run.setting.plan.uses if "M" in u.reads]
    width = sum(sum(run.host.weight(s).shape) for s in sites)
    setup = 4 * (2 * width + 4 * len(sites))
    asked = {c for c in run.seats if run.seats[c].rounds} - {0}
    assert run.up - plain.up == pytest.approx(setup, abs=600)
    assert run.down - plain.down == pytest.approx(setup * len(asked), abs=600 * len(asked))
    assert sum(s.up for s in run.seats.values()) == run.up and sum(s.down for s in run.seats.values()) == run.down
    A = run.tenant.pools[f"{sites[0]}.A"]
    torch.testing.assert_close(A @ A.T, torch.eye(2), atol=1e-5, rtol=0)
    again = run.client(1)
    assert all(torch.equal(again.pools[n], p) for n, p in run.tenant.pools.items())
