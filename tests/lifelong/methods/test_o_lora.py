from __future__ import annotations

import torch

from commonweight import Commons
from commonweight.adapt import open_host
from commonweight.lifelong.methods.o_lora import apart
from tests.lifelong import small


def test_the_penalty_is_that_of_the_official_trainer():
    """uie_trainer_lora.py: for each layer |A A_new^T| summed; the norms of what is new."""
    g = torch.Generator().manual_seed(0)
    pools = {
        k: torch.randn(*s, generator=g) for k, s in {"x.A": (4, 6), "x.B": (5, 4), "y.A": (4, 3), "y.B": (2, 4)}.items()
    }
    want = 0.0
    for a in (pools["x.A"], pools["y.A"]):
        for i in range(2):
            for j in range(2, 4):
                want += 0.5 * abs(float(a[i] @ a[j]))
    new = [pools["x.A"][2:], pools["y.A"][2:], pools["x.B"][:, 2:], pools["y.B"][:, 2:]]
    assert torch.isclose(apart(pools, 2, 0.5, 0.0), torch.tensor(want))
    assert torch.isclose(apart(pools, 2, 0.5, 0.1), torch.tensor(want + 0.1 * sum(float(v.norm()) for v in new)))


def test_what_was_trained_stays_and_the_sum_answers(model, tmp_path):
    host = open_host(model, "classify", dtype="float32")
    made = small.stream(model, tmp_path / "shop", "o-lora", host=host, weight_decay=0.1)
    shop = Commons(tmp_path / "shop", make=False)
    before = host.load_from(shop, made.record["stages"][0]["tenants"]["first"], as_="before")
    after = host.load_from(shop, made.tenants["first"], as_="after")
    assert after.config.rank == 4 and after.config.alpha / after.config.rank == 2
    for n, p in before.pools.items():
        if n.endswith(".A"):
            assert torch.equal(after.pools[n][:2], p)
        elif not n.startswith("head"):
            assert torch.equal(after.pools[n][:, :2], p) and after.pools[n][:, 2:].any()


def test_the_paper_squares_what_the_code_takes_absolute():
    """arXiv 2310.14152, eq. (7), and uie_trainer_lora.py @2a2e620: two forms, and ours is the code's."""
    a = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    inner = a[:2] @ a[2:].T
    ours = float(apart({"x.A": a, "x.B": torch.zeros(5, 3)}, 2, 1.0, 0.0))
    assert abs(ours - float(inner.abs().sum())) < 1e-5
    assert abs(ours - float(inner.square().sum())) > 0.1
