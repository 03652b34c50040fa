"""Optimizers by name: each trains, those of torch resume to the same bits, rates are what was asked for."""

import dataclasses
import importlib.util
import sys

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from commonweight.adapt import adapt, open_host, optimizers, stiefel
from commonweight.adapt.names import OPTIMIZERS
from tests.adapt import tiny
from tests.models import make

NEEDS = {"adamw-8bit": "bitsandbytes", "lion": "bitsandbytes", "lion-8bit": "bitsandbytes", "prodigy": "prodigyopt",
         "schedule-free": "schedulefree"}  # fmt: skip


def trained(folder, **more):
    host = open_host(folder, dtype="float32")
    whole = more.get("optimizer") == "gradnormlorp"
    method = {"method": "full"} if whole else {"method": "lora", "options": {"rank": 2}}
    result = adapt(host, "t", tiny.rows(24), batch_size=4, **{**method, "epochs": 1, **more})
    return result, {n: p.detach().clone() for n, p in result.tenant.named_parameters()}


@pytest.mark.filterwarnings("ignore")  # other people's libraries
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_trains(bert, name):
    if name in NEEDS:
        if importlib.util.find_spec(NEEDS[name]) is None:
            with pytest.raises(CommonweightError, match=f"pip install {NEEDS[name]}"):
                trained(bert, optimizer=name)
            return
    more = {"epochs": 12} if name == "prodigy" else {"epochs": 3, "lr": 5e-3}  # Prodigy starts at a rate of 1e-6
    result, pools = trained(bert, optimizer=name, patience=99, dev_rows=tiny.rows(12, seed=1), **more)
    assert all(p.isfinite().all() for p in pools.values())
    assert any(p.abs().sum() > 0 for n, p in pools.items() if n.endswith(("B", "dw")))
    first, last = (sum(c["loss"] for c in part) for part in (result.curve[:4], result.curve[-4:]))
    assert last < first


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "adafactor", "gradnormlorp"])
def test_resumed_to_the_same_bits(bert, tmp_path, name):
    def stop(p):
        if p.step == 4:
            raise KeyboardInterrupt

    how = {"optimizer": name, "checkpoint_every": 3, "lr": 5e-3}
    _, whole = trained(bert, **how)
    with pytest.raises(KeyboardInterrupt):
        trained(bert, **how, checkpoint=tmp_path / "c", progress=stop)
    _, again = trained(bert, **how, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    with pytest.raises(KeyboardInterrupt):
        trained(bert, **how, checkpoint=tmp_path / "d", progress=stop)
    with pytest.raises(CommonweightError, match="optimizer"):
        trained(
            bert, **{**how, "optimizer": "sgd" if name != "sgd" else "adamw"}, checkpoint=tmp_path / "d", resume=True
        )


def test_rates_of_pools():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "lora", rank=2)
    rates = {id(p): g["lr"] for g in tenant.param_groups(1e-3, lora_plus=16) for p in g["params"]}
    for n, p in tenant.named_parameters():
        assert rates[id(p)] == pytest.approx(16e-3 if n.endswith("B") else 1e-3)
    (one,) = tenant.param_groups(1.0, one=True)
    assert len(one["params"]) == len(rates) and one["lr"] == 1.0
    with pytest.raises(CommonweightError, match="leave out one"):
        tenant.param_groups(1.0, one=True, lora_plus=4)
    with pytest.raises(CommonweightError, match="ia3 trains no B of its own"):
        host.add("i", "ia3", sites="*.k_proj").param_groups(lora_plus=4)


def test_what_does_not_go_together(bert):
    with pytest.raises(CommonweightError, match="unknown optimizer 'adam'"):
        trained(bert, optimizer="adam")
    with pytest.raises(CommonweightError, match="lora_plus with prodigy"):
        trained(bert, optimizer="prodigy", lora_plus=4)


def test_a_pool_that_lies_column_after_column():
    """torch's fused AdamW goes through memory: with a gradient that lies otherwise it would pair the wrong numbers."""
    values, gradient = torch.randn(4, 6), torch.randn(4, 6)

    def step(p):
        p = torch.nn.Parameter(p)
        p.grad = gradient.clone()
        optimizers._adamw([{"params": [p], "lr": 0.1}], 0.0).step()
        return p.detach()

    assert torch.allclose(step(values.T.contiguous().T), step(values), atol=1e-6)


SODA = {"method": "soda", "options": {"turns": "stiefel"}, "lr": 2e-2}


def turns(pools):
    return [p for n, p in pools.items() if ".Q" in n]


def test_a_pool_that_names_its_optimizer(bert):
    """Matrices that stay orthogonal, beside pools of the run's own optimizer."""
    _, pools = trained(bert, **SODA, optimizer="sgd", epochs=2)
    assert any((q - torch.eye(q.shape[-1])).abs().max() > 1e-2 for q in turns(pools))
    for q in turns(pools):
        torch.testing.assert_close(q @ q.mT, torch.eye(q.shape[-1])[None], rtol=0, atol=1e-6)
    assert any(p.abs().sum() > 0 for n, p in pools.items() if n.endswith("delta"))


def test_its_states_are_resumed(bert, tmp_path):
    def stop(p):
        if p.step == 4:
            raise KeyboardInterrupt

    _, whole = trained(bert, **SODA, checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        trained(bert, **SODA, checkpoint_every=3, checkpoint=tmp_path / "c", progress=stop)
    _, again = trained(bert, **SODA, checkpoint_every=3, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(whole[n], again[n]) for n in whole)


def test_where_it_does_not_go(bert, monkeypatch):
    with pytest.raises(CommonweightError, match=r"prodigy has one rate for all, and soda trains .*Q\d by stiefel"):
        trained(bert, **SODA, optimizer="prodigy")
    plan = cw.plan("soda", [cw.Site("q", 8, 8)], turns="stiefel")
    odd = {n: dataclasses.replace(p, optimizer="odd" if p.optimizer else "") for n, p in plan.pools.items()}
    assert cw.core.load(cw.core.dump(odd["q.Q0"])) == odd["q.Q0"] != plan.pools["q.Q0"]
    p = torch.nn.Parameter(torch.eye(2))
    with pytest.raises(CommonweightError, match="unknown optimizer of a pool 'odd'"):
        optimizers._of_pools([{"params": [p], "lr": 1.0}], {p: "odd"}, torch.optim.SGD)
    monkeypatch.setitem(sys.modules, "geoopt", None)
    stiefel._class.cache_clear()
    with pytest.raises(CommonweightError, match=r"pip install commonweight\[manifold\]"):
        trained(bert, **SODA)
