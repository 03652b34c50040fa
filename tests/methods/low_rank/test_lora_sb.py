"""LoRA-SB: its start against the formula, written out by NumPy."""

import numpy as np
import pytest
import torch

import commonweight as cw
from tests.methods.low_rank.test_lora_ga import batch, gradient
from tests.models import make

SMALL = {"rank": 2, "start": "random"}
VARIANTS = [{"start": "given"}]


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_start_is_the_first_step_in_rank_r(alpha):
    """s B R A is the best rank 3 of -step sign(G), and B and A have orthonormal columns and rows."""
    host = cw.Host(make("llama")[0], sites="*.q_proj|*.up_proj")
    tenant = host.add("t", "lora-sb", rank=3, alpha=alpha, step=0.01, rows=[batch()])
    s = 1.0 if alpha is None else 2.0
    for site in host.sites:
        u, sv, v = np.linalg.svd(-0.01 * np.sign(gradient(host.model, site.name, batch())))
        A, B, R = (tenant.pools[f"{site.name}.{k}"].detach().double().numpy() for k in "ABR")
        np.testing.assert_allclose(s * B @ R @ A, u[:, :3] * sv[:3] @ v[:3], atol=1e-5)
        np.testing.assert_allclose(A @ A.T, np.eye(3), atol=1e-5)
        np.testing.assert_allclose(B.T @ B, np.eye(3), atol=1e-5)


def test_only_r_is_trained_and_the_start_is_saved(tmp_path):
    host = cw.Host(make("llama")[0])
    tenant = host.add("t", "lora-sb", rank=2, rows=[batch()])
    assert tenant.count() == 4 * len([n for n in tenant.pools if n.endswith(".R")])
    host.save("t", tmp_path / "t.cw")
    again = cw.Host(make("llama")[0]).load("t", tmp_path / "t.cw")
    assert all(torch.equal(again.pools[n], p) for n, p in tenant.pools.items())
