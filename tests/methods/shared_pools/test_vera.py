"""VeRA against the paper's equation, written out."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"stored": True}, {"d_initial": 0.2}]


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "vera", rank=6))
    A, B = tenant.pools["vera.A"], tenant.pools["vera.B"]
    assert A.shape == (6, 64) and B.shape == (64, 6)
    for name, out, inp in (("mlp.up_proj", 64, 32), ("mlp.down_proj", 32, 64), ("self_attn.k_proj", 16, 32)):
        name = f"model.layers.1.{name}"
        d, b = (tenant.pools[f"{name}.{k}"].detach() for k in "db")
        want = host.weight(name) + torch.diag(b) @ B[:out] @ torch.diag(d) @ A[:, :inp]
        torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want)


def test_start_and_stored_bytes():
    model, _ = make("llama")
    tenant = cw.Host(model).add("t", "vera", rank=6, d_initial=0.2)
    for name, p in tenant.named_parameters():
        assert torch.equal(p.detach(), torch.full_like(p, 0.2 if name.endswith(".d") else 0.0))
    assert tenant.nbytes == 4 * tenant.count()
    for slot, fan in (("A", 64), ("B", 6)):
        frozen = tenant.pools[f"vera.{slot}"]
        assert frozen.abs().max() <= (6 / fan) ** 0.5 and abs(frozen.std() * (fan / 2) ** 0.5 - 1) < 0.1


def test_tenants_of_a_seed_share_the_frozen_pair():
    model, _ = make("llama")
    host = cw.Host(model)
    one, two = host.add("one", "vera", rank=6), host.add("two", "vera", rank=6)
    assert one.pools["vera.A"] is two.pools["vera.A"] and one.pools["vera.B"] is two.pools["vera.B"]


def test_count_is_the_papers():
    # Table 1: RoBERTa-base, query and value of 12 layers, rank 1: 12 * 2 * (768 + 1)
    sites = [cw.Site(f"layers.{i}.{n}", 768, 768) for i in range(12) for n in ("query", "value")]
    assert cw.plan("vera", sites, rank=1).count() == 18456
