"""Tenants of one common: the same numbers in memory, written by all until they are frozen."""

import copy
import gc

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make


@pytest.fixture
def host():
    model, _ = make("llama")
    return cw.Host(model)


def test_shared_pools_are_one_and_private_ones_are_not(host):
    a = host.add("a", "lotr", rank=2, common="tasks", seed=0)
    b = host.add("b", "lotr", rank=2, common="tasks", seed=5)
    assert host.common("tasks").nbytes == sum(a.pools[n].nbytes for n, p in a.plan.pools.items() if p.scope == "shared")
    for name, pool in a.plan.pools.items():
        assert (a.pools[name] is b.pools[name]) == (pool.scope == "shared"), name
    assert a.private_nbytes + host.common("tasks").nbytes == a.nbytes
    alone = host.add("c", "lotr", rank=2, seed=0)
    assert all(alone.pools[n] is not a.pools[n] for n in a.plan.pools)
    torch.testing.assert_close([*alone.pools.values()], [*a.pools.values()])


def test_a_late_tenant_trains_its_own_pools_alone(host):
    a = stir(host.add("a", "lotr", rank=2, common="tasks"))
    before = {n: t.clone() for n, t in host.common("tasks").pools.items()}
    host.freeze("tasks")
    late = host.add("late", "lotr", rank=2, common="tasks")
    assert {n for n, _ in late.named_parameters()} == {n for n in late.plan.pools if n.endswith(".C")}
    assert late.count() == late.private_nbytes // 4
    optimizer = torch.optim.AdamW(late.param_groups(0.1), weight_decay=0.1)
    with host.route(["a", "late"]):
        host.model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]])).logits.square().mean().backward()
    optimizer.step()
    assert any(p.ne(0).any() for p in late.parameters())
    for name, value in host.common("tasks").pools.items():
        assert torch.equal(value, before[name]), name
        assert value.grad is None
    host.freeze("tasks", False)
    assert {n for n, _ in a.named_parameters()} == {n for n, p in a.plan.pools.items() if p.train}


def test_gradients_of_both_tenants_meet_in_the_common(host):
    a, b = (stir(host.add(n, "lotr", rank=2, common="tasks")) for n in "ab")
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def gradient(readers, rows):
        with host.route(readers):
            host.model(input_ids=rows).logits.square().sum().backward()
        out = {n: t.grad.clone() for n, t in host.common("tasks").pools.items()}
        for t in (*a.parameters(), *b.parameters()):
            t.grad = None
        return out

    together = gradient(["a", "b"], ids)
    parts = gradient(["a"], ids[:1]), gradient(["b"], ids[1:])
    for name, value in together.items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-5)


def test_a_common_ends_with_its_last_tenant(host):
    host.add("a", "lotr", rank=2, common="tasks")
    host.add("b", "lotr", rank=2, common="tasks")
    host.remove("a")
    assert host.common("tasks").nbytes
    host.remove("b")
    gc.collect()
    with pytest.raises(cw.CommonweightError, match="unknown common 'tasks'"):
        host.common("tasks")


def test_the_next_common_of_a_name_is_another_one(host):
    """Whoever still holds a removed tenant: what was trained does not come back."""
    held = stir(host.add("a", "lotr", rank=2, common="tasks"))
    host.freeze("tasks")
    host.remove("a")
    again = host.add("a", "lotr", rank=4, common="tasks")
    assert not host.common("tasks").frozen and again.count() == again.nbytes // 4
    assert all(again.pools[n] is not p for n, p in held.pools.items())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {}, "this method has no pool that tenants could share.*lotr"),
        ("lotr", {"rank": 3}, r"holds .*U as \(32, 2\); this tenant wants \(32, 3\)"),
        ("sharelora", {"rank": 2}, "its tenants are of lotr, this one is of sharelora; take another common"),
    ],
)
def test_what_does_not_fit_leaves_the_host_as_it_was(host, method, options, message):
    host.add("a", "lotr", rank=2, common="tasks")
    held = set(host.common("tasks").pools)
    with pytest.raises(cw.CommonweightError, match=message):
        host.add("b", method, common="tasks", **options)
    assert list(host) == ["a"] and set(host.common("tasks").pools) == held


def test_a_deep_copy_has_commons_of_its_own(host):
    """A tenant that joins on the copy reads the copy's pools, and freezing there freezes nothing here."""
    here = host.add("a", "lotr", rank=2, common="tasks")
    twin = copy.deepcopy(host)
    twin.freeze("tasks")
    late = twin.add("b", "lotr", rank=2, common="tasks", seed=1)
    for name, pool in twin.common("tasks").pools.items():
        assert late.pools[name] is twin["a"].pools[name] is pool is not here.pools[name]
        assert here.pools[name].requires_grad and not pool.requires_grad
    assert not host.common("tasks").frozen and twin["a"].common is late.common is twin.common("tasks")
    twin.remove("a")
    twin.remove("b")
    assert host.common("tasks").pools


