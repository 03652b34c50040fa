from __future__ import annotations

import torch

from commonweight import Commons
from commonweight.adapt import open_host
from commonweight.lifelong.methods.spu import best, joined
from tests.lifelong import small


def test_the_top_entries_of_a_matrix_are_taken():
    score = torch.tensor([[0.1, -5.0, 2.0], [0.0, 3.0, -0.2]])
    assert best(score, 0.5).tolist() == [1, 2, 4]


def test_what_was_trained_stays_unless_it_is_chosen_again():
    places, v, held = joined(torch.tensor([1, 4, 7]), torch.tensor([0.1, 0.4, 0.7]), torch.tensor([2, 4]))
    assert places.tolist() == [1, 2, 4, 7]
    assert torch.allclose(v, torch.tensor([0.1, 0.0, 0.4, 0.7]))
    assert held.tolist() == [True, False, False, True]


def test_a_task_moves_a_tenth_of_the_entries(model, tmp_path):
    """All others keep their bits, under weight decay too. The code (trainer/spu.py @98a2725) multiplies gradients
    by the mask before AdamW, whose decay moves what is masked."""
    host = open_host(model, "classify", dtype="float32")
    made = small.stream(model, tmp_path / "shop", "spu", host=host, weight_decay=0.1)
    shop = Commons(tmp_path / "shop", make=False)
    before = host.load_from(shop, made.record["stages"][0]["tenants"]["first"], as_="before")
    after = host.load_from(shop, made.tenants["first"], as_="after")
    for n in [n for n in before.pools if n.endswith(".v")]:
        at, then = (t.pools[n.replace(".v", ".places")].long() for t in (after, before))
        size = int(0.1 * 64 * 32)
        assert len(then) == size and size <= len(at) <= 2 * size
        kept = after.pools[n][torch.isin(at, then)]
        same = (kept == before.pools[n][then.argsort()]).sum()
        assert same >= len(at) - size  # all that was not chosen anew
        code = torch.nn.Parameter(before.pools[n].detach().clone())
        optimizer = torch.optim.AdamW([code], lr=small.RECIPE["lr"], weight_decay=0.1)
        code.grad = torch.zeros_like(code)
        optimizer.step()
        was = before.pools[n].detach()
        assert torch.allclose(code, was * (1 - 0.1 * small.RECIPE["lr"])) and not torch.equal(code, was)


def test_kept_rows_are_shown_again_and_earlier_heads_train_on(model, tmp_path):
    """Held entries stay held: the gradients of all tasks' rows are masked alike."""
    host = open_host(model, "classify", dtype="float32")
    options = {"rows": 6, "replay": 4}
    made = small.stream(model, tmp_path / "shop", "spu", host=host, options=options)
    assert [s["memory"] for s in made.record["stages"]] == [{"first": 4}, {"first": 4, "second": 4}]
    shop = Commons(tmp_path / "shop", make=False)
    before = host.load_from(shop, made.record["stages"][0]["tenants"]["first"], as_="before")
    after = host.load_from(shop, made.tenants["first"], as_="after")
    new = host.load_from(shop, made.tenants["second"], as_="new")
    moved = 0
    for n, p in after.pools.items():
        if n.endswith(".v"):
            assert torch.equal(p, new.pools[n])
            at, then = (t.pools[n.replace(".v", ".places")].long() for t in (after, before))
            same = p[torch.isin(at, then)] == before.pools[n][then.argsort()]
            assert same.sum() >= len(at) - int(0.1 * 64 * 32)
        elif "head" in n:
            moved += not torch.equal(p, before.pools[n])
    assert moved
