"""Several tenants trained in mixed batches, and one that comes late."""

import json
import os
from pathlib import Path

import pytest
import torch

import commonweight as cw
from commonweight.adapt import Data, adapt, adapt_together, evaluate, open_host
from tests import apart
from tests.adapt import tiny

ROOT = Path(__file__).parents[2]
LOTR = {"method": "lotr", "options": {"rank": 4}, "common": "tasks"}
FAST = {"lr": 1e-2, "epochs": 6, "batch_size": 8}
THREE, TWO = ("law", "sport", "food"), ("good", "bad")


@pytest.fixture
def host(bert):
    return open_host(bert, dtype="float32")


def data(n=60, dev=True, seed=0):
    """Two tasks of other labels and other widths."""
    return {
        "topic": Data(rows=tiny.rows(n, seed), dev=tiny.rows(20, 8) if dev else None),
        "mood": Data(rows=tiny.rows(n // 2, seed + 1, TWO), dev=tiny.rows(20, 9, TWO) if dev else None),
    }


def bits(tenant):
    return {n: p.detach().clone() for n, p in tenant.pools.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_they_learn_together(host):
    seen = []
    got = adapt_together(host, data(), **LOTR, **FAST, progress=seen.append)
    assert list(got) == list(host) == ["topic", "mood"]
    a, b = (r.tenant for r in got.values())
    assert (a.labels, b.labels) == (("food", "law", "sport"), ("bad", "good"))
    for name, pool in a.plan.pools.items():
        assert (pool.scope == "shared") == (a.pools[name] is b.pools.get(name)), name
    assert evaluate(host, "topic", tiny.rows(60, 5))["accuracy"] > 0.6
    assert evaluate(host, "mood", tiny.rows(60, 6, TWO))["accuracy"] > 0.7
    assert got["topic"].steps == len(seen) == 72 and seen[-1].tenant == "topic, mood"
    scored = [p.dev for p in seen if p.dev]
    best = max(scored, key=lambda d: d["accuracy"])
    assert best["accuracy"] == pytest.approx((best["topic/accuracy"] + best["mood/accuracy"]) / 2)
    for name, result in got.items():  # the kept state is that of the best mean, for all tenants alike
        assert result.metrics["accuracy"] == best[f"{name}/accuracy"]
        assert evaluate(host, name, data()[name].dev)["accuracy"] == result.metrics["accuracy"]


def test_every_tenant_and_the_common_are_trained(host):
    got = adapt_together(host, data(dev=False), **LOTR, epochs=1, batch_size=8)
    fresh = open_host(host.model.config._name_or_path, dtype="float32")
    for name, result in got.items():
        new = fresh.add(name, "lotr", rank=4, common="tasks", labels=result.tenant.labels, seed=result.tenant.plan.seed)
        still = [n for n in new.pools if torch.equal(new.pools[n], result.tenant.pools[n])]
        assert still == [], "a pool that no gradient reached"


def test_together_is_the_sum_of_its_tenants(host):
    """One step on a mixed batch: the shared pools' gradient is the mean over all rows, whoever reads them."""
    got = adapt_together(host, data(dev=False), **LOTR, epochs=1, batch_size=8)
    a, b = (r.tenant for r in got.values())
    module = host.module(["topic", "mood"])
    ids = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3]])
    labels = torch.tensor([0, 2, 1])
    module(input_ids=ids, labels=labels, tenants=torch.tensor([a.number, a.number, b.number])).loss.backward()
    mixed = {n: p.grad.clone() for n, p in host.common("tasks").pools.items()}
    module.zero_grad()
    for name, rows in (("topic", [0, 1]), ("mood", [2])):
        with host.route(name):
            (host.model(input_ids=ids[rows], labels=labels[rows]).loss * len(rows) / 3).backward()
    for n, p in host.common("tasks").pools.items():
        torch.testing.assert_close(p.grad, mixed[n], rtol=1e-4, atol=1e-6)


def test_the_same_run_has_the_same_bits(host, bert):
    first = {n: bits(r.tenant) for n, r in adapt_together(host, data(), **LOTR, epochs=1).items()}
    again = adapt_together(open_host(bert, dtype="float32"), data(), **LOTR, epochs=1)
    assert all(same(first[n], bits(r.tenant)) for n, r in again.items())
    other = adapt_together(open_host(bert, dtype="float32"), data(), **LOTR, epochs=1, temperature=1000)
    assert not same(first["mood"], bits(other["mood"].tenant))


