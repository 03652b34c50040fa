"""Tenants into a tenant: exact in pool space where pools add up, else in weight space; read without the base."""

from __future__ import annotations

import pytest
import torch

import commonweight as cw
from commonweight.cli import main
from commonweight.merge.sources.opened import open_tenant
from tests.laws.subjects import small, stir
from tests.models import make

W = [0.75, 0.25]
LINEAR = ["lora-xs", "svf", "ia3", "lori", "lntuning", "intrinsic"]
CROSSED = ["lora", "vera", "vb-lora", "lotr"]


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return cw.Host(make("llama")[0])


def two(host, method, **options):
    for i, name in enumerate("ab"):
        stir(host.add(name, method, **{**small(method), **options}), seed=i)
        host.save(name, f"{name}.safetensors")
    return ["a.safetensors", "b.safetensors"]


def changes(host, name):
    base = {k: v for k, v in host.model.state_dict().items()}
    return {k: v - base[k] for k, v in host.merged(name).items()}


def wanted(host, weights=W):
    a, b = changes(host, "a"), changes(host, "b")
    return {k: weights[0] * a[k] + weights[1] * b[k] for k in a}


@pytest.mark.parametrize("method", LINEAR + CROSSED)
def test_linear_is_the_weighted_sum_of_the_changes(method, host):
    merged = cw.merge.tenants(two(host, method), weights=W)
    assert merged.space == ("pools" if method in LINEAR else "weights")
    assert max(merged.error.values(), default=0) < 1e-5
    merged.save("c.safetensors")
    made = host.load("c", "c.safetensors")
    assert made.method.name == (method if method in LINEAR else "lora")
    torch.testing.assert_close(changes(host, "c"), wanted(host), atol=2e-5, rtol=1e-4)


def test_pools_of_lora_can_be_averaged_and_the_cross_terms_are_stated(host):
    merged = cw.merge.tenants(two(host, "lora"), space="pools")
    a, b = host["a"], host["b"]
    for n, t in merged.pools.items():
        torch.testing.assert_close(t, (a.pools[n] + b.pools[n]).detach() / 2)
    merged.save("c.safetensors")
    host.load("c", "c.safetensors")
    ours, sums = changes(host, "c"), wanted(host, [0.5, 0.5])
    for site, error in merged.error.items():
        there = (ours[f"{site}.weight"] - sums[f"{site}.weight"]).norm() / sums[f"{site}.weight"].norm()
        assert error == pytest.approx(there.item(), rel=1e-2) and error > 0.1


def test_another_file_is_replaced_only_if_asked(host):
    """Also that of a tenant that was saved, or taken out of a store."""
    files, store = two(host, "lora"), cw.Commons("store")
    merged = cw.merge.tenants(files, space="pools")
    for name in ("a", "b"):
        store.publish(host, name)
    writers = [
        lambda **how: merged.save("x.safetensors", **how),
        lambda **how: host.save("a", "x.safetensors", **how),
        lambda **how: store.export("b", "x.safetensors", **how),
    ]
    for write in writers:
        path = write()
        before = path.read_bytes()
        assert write(overwrite=False).read_bytes() == before
        for other in writers:
            if other is not write:
                with pytest.raises(cw.CommonweightError, match=r"x\.safetensors already exists; .*overwrite=True"):
                    other(overwrite=False)
        assert path.read_bytes() == before


def test_other_methods_merge_pools_from_where_they_started(host):
    files = two(host, "lora-xs")
    merged = cw.merge.tenants(files, method="ties", density=0.5)
    names = [n for n, p in host["a"].plan.pools.items() if p.train]
    states = [{n: host[t].pools[n].detach() for n in names} for t in "ab"]
    start = {n: t.detach() for n, t in host.add("new", "lora-xs", **small("lora-xs")).named_parameters()}
    expected = cw.merge.ties(states, start, density=0.5)
    torch.testing.assert_close({n: merged.pools[n] for n in names}, expected)
    doubled = cw.merge.tenants(files, method="task_arithmetic", weights=1.0)
    torch.testing.assert_close(
        doubled.pools[names[0]], start[names[0]] + sum(s[names[0]] - start[names[0]] for s in states)
    )


def test_other_plans_meet_in_weight_space(host):
    two(host, "lora")
    stir(host.add("wide", "vera", seed=3, **small("vera")), seed=5)
    host.save("wide", "wide.safetensors")
    files = ["a.safetensors", "wide.safetensors"]
    with pytest.raises(cw.CommonweightError, match=r"the plans of a.safetensors and wide.safetensors differ \(method"):
        cw.merge.tenants(files, space="pools")
    merged = cw.merge.tenants(files, weights=[1.0, 1.0], normalize=False)
    assert merged.space == "weights" and "differ" in merged.why
    merged.save("c.safetensors")
    host.load("c", "c.safetensors")
    a, wide = changes(host, "a"), changes(host, "wide")
    torch.testing.assert_close(changes(host, "c"), {k: a[k] + wide[k] for k in a}, atol=2e-5, rtol=1e-4)
    short = cw.merge.tenants(files, method="ties", density=0.5, rank=3)
    assert {t.shape[0] for n, t in short.pools.items() if n.endswith(".A")} == {3}
    assert all(0 < e < 1 for e in short.error.values())


