"""WaveFT against the inverse Haar transform, written out by matrices."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"n_frequency": 20}
NAME = "model.layers.1.mlp.up_proj"


def synthesis(n: int) -> torch.Tensor:
    """(n, n) for an even n: coefficients, means first and differences after them, to samples."""
    half = torch.eye(n // 2)
    pairs = [torch.kron(half, torch.tensor([[1.0], [sign]])) for sign in (1.0, -1.0)]
    return torch.cat(pairs, 1) / 2**0.5


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "waveft", n_frequency=200, scaling=3.0))
    c, places = tenant.pools[f"{NAME}.c"].detach(), tenant.pools["waveft.64x32"].long()
    given = torch.zeros(64 * 32).index_put((places,), c).view(64, 32)
    low, right, below, both = given[:32, :16], given[:32, 16:], given[32:, :16], given[32:, 16:]
    usual = torch.cat([torch.cat([low, below], 1), torch.cat([right, both], 1)])  # right: what differs between rows
    change = synthesis(64) @ usual @ synthesis(32).T
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + 3.0 * change)


@pytest.mark.parametrize("shape", [(5, 7), (6, 7), (5, 8)])
def test_odd_sides(shape):
    out, inp = shape
    n = out * inp
    use = cw.plan("waveft", [cw.Site("q", out, inp)], n_frequency=n, scaling=2.0).uses[0]
    c, places, x = torch.randn(n), torch.randperm(n), torch.randn(3, inp)
    w = use.bind.weight(torch.zeros(out, inp), c=c, places=places)
    y = use.bind.output(x, torch.zeros(3, out), None, c=c, places=places)
    torch.testing.assert_close(y, x @ w.T, atol=1e-5, rtol=1e-5)


def test_count_and_places():
    sites = [cw.Site(f"{i}.q", 48, 32) for i in range(3)]
    plan = cw.plan("waveft", sites, n_frequency=100)
    assert plan.count() == 300 and plan.readers()["waveft.48x32"] == 3 and plan.nbytes == 1200


def test_more_than_there_are():
    with pytest.raises(cw.CommonweightError, match=r"q: n_frequency=65 is more than the 64 numbers of a weight"):
        cw.plan("waveft", [cw.Site("q", 8, 8)], n_frequency=65)