def test_one_tenant_of_a_mapping_is_plain_adapt(host):
    rows = tiny.rows(30)
    a = adapt_together(host, {"a": Data(rows=rows)}, method="lora", epochs=1)["a"].tenant
    assert same(bits(a), bits(adapt(host, "b", rows, method="lora", epochs=1).tenant))


def stop_at(step):
    def progress(p):
        if p.step == step:
            raise KeyboardInterrupt

    return progress


def test_resumed_to_the_same_bits(bert, tmp_path):
    whole = adapt_together(open_host(bert, dtype="float32"), data(), **LOTR, epochs=2, batch_size=8)
    run = {**LOTR, "epochs": 2, "batch_size": 8, "checkpoint": tmp_path / "c", "checkpoint_every": 5}
    host = open_host(bert, dtype="float32")
    with pytest.raises(KeyboardInterrupt):
        adapt_together(host, data(), **run, progress=stop_at(18))
    assert list(host) == []
    with pytest.raises(cw.CommonweightError, match=r"other settings \(mood: train rows: then .* now .*\)"):
        adapt_together(host, {**data(), "mood": data(40)["mood"]}, **run, resume=True)
    with pytest.raises(cw.CommonweightError, match=r"temperature: then 1\.0, now 2\.0"):
        adapt_together(host, data(), **run, resume=True, temperature=2)
    seen = []
    again = adapt_together(host, data(), **run, resume=True, progress=lambda p: seen.append(p.step))
    assert seen[0] == 16
    for name, result in whole.items():
        assert same(bits(result.tenant), bits(again[name].tenant)) and result.metrics == again[name].metrics
        assert result.curve == again[name].curve


@pytest.mark.parametrize("tenants", [{}, {"topic": Data(rows=[])}])
def test_without_rows(host, tenants):
    with pytest.raises(cw.CommonweightError, match=r"no tenants to train|no rows to train on"):
        adapt_together(host, tenants, **LOTR)


