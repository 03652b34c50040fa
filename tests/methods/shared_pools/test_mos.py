"""MoS against the paper's formula, written out with plain loops."""

import pytest
import torch

import commonweight as cw
from commonweight.methods.registry import families
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"rank": 4, "budget": 2, "private": 1, "shards": 2}
VARIANTS = [{"core": "scale"}, {"core": "matrix"}]


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "mos", rank=4, budget=2, private=1, shards=2, alpha=6.0))
    merged = host.merged("t")
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.up_proj"
        low = {}
        for slot in "AB":
            pool = tenant.pools[f"model.layers.*.mlp.up_proj.{slot}"].detach()
            index = tenant.pools[f"{name}.{slot}.index"].tolist()
            low[slot] = torch.stack([torch.cat([pool[index[2 * k]], pool[index[2 * k + 1]]]) for k in range(4)])
        want = host.weight(name) + 6.0 / 4 * sum(torch.outer(low["B"][k], low["A"][k]) for k in range(4))
        torch.testing.assert_close(merged[f"{name}.weight"], want)


def test_private_shards_have_one_reader_and_pairs_are_dissociated():
    model, _ = make("llama")
    tenant = cw.Host(model).add("t", "mos", rank=4, budget=3, private=1, shards=2)
    a, b = ([set(tenant.pools[f"model.layers.{i}.mlp.up_proj.{s}.index"].tolist()) for i in range(2)] for s in "AB")
    public = 2 * (3 - 1) * 2
    for layers in (a, b):
        assert {i for i in layers[0] if i >= public} == {public, public + 1}
        assert {i for i in layers[1] if i >= public} == {public + 2, public + 3}
        assert all(len(s) == 8 for s in layers), "a subset is drawn without replacement"
    assert [i for i in a[0] if i < public] != [i for i in b[0] if i < public]


def test_eight_times_fewer_parameters_than_lora():
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    assert 8 * cw.plan("mos", sites, rank=16, budget=2).count() == cw.plan("lora", sites, rank=16).count()


def test_a_width_that_shards_do_not_divide():
    with pytest.raises(
        cw.CommonweightError,
        match=r"mos: q_proj: width 30 of A is not a multiple of shards=4; choose shards from \[1, 2",
    ):
        cw.plan("mos", [cw.Site("q_proj", 32, 30)], rank=2)


def test_families_go_by_the_name_without_layer_numbers():
    def names(*sites):
        return {k: [s.name for s in v] for k, v in families(sites).items()}

    layers = [f"layers.{i}.q_proj" for i in (0, 9, 10, 11, 123)]
    assert names(*(cw.Site(n, 8, 8) for n in layers)) == {"layers.*.q_proj": layers}
    assert names(cw.Site("10", 8, 8), cw.Site("h.10.fc1", 8, 8), cw.Site("h.11.fc2", 8, 8)) == {
        "*": ["10"], "h.*.fc1": ["h.10.fc1"], "h.*.fc2": ["h.11.fc2"],
    }  # fmt: skip
    assert names(cw.Site("h.10.q", 8, 8), cw.Site("h.11.q", 8, 4)) == {
        "h.*.q[8x8]": ["h.10.q"], "h.*.q[8x4]": ["h.11.q"],
    }  # fmt: skip
    sites = [cw.Site(f"layers.{i}.q_proj", 8, 8) for i in range(12)]
    assert {k for k in cw.plan("mos", sites, rank=2).pools if not k.endswith("index")} == {
        "layers.*.q_proj.A", "layers.*.q_proj.B",
    }  # fmt: skip


@pytest.mark.parametrize(("core", "own"), [("scale", 4), ("matrix", 16)])
def test_a_late_tenant_on_frozen_shards_trains_and_costs_its_core_alone(core, own, tmp_path):
    model, batch = make("llama")
    host, c = cw.Host(model), cw.Commons(tmp_path / "store")
    first = stir(host.add("first", "mos", **SMALL, core=core, common="tasks"))
    host.freeze("tasks")
    shards = {n: p.clone() for n, p in host.common("tasks").pools.items()}
    late = host.add("late", "mos", **SMALL, core=core, common="tasks", seed=1)
    assert late.count() == own * len(late.sites) and late.private_nbytes == 4 * late.count()
    index = "model.layers.0.mlp.up_proj.A.index"
    assert not torch.equal(late.pools[index], first.pools[index]), "it reads other shards than the first"
    with host.route("late"):
        answer(model, batch).square().mean().backward()
    torch.optim.SGD(late.param_groups(0.1)).step()
    assert all(p.count_nonzero() for p in late.parameters())
    assert all(torch.equal(p, shards[n]) for n, p in host.common("tasks").pools.items())
    for name in ("first", "late"):
        c.publish(host, name)
    record = next(r for r in c.list() if r.name == "late")
    assert record.marginal_bytes < late.private_nbytes + 8192
    assert record.nbytes - record.marginal_bytes > sum(p.nbytes for n, p in shards.items() if "index" not in n)
