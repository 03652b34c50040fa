"""Spectral Adapter against the decomposition written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"form": "rotational"}, {"form": "rotational", "rank": 1}]


def test_formula():
    host = cw.Host(make("llama")[0], sites="*.q_proj|*.up_proj")
    tenant = host.add("t", "spectral-adapter", rank=3)
    moves = {}
    with torch.no_grad():
        for n, p in tenant.named_parameters():
            moves[n] = 0.05 * torch.randn(p.shape)
            p.add_(moves[n])
    for site in host.sites:
        w = host.weight(site.name)
        u, s, v = torch.linalg.svd(w.bfloat16().double(), full_matrices=False)
        start = host.add("fresh", "spectral-adapter", rank=3)
        sign = torch.sign((start.pools[f"{site.name}.A"].detach().double() * v[:3]).sum(1))
        host.remove("fresh")
        U, V, S = u[:, :3] * sign, v[:3] * sign[:, None], torch.diag(s[:3])
        A, B = (moves[f"{site.name}.{k}"].double() for k in "AB")
        want = w.double() - U @ S @ V + (U + B) @ S @ (V + A)
        torch.testing.assert_close(host.merged("t")[f"{site.name}.weight"].double(), want, rtol=1e-3, atol=1e-4)


def test_rotational_form():
    host = cw.Host(make("llama")[0], sites="*.q_proj|*.up_proj")
    tenant = stir(host.add("t", "spectral-adapter", rank=3, form="rotational"), std=0.3)
    eye = torch.eye(3).double()

    def turned(upper):
        """The released code's map of a whole matrix, whose skew part alone acts."""
        whole = torch.zeros(3, 3).double()
        whole[[0, 0, 1], [1, 2, 2]] = 2 * upper[0].detach().double()
        K = (whole - whole.T) / 2
        return (eye - K) @ torch.linalg.inv(eye + K)

    for site in host.sites:
        p = {k: tenant.pools[f"{site.name}.{k}"].detach() for k in ("A", "B", "X", "Y", "c")}
        w, U, V = host.weight(site.name).double(), p["B"].double(), p["A"].double().T
        S = torch.linalg.svdvals(w.bfloat16().double())[:3]
        new = (U @ turned(p["X"])) @ torch.diag(S * p["c"].double()) @ (V @ turned(p["Y"])).T
        got = host.merged("t")[f"{site.name}.weight"].double()
        torch.testing.assert_close(got, w - U @ torch.diag(S) @ V.T + new, rtol=1e-4, atol=1e-5)
    assert tenant.count() == len(host.sites) * 3 * 3


def test_a_rank_of_more_than_the_width():
    with pytest.raises(cw.CommonweightError, match="rank 40 is more than its weight"):
        cw.plan("spectral-adapter", [cw.Site("q", 48, 32)], rank=40)