def test_a_frozen_common_takes_no_new_pools(host):
    host.add("a", "lotr", rank=2, common="tasks", sites="*.q_proj")
    host.freeze("tasks")
    with pytest.raises(cw.CommonweightError, match="is frozen and has no pool"):
        host.add("b", "lotr", rank=2, common="tasks")
    assert list(host) == ["a"]


def test_through_a_store(tmp_path, host):
    """Shared pools are written once, come back as one, frozen; a late tenant costs its own numbers alone."""
    c = cw.Commons(tmp_path / "store")
    a, b = (stir(host.add(n, "lotr", rank=2, common="tasks")) for n in "ab")
    for name in "ab":
        c.publish(host, name)
    other = cw.Host(host.model if host.close() else make("llama")[0])
    for name, was in (("a", a), ("b", b)):
        got = other.load_from(c, name)
        torch.testing.assert_close(got.pools, was.pools, rtol=0, atol=0)
    common = other.common("tasks")
    assert common.frozen and all(other["a"].pools[n] is other["b"].pools[n] for n in common.pools)
    late = stir(other.add("late", "lotr", rank=2, common="tasks"), 3)
    c.publish(other, "late")
    records = {r.name: r for r in c.list()}
    manifest = records["late"].marginal_bytes - late.private_nbytes
    assert 0 < manifest < 8192, "nothing but its own pools and the manifest"
    path = other.save("late", tmp_path / "late.safetensors")
    third = cw.Host(make("llama")[0])
    torch.testing.assert_close(third.load("x", path).pools, late.pools, rtol=0, atol=0)
    assert third.common("tasks").frozen


def test_another_common_of_the_same_name_is_refused(tmp_path, host):
    stir(host.add("a", "lotr", rank=2, common="tasks"))
    path = host.save("a", tmp_path / "a.safetensors")
    other = cw.Host(make("llama")[0])
    stir(other.add("mine", "lotr", rank=2, common="tasks"), 7)
    with pytest.raises(cw.CommonweightError, match="another common 'tasks'"):
        other.load("a", path)
    assert list(other) == ["mine"]


def test_training_after_loading_does_not_pass_for_the_stored_pool(tmp_path, host):
    c = cw.Commons(tmp_path / "store")
    stir(host.add("a", "lotr", rank=2, common="tasks"))
    c.publish(host, "a")
    other = cw.Host(make("llama")[0])
    other.load_from(c, "a")
    common = other.freeze("tasks", False)
    with torch.no_grad():
        for p in common.parameters():
            p.add_(1.0)
    with pytest.raises(cw.CommonweightError, match="another common 'tasks'"):
        other.load_from(c, "a", as_="again")


def test_equal_numbers_do_not_make_pools_the_same(tmp_path, host):
    """Zeros at two sites, or in two commons, have one hash in a store; training one must not train the other."""
    c = cw.Commons(tmp_path / "store")
    for name in "ab":
        c.publish(host, host.add(name, "poly", rank=2, skills=2, common=f"of-{name}").name)
    assert len(set(c.show("a").pools.values()) & set(c.show("b").pools.values())) > 1
    other = cw.Host(make("llama")[0])
    a, b = (other.load_from(c, name) for name in "ab")
    pools = [*a.pools.values(), *b.pools.values()]
    assert len({id(p) for p in pools}) == len(pools)
    other.freeze("of-a", False)
    with torch.no_grad():
        a.pools[next(n for n in a.common.pools if n.endswith("q_proj.B"))].add_(1.0)
    torch.testing.assert_close(b.pools, host["b"].pools, rtol=0, atol=0)
    assert sum(not p.equal(host["a"].pools[n]) for n, p in a.pools.items()) == 1


@pytest.mark.parametrize("to_none", [True, False])
def test_an_optimizer_made_before_freezing_writes_nothing_that_is_frozen(host, to_none):
    a = stir(host.add("a", "lotr", rank=2, common="tasks"))
    optimizer = torch.optim.AdamW(a.parameters(), lr=1e-2, weight_decay=0.5)
    ids = make("llama")[1]["input_ids"]

    def step():
        with host.route("a"):
            host.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=to_none)
    was = {n: p.detach().clone() for n, p in host.freeze("tasks").pools.items()}
    own = next(p for n, p in a.named_parameters()).detach().clone()
    step()
    torch.testing.assert_close(dict(a.common.pools), was, rtol=0, atol=0)
    assert not next(p for n, p in a.named_parameters()).equal(own)
