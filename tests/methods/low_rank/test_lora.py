"""LoRA against its formula, written out."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"ranks": (("*.up_proj", 2),), "alphas": (("*.q_proj", 3.0),), "rslora": True, "bias": True}]


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lora", rank=4, alpha=6.0))
    merged = host.merged("t")
    name = "model.layers.1.mlp.up_proj"
    A, B = tenant.pools[f"{name}.A"], tenant.pools[f"{name}.B"]
    torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + 1.5 * B.detach() @ A.detach())


def test_rslora_scale():
    sites = [cw.Site("q", 8, 8)]
    assert cw.plan("lora", sites, rank=4, alpha=6.0, rslora=True).uses[0].bind.scale == 3.0


def test_a_pattern_may_be_the_name_of_a_fused_layers_rows():
    sites = [cw.Site(f"h.{i}.c_attn[{k}]", 8, 8, rows=(8 * k, 8 * k + 8)) for i in range(2) for k in range(3)]
    plan = cw.plan("lora", sites, rank=2, ranks=(("h.1.c_attn[1]", 5), ("h.0.*", 3)), alphas=(("h.1.c_attn[1]", 1.0),))
    assert {u.site: plan.pools[f"{u.site}.A"].shape[0] for u in plan.uses} == {
        s.name: 5 if s.name == "h.1.c_attn[1]" else 3 if s.name.startswith("h.0") else 2 for s in sites
    }
    assert [u.bind.scale for u in plan.uses] == [2.0] * 4 + [0.2, 2.0]


def test_bias_is_a_shift_where_there_is_one():
    sites = [cw.Site("q", 8, 6), cw.Site("v", 8, 6, bias=False)]
    plan = cw.plan("lora", sites, rank=2, bias=True)
    assert plan.count() == 2 * 2 * (8 + 6) + 8 and plan.pools["q.b"].shape == (8,)
    host = cw.Host(make("bert")[0])
    tenant, name = stir(host.add("t", "lora", rank=2, bias=True)), "encoder.layer.0.attention.self.query"
    want = host.model.get_submodule(name).bias + tenant.pools[f"{name}.b"].detach()
    torch.testing.assert_close(host.merged("t")[f"{name}.bias"], want)


def test_count_is_the_papers():
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    assert cw.plan("lora", sites, rank=8).count() == 32 * 8 * (4096 + 4096)