def test_in_weight_space_all_sites_are_one_model(host):
    """TIES' threshold and LiNeS' depth are those of the same merge of whole models."""
    files = two(host, "lora")
    with torch.no_grad():
        for t in "ab":
            for n, p in host[t].named_parameters():
                p.mul_(3 if ".1." in n else 1)  # the second block changes more than the first
            host.save(t, f"{t}.safetensors")
    zero = {n: torch.zeros_like(t) for n, t in changes(host, "a").items()}
    for method, options in [("ties", {"density": 0.3}), ("lines", {})]:
        whole = cw.merge.merge(method, [changes(host, t) for t in "ab"], zero, **options)
        cw.merge.tenants(files, method=method, rank=64, space="weights", **options).save(f"{method}.safetensors")
        host.load(method, f"{method}.safetensors")
        torch.testing.assert_close(changes(host, method), whole, atol=3e-5, rtol=1e-3)


def test_heads_are_averaged_with_their_labels(tmp_path):
    bert = cw.Host(cw.Classifier(make("bert")[0]))
    for i, name in enumerate("ab"):
        stir(bert.add(name, "lora", rank=2, seed=i, labels=["no", "yes"]), seed=i)
        bert.save(name, tmp_path / f"{name}.safetensors")
    merged = cw.merge.tenants([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    made = bert.load("c", merged.save(tmp_path / "c.safetensors"))
    assert merged.space == "weights" and made.labels == ("no", "yes")
    heads = [n for n in made.pools if n.endswith(".W")]
    assert heads
    for n in heads:
        torch.testing.assert_close(made.pools[n], (bert["a"].pools[n] + bert["b"].pools[n]) / 2)


def test_a_store_holds_inputs_too(host):
    two(host, "lora")
    store = cw.Commons("shop")
    store.publish(host, "b")
    one = cw.merge.tenants(["a.safetensors", "shop:b"])
    other = cw.merge.tenants(["a.safetensors", "b.safetensors"])
    torch.testing.assert_close(dict(one.pools), dict(other.pools))


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "bert"])
def test_a_plan_is_made_anew_from_its_file(kind, tmp_path):
    there = cw.Host(make(kind)[0])
    stir(there.add("a", "lora", rank=2))
    there.save("a", tmp_path / "a.safetensors")
    found = open_tenant(tmp_path / "a.safetensors")
    assert found.plan == there["a"].plan
    assert [s._replace(bias=True) for s in found.sites] == [s._replace(bias=True) for s in there["a"].sites]


def test_what_is_refused(host):
    files = two(host, "lora")
    with pytest.raises(cw.CommonweightError, match="1 given; give at least two"):
        cw.merge.tenants(files[:1])
    with pytest.raises(cw.CommonweightError, match="needs statistics data"):
        cw.merge.tenants(files, method="fisher")
    with pytest.raises(cw.CommonweightError, match="space is 'pool'"):
        cw.merge.tenants(files, space="pool")
    with pytest.raises(cw.CommonweightError, match="rank goes with space='weights'"):
        cw.merge.tenants(files, space="pools", rank=2)
    for method, what in [("loreft", "makes no change of weights"), ("oft", "known with its base alone")]:
        [host.remove(n) for n in "ab"]
        two(host, method)
        with pytest.raises(cw.CommonweightError, match=what):
            cw.merge.tenants(files)
    stranger = cw.Host(make("llama")[0])
    with torch.no_grad():
        next(p for p in stranger.model.parameters()).add_(1)
    stranger.add("s", "lora")
    stranger.save("s", "s.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"s.safetensors: made for another base than a.safetensors"):
        cw.merge.tenants([files[0], "s.safetensors"])
    torch.save({}, "x.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"x\.safetensors"):
        cw.merge.tenants([files[0], "x.safetensors"])


def test_the_command(host, capsys):
    two(host, "lora")
    args = ["merge", "--tenants", "a.safetensors", "b.safetensors"]
    with pytest.raises(SystemExit) as done:
        main([*args, "--method", "linear", "-w", "1", "-w", "3", "--out", "c.safetensors"])
    assert not done.value.code
    said = capsys.readouterr()
    assert "notice: merged in weight space, into LoRA" in said.err and "c.safetensors: lora" in said.out
    host.load("c", "c.safetensors")
    torch.testing.assert_close(changes(host, "c"), wanted(host, [0.25, 0.75]), atol=2e-5, rtol=1e-4)
    for more, what in [(["--out", "c.safetensors"], "already exists"), (["--out", "d", "--plan"], "are for models")]:
        with pytest.raises(SystemExit) as done:
            main([*args, *more])
        assert done.value.code == 2 and what in capsys.readouterr().err
