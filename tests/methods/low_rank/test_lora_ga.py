"""LoRA-GA: its start against the formula of the official code, written out by NumPy."""

import numpy as np
import pytest
import torch

import commonweight as cw
from tests.models import answer, make

SMALL = {"rank": 2, "start": "random"}
VARIANTS = [{"start": "given"}]


def batch(seed=3):
    ids = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def gradient(model, name, given):
    w = model.get_submodule(name).weight.requires_grad_(True)
    found = torch.autograd.grad(model(**given).loss, w)[0]
    w.requires_grad_(False)
    return found.double().numpy()


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_start(direction):
    model, inputs = make("llama")
    host = cw.Host(model, sites="*.q_proj|*.up_proj")
    plain = answer(model, inputs)
    tenant = host.add("t", "lora-ga", rank=2, gamma=9, direction=direction, rows=[batch()])
    a, b = {"ArB2r": ([0, 1], [2, 3]), "A2rBr": ([2, 3], [0, 1]), "ArBr": ([1, 3], [0, 2])}[direction]
    for site in host.sites:
        u, _, v = np.linalg.svd(gradient(model, site.name, batch()))
        c = site.out**0.25 / 3
        A, B = (tenant.pools[f"{site.name}.{k}"].detach().double().numpy() for k in "AB")
        assert np.abs(np.diag(A @ v[a].T)) == pytest.approx(np.full(2, c), rel=1e-3)
        assert np.abs(np.diag(B.T @ u[:, b])) == pytest.approx(np.full(2, c), rel=1e-3)
    with torch.no_grad(), host.route("t"):
        assert torch.equal(answer(model, inputs), plain)


def test_the_start_does_not_depend_on_the_size_of_the_loss():
    starts = []
    for size in (1.0, 50.0):
        shown = cw.methods.Shown([batch()], lambda m, b, size=size: size * m(**b).loss)
        starts.append(cw.Host(make("llama")[0]).add("t", "lora-ga", rank=2, rows=shown))
    for n, p in starts[0].pools.items():
        torch.testing.assert_close(p.abs(), starts[1].pools[n].abs(), rtol=1e-2, atol=1e-3)


def test_the_start_is_saved(tmp_path):
    host = cw.Host(make("llama")[0])
    tenant = host.add("t", "lora-ga", rank=2, rows=[batch()])
    host.save("t", tmp_path / "t.cw")
    again = cw.Host(make("llama")[0]).load("t", tmp_path / "t.cw")
    assert all(torch.equal(again.pools[n], p) for n, p in tenant.pools.items())


def test_a_rank_of_more_than_half_the_width():
    with pytest.raises(cw.CommonweightError, match=r"rank=20 wants 40 singular vectors of a gradient \(32, 32\)"):
        cw.Host(make("llama")[0], sites="*.q_proj").add("t", "lora-ga", rank=20, rows=[batch()])
