"""FedAvg: the weighted mean, and the error of averaging factors, written out."""

import pytest
import torch

from commonweight.exchange import simulate
from commonweight.exchange.factors import averaging_error
from commonweight.exchange.registry import Reply, State
from tests.adapt import tiny
from tests.exchange import small


def replies(p, n=3):
    begin = small.start(p)
    return [Reply(c, 3 + 4 * c, small.moved({k: begin[k] for k in p.setting.travels}, c)) for c in range(n)]


@pytest.mark.parametrize("weigh", ["rows", "clients"])
def test_the_mean(bert, weigh):
    p = small.prepared(bert, "fedavg", weigh=weigh)
    got = replies(p)
    state = p.method.gather(p.setting, p.method.begin(p.setting, small.start(p)), 0, got)
    w = torch.tensor([3.0, 7.0, 11.0] if weigh == "rows" else [1.0, 1.0, 1.0])
    for n, value in state.tensors.items():
        mean = torch.tensordot(w / w.sum(), torch.stack([r.tensors[n] for r in got]), 1)
        assert (value - mean).abs().max() <= 1e-6


def test_the_error_of_averaging_factors(bert):
    """||mean(B A) - mean(B) mean(A)|| / ||mean(B A)||, with the products formed."""
    p = small.prepared(bert, "fedavg", {"rank": 3, "alpha": 4.0})
    got = replies(p)
    w = [3 / 21, 7 / 21, 11 / 21]
    state = p.method.gather(p.setting, State(small.start(p)), 0, got)
    error = size = 0.0
    for n in [n for n in state.tensors if n.endswith(".A")]:
        A, B = ([r.tensors[k].double() for r in got] for k in (n, f"{n[:-1]}B"))
        mean = sum(x * b @ a for x, a, b in zip(w, A, B))
        error += (mean - state.tensors[f"{n[:-1]}B"].double() @ state.tensors[n].double()).square().sum()
        size += mean.square().sum()
    assert state.seen["averaging_error"] == pytest.approx(float((error / size) ** 0.5), rel=1e-5)
    assert state.seen["averaging_error"] > 0.05


def test_one_client_has_no_error_and_other_methods_say_nothing(bert):
    p = small.prepared(bert, "fedavg")
    got = replies(p, 1)
    assert averaging_error(p.setting.plan, got, [1.0], got[0].tensors) <= 1e-6
    q = small.prepared(bert, "fedavg", {"adapter": "ia3"})
    assert averaging_error(q.setting.plan, replies(q), [0.2, 0.3, 0.5], {}) is None


def test_pools_that_are_shared_travel_and_the_others_stay(bert):
    """LoRA-XS on common factors: A and B go to the server, every client keeps its own R."""
    rows = tiny.rows(40)
    run = simulate(
        small.prepared_host(bert), rows, options={"adapter": "lora-xs", "rank": 2, "factors": "common"}, clients=3,
        rounds=2, batch_size=4, lr=1e-2, holdout=0.3,
    )  # fmt: skip
    assert {n.rpartition(".")[2] for n in run.setting.private} == {"R"}
    assert {n.rpartition(".")[2] for n in run.setting.travels} == {"A", "B", "W", "b"}
    mine = [run.kept.of(c) for c in range(3)]
    assert all(m.keys() == set(run.setting.private) for m in mine)
    name = run.setting.private[0]
    assert not torch.equal(mine[0][name], mine[1][name])
    tenant = run.client(1)
    assert torch.equal(tenant.pools[name], mine[1][name])
    shared = run.setting.travels[0]
    assert torch.equal(tenant.pools[shared], run.tenant.pools[shared])
    assert all("accuracy" in s.metrics for s in run.seats.values())


def test_beside_a_frozen_common_its_own_numbers_travel(bert):
    """Factors that other tenants have found: what is sent is R and the head."""
    host = small.prepared_host(bert)
    host.add("before", "lora-xs", rank=2, factors="common", common="factors")
    how = {"options": {"adapter": "lora-xs", "rank": 2, "factors": "common"}, "clients": 3, "rounds": 1}
    with pytest.raises(ValueError, match="still trained; freeze it first"):
        simulate(host, tiny.rows(20), common="factors", **how)
    host.freeze("factors")
    before = {n: p.detach().clone() for n, p in host.common("factors").pools.items()}
    run = simulate(host, tiny.rows(20), common="factors", **how)
    assert {n.rpartition(".")[2] for n in run.setting.travels} == {"R", "W", "b"}
    assert small.same(before, {n: p.detach() for n, p in host.common("factors").pools.items()})
