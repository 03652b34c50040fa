from __future__ import annotations

import numpy as np
import pytest
import torch

from commonweight import Commons
from commonweight.adapt import open_host
from commonweight.lifelong import state
from commonweight.lifelong.subspaces import Space, first, free, more
from tests.lifelong import small


def official(basis, kind, x, threshold):
    """update_DualGPM of the official code for one layer, in numpy, with what is left at once after the first task."""
    if basis is None:
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        r = np.sum(np.cumsum(s**2 / (s**2).sum()) < threshold)
        basis, kind = u[:, : max(r, 1)], "remove"
    else:
        total = (np.linalg.svd(x)[1] ** 2).sum()
        inside = basis @ basis.T @ x
        part = x - inside if kind == "remove" else inside
        u, s, _ = np.linalg.svd(part, full_matrices=False)
        ratio, hat = s**2 / total, (s**2).sum()
        got, r = ((total - hat) / total, 0) if kind == "remove" else (hat / total, 0)
        for v in ratio:
            if kind == "remove" and got < threshold:
                got, r = got + v, r + 1
            elif kind == "retain" and got >= 1 - threshold:
                got, r = got - v, r + 1
            else:
                break
        if r and kind == "remove":
            basis = np.hstack((basis, u[:, :r]))[:, : len(x)]
        elif r:
            rest = basis - u[:, :r] @ u[:, :r].T @ basis
            basis = np.linalg.svd(rest)[0][:, : basis.shape[1] - r]
    if kind == "remove" and basis.shape[1] > basis.shape[0] / 2:
        basis, kind = np.linalg.svd(basis)[0][:, basis.shape[1] :], "retain"
    return basis, kind


@pytest.mark.parametrize("spread", [0.3, 0.7, 1.5])
def test_spaces_grow_as_in_the_official_code(spread):
    g = torch.Generator().manual_seed(0)
    space, basis, kind = None, None, ""
    for t in range(4):
        x = torch.randn(8, 30, generator=g, dtype=torch.float64) * torch.exp(-spread * torch.arange(8.0))[:, None]
        x = (x @ x.T / 30).roll((t, t), (0, 1))
        space = first(x, 0.9) if space is None else more(space, x, 0.9)
        basis, kind = official(basis, kind, x.numpy(), 0.9)
        assert space.left == (kind == "retain") and space.basis.shape == basis.shape
        assert np.allclose((space.basis @ space.basis.T).numpy(), basis @ basis.T, atol=1e-8)


def test_what_is_free_is_orthogonal_to_what_is_taken():
    q = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))[0]
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    assert (q.T @ free(Space(q), x)).abs().max() < 1e-6
    assert torch.allclose(free(Space(q, True), x), q @ q.T @ x)
    assert torch.equal(free(None, x), x)


def test_a_new_update_reads_nothing_that_earlier_tasks_read(model, tmp_path):
    host = open_host(model, "classify", dtype="float32")
    one = small.stream(model, tmp_path / "shop", "inflora", n=1, host=host)
    spaces, facts, _ = state.read(one.folder, 0)
    made = small.stream(model, tmp_path / "shop", "inflora", host=host, resume=True)
    after = host.load_from(Commons(tmp_path / "shop", make=False), made.tenants["second"])
    for site, basis in spaces.items():
        new = after.pools[f"{site}.A"][2:].detach()
        inside = new @ basis @ basis.T
        wanted = new if site in facts["left"] else torch.zeros_like(new)
        assert (inside - wanted).abs().max() < 1e-5
        assert new.any() and after.pools[f"{site}.B"][:, 2:].any()


def test_the_code_keeps_the_wrong_half_of_a_space_that_the_first_task_fills():
    """methods/inflora.py @0d102e9: of a first task beyond half of a space it keeps the directions that were read, as
    those that are left; a new A then reads in them alone. Ours reads outside of them."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(6, 40, generator=g) * torch.tensor([3.0, 2.5, 2.2, 2.0, 1.8, 0.1])[:, None]
    x = x @ x.T / 40
    u, s, _ = torch.linalg.svd(x)
    r = int((s.square().cumsum(0) / s.square().sum() < 0.9999).sum())
    assert r > 3
    code, ours = Space(u[:, :r], True), first(x, 0.9999)
    new = torch.randn(6, 9, generator=g)
    assert ours.left and ours.basis.shape == (6, 6 - r)
    assert (u[:, :r].T @ free(ours, new)).abs().max() < 1e-5
    assert torch.allclose(u[:, :r].T @ free(code, new), u[:, :r].T @ new, atol=1e-5)  # all of what was read