WRONG = {
    "whose rows": ({"mood": Data(rows=[{"text": "w1", "label": ""}] * 3)}, {}, "mood: training rows: row 1: 'label'"),
    "whose dev rows": (
        {"mood": Data(rows=tiny.rows(9), dev=tiny.rows(3, labels=TWO), sources=("m.tsv", "d.tsv"))}, {},
        "mood: d.tsv: row 1: the label",
    ),
    "whose fraction": ({"mood": Data(rows=tiny.rows(9), dev=2.0)}, {}, "mood: dev=2.0: wanted a fraction"),
    "a name that is taken": ({}, {"taken": True}, "the tenant name 'topic' is taken"),
    "nothing to share": ({}, {"method": "lora", "options": {}}, "no pool that tenants could share"),
    "temperature": ({}, {"temperature": 0.5}, "temperature is 0.5; it must be >= 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_leaves_the_host_as_it_was(host, case):
    tenants, more, message = WRONG[case]
    if more.pop("taken", False):
        host.add("topic", "lora")
    before = list(host)
    with pytest.raises(cw.CommonweightError, match=message):
        adapt_together(host, {**data(dev=False), **tenants}, **{**LOTR, "epochs": 1, **more})
    assert list(host) == before


def test_a_run_that_turns_to_nan(host, monkeypatch):
    from commonweight.adapt import Classifier

    forward, calls = Classifier.forward, []

    def breaks(self, *args, **inputs):
        calls.extend([1] if torch.is_grad_enabled() else [])  # a look at the model runs without
        out = forward(self, *args, **inputs)
        if len(calls) == 2 and torch.is_grad_enabled():
            out.loss = out.loss * float("nan")
        return out

    monkeypatch.setattr(Classifier, "forward", breaks)
    with pytest.raises(cw.CommonweightError, match=r"step 2: the loss is nan, at the learning rate 0\.002; lower it"):
        adapt_together(host, data(dev=False), **LOTR, epochs=1)
    assert list(host) == []


def test_batches_of_pairs_are_of_one_tenant(host, monkeypatch):
    from commonweight.adapt import Classifier

    forward, seen = Classifier.forward, []
    tenants = {n: Data(rows=tiny.pairs(20, s)) for n, s in (("a", 0), ("b", 1))}

    def watched(self, *args, **inputs):
        if torch.is_grad_enabled():
            seen.append(host.base.current.route.groups)
        return forward(self, *args, **inputs)

    monkeypatch.setattr(Classifier, "forward", watched)
    adapt_together(host, tenants, task="embed", **LOTR, epochs=1, batch_size=8)
    assert [len(groups) for groups in seen] == [1] * 5 and {len(g[0][1]) for g in seen} == {16}


def test_language_models(llama):
    host = open_host(llama, "lm", dtype="float32")
    rows = [[{"text": f"w{i} w2 w3 w4 w5 w6"}] * 16 for i in (1, 9)]
    before = evaluate(host, None, rows[0], "lm")["loss"]
    got = adapt_together(
        host, {"a": Data(rows=rows[0]), "b": Data(rows=rows[1], dev=rows[1])}, task="lm", **LOTR, **FAST
    )
    assert got["a"].metrics == {} and got["b"].metrics["loss"] < before
    assert evaluate(host, "a", rows[0], "lm")["loss"] < 0.95 * before


def test_a_late_tenant_leaves_the_common_as_it_is(host, tmp_path):
    adapt_together(host, data(dev=False), **LOTR, epochs=1)
    store = cw.Commons(tmp_path / "store")
    for name in host:
        store.publish(host, name)
    files = {p: p.read_bytes() for p in store.folder.glob("pools/*/*")}
    before = {n: t.detach().clone() for n, t in host.common("tasks").pools.items()}
    frozen = host.freeze("tasks")
    late = adapt(host, "late", tiny.rows(60, 3), dev_rows=tiny.rows(20, 4), **LOTR, **FAST)
    assert late.tenant.count() == late.tenant.private_nbytes // 4
    assert late.metrics["accuracy"] > 0.5
    assert all(torch.equal(t, before[n]) and t.grad is None for n, t in frozen.pools.items())
    store.publish(host, "late")
    now = {p: p.read_bytes() for p in store.folder.glob("pools/*/*")}
    assert files.items() < now.items(), "what was there stays, bit by bit"
    assert sum(len(b) for p, b in now.items() if p not in files) < late.tenant.private_nbytes + 300 * (
        len(now) - len(files)
    )
    assert "common" in late.settings and late.settings["common"].startswith("tasks ")


def test_a_run_that_ends_early_leaves_a_common_that_is_not_frozen_as_it_was(host):
    adapt_together(host, data(12, False), **LOTR, epochs=1)
    before = bits(host["topic"])
    with pytest.raises(KeyboardInterrupt):
        adapt(host, "third", tiny.rows(30, 3), **LOTR, **FAST, progress=stop_at(4))
    assert list(host) == ["topic", "mood"] and same(bits(host["topic"]), before)
    adapt(host, "third", tiny.rows(30, 3), **LOTR, **{**FAST, "epochs": 1})
    assert not same(bits(host["topic"]), before), "all that read it write it"


def test_a_late_run_is_not_resumed_on_another_common(bert, tmp_path):
    def start(seed):
        host = open_host(bert, dtype="float32")
        adapt_together(host, data(12, False, seed), **LOTR, epochs=2, batch_size=8)
        host.freeze("tasks")
        return host

    late = {**LOTR, "epochs": 1, "batch_size": 8, "checkpoint": tmp_path / "c", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        adapt(start(0), "late", tiny.rows(30, 3), **late, progress=stop_at(2))
    with pytest.raises(cw.CommonweightError, match=r'common: then "tasks .*", now "tasks .*"'):
        adapt(start(5), "late", tiny.rows(30, 3), **late, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_and_resumed(bert, tmp_path):
    """A killed process, not an interrupted one: what lies on the disk is all that is left."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    done = apart.run("-W", "ignore", "-m", "tests.adapt.killed_together", tmp_path, bert, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    whole, killed, resumed = json.loads(done.stdout)
    assert whole["signal"] == resumed["signal"] == 0 and killed["signal"] == 9, done.stderr
    assert killed["left"] == ["c"] and resumed["digest"] == whole["digest"]


def test_the_module_of_several_tenants(host):
    a = host.add("a.x", "lotr", rank=2, common="tasks")
    b = host.add("b", "lotr", rank=2, common="tasks")
    module = host.module(["a.x", "b"])
    trained = {id(p) for t in (a, b) for p in t.parameters()}
    assert {id(p) for p in module.parameters() if p.requires_grad} == trained
    shared = [n for n, p in a.plan.pools.items() if p.scope == "shared"]
    keys = set(module.state_dict())
    assert len(keys) == len(trained) and {k.split(":")[0] for k in keys} == {
        "pools.common tasks", "pools.a/x", "pools.b"
    }  # fmt: skip
    assert sum(k.startswith("pools.common") for k in keys) == len(shared)
    with pytest.raises(cw.CommonweightError, match="a batch needs `tenants`, a LongTensor"):
        module(input_ids=torch.tensor([[2, 3]]))
    with pytest.raises(cw.CommonweightError, match="wanted a tenant's name, or several"):
        host.module([])
    state = {k: torch.ones_like(v) for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    assert all((p == 1).all() for t in (a, b) for p in t.parameters())
