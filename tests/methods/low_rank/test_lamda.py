"""LaMDA: which columns of B rest after a step, in the paper's count and the released code's."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.methods.low_rank.lamda import Freezing, LaMDA
from tests.models import make

SMALL = {"rank": 3, "freeze": 0.5}


def test_when_columns_freeze():
    paper, official = (Freezing(LaMDA(rank=10, compat=c)) for c in ("paper", "official"))
    assert [paper.columns(s, 100, 10) for s in (0, 2, 3, 15, 29, 30, 100)] == [0, 0, 1, 5, 9, 10, 10]
    assert [official.columns(s, 100, 10) for s in (29, 31, 60, 100)] == [0, 1, 2, 3]
    with pytest.raises(cw.CommonweightError, match="freeze=0 freezes all columns"):  # a file with it still opens
        Freezing(LaMDA(rank=4, freeze=0)).begin(cw.plan("lamda", [cw.Site("q", 8, 8)], rank=4), {}, 10)


@pytest.mark.parametrize("compat, still", [("paper", [0, 0, 1, 1, 2, 3, 3, 3]), ("official", [0] * 4 + [1] * 4)])
def test_frozen_columns_do_not_move(compat, still):
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj")
    tenant = host.add("t", "lamda", rank=3, freeze=0.5 if compat == "official" else 0.6, compat=compat)
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(0.05)), weight_decay=0.1)
    at, name = Scheduled(tenant, optimizer, None, 8), "model.layers.0.self_attn.q_proj.B"
    at.begin()
    for step, frozen in enumerate(still, 1):
        before = tenant.pools[name].detach().clone()
        with host.route("t"):
            model(**batch).logits.square().mean().backward()
        optimizer.step()
        at.after(step)
        optimizer.zero_grad()
        moved = (tenant.pools[name] != before).any(0).tolist()
        assert moved == [False] * frozen + [True] * (3 - frozen)


def test_formula():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "lamda", rank=3, alpha=6)
    name = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        tenant.pools[f"{name}.B"].normal_(generator=torch.Generator().manual_seed(0))
    A, R, B = (tenant.pools[f"{name}.{k}"].detach() for k in "ARB")
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], host.weight(name) + 2 * B @ R @ A)
    assert tenant.nbytes == 4 * (R.numel() + B.numel()) * 2, "A comes from the seed"


def test_sites_with_ranks_of_their_own():
    """Each has the scale alpha / r of its own r, and all its columns have the same time."""
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj|*.v_proj")
    tenant = host.add("t", "lamda", rank=3, alpha=6, ranks=[["*.v_proj", 2]], freeze=0.5)
    q, v = (f"model.layers.0.self_attn.{n}_proj" for n in "qv")
    optimizer = torch.optim.SGD(alone(tenant.param_groups(0.05)))
    at = Scheduled(tenant, optimizer, None, 4)
    at.begin()
    for step in (1, 2):
        with host.route("t"):
            model(**batch).logits.square().mean().backward()
        optimizer.step()
        at.after(step)
        optimizer.zero_grad()
        assert at.resting == (frozenset() if step == 1 else {n for n in tenant.pools if n.endswith(".B")})
    for n, scale in ((q, 2), (v, 3)):
        A, R, B = (tenant.pools[f"{n}.{k}"].detach() for k in "ARB")
        assert R.shape == (6 // scale, 6 // scale) and B.any()
        torch.testing.assert_close(host.merged("t")[f"{n}.weight"], host.weight(n) + scale * B @ R @ A)
    with pytest.raises(cw.CommonweightError, match=r"ranks gives .* it must be > 0"):
        host.add("u", "lamda", ranks=[["*", 0]])
