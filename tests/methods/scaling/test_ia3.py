"""(IA)3 against the paper's formula, written out."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {}


def test_formula():
    host = cw.Host(make("bert")[0])
    tenant = stir(host.add("t", "ia3"))
    merged = host.merged("t")
    layer = "encoder.layer.1"
    key, down = f"{layer}.attention.self.key", f"{layer}.output.dense"
    l = tenant.pools[f"{key}.l"].detach()
    torch.testing.assert_close(merged[f"{key}.weight"], torch.diag(l) @ host.weight(key))
    torch.testing.assert_close(merged[f"{key}.bias"], l * host.model.get_submodule(key).bias)
    l = tenant.pools[f"{down}.l"].detach()
    torch.testing.assert_close(merged[f"{down}.weight"], host.weight(down) @ torch.diag(l))
    assert f"{down}.bias" not in merged


def test_the_default_sites_are_the_papers():
    uses = cw.Host(make("llama")[0]).add("t", "ia3").plan.uses
    assert [u.site.split(".", 3)[3] for u in uses[:3]] == ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]
    assert len(uses) == 6
    uses = cw.Host(make("gpt2")[0]).add("t", "ia3").plan.uses
    assert [u.site.split(".", 3)[3] for u in uses[:2]] == ["attn.c_attn", "mlp.c_proj"], "a fused projection as a whole"


def test_count_is_the_papers():
    sites = [cw.Site("k", 1024, 4096, role="key"), cw.Site("v", 1024, 4096, role="value")]
    assert cw.plan("ia3", [*sites, cw.Site("down", 4096, 11008, role="down")]).count() == 1024 + 1024 + 11008


def test_inputs_say_whose_input_is_scaled():
    sites = [cw.Site("a.q", 8, 6, role="query"), cw.Site("a.down", 6, 10, role="down")]
    assert [p.shape for p in cw.plan("ia3", sites).pools.values()] == [(8,), (10,)]
    assert [p.shape for p in cw.plan("ia3", sites, inputs="*.k | *.q").pools.values()] == [(6,), (6,)]


def test_a_small_factor_survives_bfloat16():
    model, _ = make("llama")
    host = cw.Host(model.bfloat16())
    tenant = host.add("t", "ia3")
    with torch.no_grad():
        for p in tenant.parameters():
            p.fill_(1.003)
        x, y = torch.ones(4, 32, dtype=torch.bfloat16), 200 * torch.ones(4, 16, dtype=torch.bfloat16)
        for use in tenant.plan.uses[:2]:
            out = use.bind.output(x, y, None, l=tenant.pools[f"{use.site}.l"])
            assert out.dtype == torch.bfloat16 and (out > y).all()
