"""ReLoRA: what a restart does, and that the rank of the whole update grows."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.relora import ReLoRA, Restart
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "cycles": 2}


def test_restart():
    way = Restart(ReLoRA(rank=2, alpha=6, cycles=3, keep=0.0, warmup=0.5), ("q",), 7)
    pools = {"q.dw": torch.randn(5, 4), "q.A": torch.randn(2, 4), "q.B": torch.randn(5, 2)}
    edits = {s: way.after(Moment(s, 12, pools, {}, {}), {})[1] for s in range(1, 13)}
    assert [s for s, e in edits.items() if e.values] == [4, 8], "the last update stays as it is"
    for s in (4, 8):
        torch.testing.assert_close(edits[s].values["q.dw"], pools["q.dw"] + 3 * pools["q.B"] @ pools["q.A"])
        assert not edits[s].values["q.B"].any() and edits[s].values["q.A"].any()
        assert not any(m.any() for m in edits[s].moments.values())
    assert not torch.equal(edits[4].values["q.A"], edits[8].values["q.A"])
    rates = {s: e.rates.get("q.A") for s, e in edits.items()}
    assert [rates[s] for s in (1, 2, 3)] == [None] * 3
    assert [rates[s] for s in (4, 5, 6, 7)] == pytest.approx([1 / 3, 2 / 3, 1, None])


def test_formula_and_that_two_zeros_do_not_train():
    """As released A is zero as well as B until the first merge, and neither is given a gradient."""
    model, batch = make("llama")
    host, site = cw.Host(model, sites="*.q_proj"), "model.layers.0.self_attn.q_proj"
    tenant = stir(host.add("t", "relora", rank=2, alpha=6))
    dw, A, B = (tenant.pools[f"{site}.{k}"].detach().clone() for k in ("dw", "A", "B"))
    want = host.weight(site) + dw + 3 * B @ A
    torch.testing.assert_close(host.merged("t")[f"{site}.weight"], want, rtol=1e-4, atol=1e-5)
    for fresh, some in ((host.add("u", "relora", rank=2), True), (host.add("v", "relora", rank=2), False)):
        with torch.no_grad():
            for n, p in fresh.named_parameters():
                if n.endswith(".A") and not some:
                    p.zero_()
        with host.route(fresh.name):
            model(**batch).logits.square().mean().backward()
        assert some == any(bool(p.grad.any()) for n, p in fresh.named_parameters() if n.endswith((".A", ".B")))


def test_the_answer_does_not_jump_and_the_rank_grows():
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj")
    tenant = host.add("t", "relora", rank=2, cycles=3, warmup=0.0)
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(0.05)), weight_decay=0.0)
    at, site = Scheduled(tenant, optimizer, None, 9), "model.layers.0.self_attn.q_proj"
    at.begin()
    for step in range(1, 10):
        with host.route("t"):
            model(**batch).logits.square().mean().backward()
        optimizer.step()
        before = host.merged("t")[f"{site}.weight"].clone()
        at.after(step)
        torch.testing.assert_close(host.merged("t")[f"{site}.weight"], before, rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
    change = host.merged("t")[f"{site}.weight"] - host.weight(site)
    assert torch.linalg.matrix_rank(change, atol=1e-4) == 6, "three updates of rank 2"
    at.end()
    assert tenant.pools[f"{site}.dw"].requires_grad
