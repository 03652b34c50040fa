"""Tenants of one common that differ in which rows they read: their numbers lie together, and nothing else is theirs."""

import copy
import pickle

import torch

import commonweight as cw
from commonweight.host.pools import Packed, stored
from tests.models import make


def _host(n: int = 2) -> cw.Host:
    host = cw.Host(make("llama")[0])
    for i in range(n):
        host.add(f"t{i}", "mos", common="pools", seed=i)
    return host


def _packed(tenant: cw.Tenant) -> Packed:
    assert isinstance(tenant.pools, Packed)
    return tenant.pools


def _logits(host: cw.Host, name: str) -> torch.Tensor:
    with torch.no_grad(), host.route(name):
        return host.model(torch.tensor([[1, 2, 3]])).logits


def _stir(host: cw.Host) -> None:
    with torch.no_grad():
        for i, p in enumerate(host.common("pools").parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))


def test_own_numbers_lie_in_one_tensor_and_are_those_of_a_tenant_alone():
    host = _host()
    alone = cw.Host(make("llama")[0]).add("t", "mos", seed=1).pools
    mine = host["t1"].pools
    assert isinstance(mine, Packed) and not isinstance(alone, Packed)
    assert list(mine) == list(alone) and len(mine) == len(alone)
    for name in mine:
        assert name in mine and mine[name].shape == alone[name].shape and mine[name].dtype == alone[name].dtype
        if name.endswith(".index"):
            assert mine[name].equal(alone[name]) and mine[name].data_ptr() != host["t0"].pools[name].data_ptr()
    assert len(stored(mine)) == len(host.common("pools").pools) + 1
    assert "nothing" not in mine and mine.get("nothing") is None


def test_tenants_of_one_kind_have_one_plan():
    host = _host()
    a, b, c = host["t0"], host["t1"], host.add("c", "mos", common="pools", seed=1, sites="*.q_proj|*.v_proj")
    assert a.plan.pools is b.plan.pools and a.plan.uses is b.plan.uses and (a.plan.seed, b.plan.seed) == (0, 1)
    assert _packed(a).at is _packed(b).at and c.plan.pools is not a.plan.pools
    x, y = (cw.Host(make("llama")[0]).add("l", "lora", rank=r).plan for r in (2, 4))
    assert x != y


def test_a_tenant_that_rests_answers_as_before():
    host = _host()
    _stir(host)
    before = [_logits(host, f"t{i}") for i in range(2)]
    assert not before[0].allclose(before[1])
    for i in range(2):
        host[f"t{i}"].rest()
    assert all(_logits(host, f"t{i}").equal(before[i]) for i in range(2))


def test_writing_to_a_view_is_seen_and_counted():
    host = _host()
    _stir(host)
    before, tenant = _logits(host, "t0"), host["t0"]
    versions = [p._version for p in stored(tenant.pools)]
    for name in [n for n in tenant.pools if n.endswith(".index")]:
        tenant.pools[name].copy_(host["t1"].pools[name])
    assert [p._version for p in stored(tenant.pools)] != versions
    assert not _logits(host, "t0").allclose(before) and _logits(host, "t0").equal(_logits(host, "t1"))


def test_copies_and_pickles_hold_numbers_of_their_own():
    host = _host()
    _stir(host)
    want = _logits(host, "t1")
    for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert _logits(other, "t1").equal(want)
        assert _packed(other["t1"]).flat.data_ptr() != _packed(host["t1"]).flat.data_ptr()


def test_cores_stay_parameters_beside_the_packed_numbers():
    host = cw.Host(make("llama")[0])
    tenant = host.add("t", "mos", common="pools", core="matrix")
    host.freeze("pools")
    names = [n for n, _ in tenant.named_parameters()]
    assert names and all(n.endswith(".core") for n in names)
    assert all(tenant.pools[n] is p and isinstance(p, torch.nn.Parameter) for n, p in tenant.named_parameters())
