"""Fed-SB: r x r numbers a site."""

import torch

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
