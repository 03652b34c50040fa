"""Share against the paper's forward pass."""

import pytest
import torch

import commonweight as cw
from commonweight.commons import Commons, import_peft
from commonweight.methods import share
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"k": 6, "rank": 2}
VARIANTS = [{"ks": (("*v*", 3, 5),)}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    """h = W0 x + (beta eps_beta) (alpha eps_alpha)^T x, beta and alpha with the directions as columns."""
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "share", k=6, rank=2), std=0.5)
    p = {k: tenant.pools[f"{NAME}.{k}"].detach() for k in ("basis_A", "basis_B", "eps_A", "eps_B")}
    alpha, beta = p["basis_A"].T, p["basis_B"].T
    want = host.weight(NAME) + (beta @ p["eps_B"]) @ (alpha @ p["eps_A"]).T
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want)


def test_the_start():
    host = cw.Host(make("llama")[0])
    pools = host.add("t", "share", **SMALL).pools
    for slot in "AB":
        basis = pools[f"{NAME}.basis_{slot}"].detach()
        torch.testing.assert_close(basis @ basis.T, torch.eye(6))
    assert pools[f"{NAME}.eps_A"].any() and not pools[f"{NAME}.eps_B"].any()


def test_counts():
    """T5 or BERT in width 768: a late tenant at p = 1 has 2 k numbers a site, where LoRA of rank 8 has 12,288."""
    sites = [cw.Site(f"layers.{i}.{n}", 768, 768) for i in range(12) for n in ("query", "value")]
    plan = cw.plan("share", sites, k=32, rank=1)
    assert plan.count() == 24 * (32 * 1536 + 64)
    late = sum(p.numel for p in plan.pools.values() if p.scope == "tenant")
    assert late == 24 * 64 and cw.plan("lora", sites, rank=8).count() == 192 * late


def test_directions_are_at_most_the_width_and_may_differ_by_site():
    plan = cw.plan("share", [cw.Site("q", 16, 8), cw.Site("v", 16, 8)], k=12, rank=4, ks=(("v", 3, 5),))
    shapes = {k: p.shape for k, p in plan.pools.items()}
    assert shapes["q.basis_A"] == (8, 8) and shapes["q.basis_B"] == (12, 16) and shapes["q.eps_B"] == (12, 4)
    assert shapes["v.basis_A"] == (3, 8) and shapes["v.basis_B"] == (5, 16) and shapes["v.eps_B"] == (5, 3)


def test_errors():
    with pytest.raises(cw.CommonweightError, match=r"Share: ks gives 'v' the numbers \(3, 0\); they must be >= 1"):
        cw.plan("share", [cw.Site("q", 16, 8)], ks=(("v", 3, 0),))


def test_a_temporary_tenant_starts_from_the_first_directions_and_leaves_the_common_alone():
    model, batch = make("llama")
    host = cw.Host(model)
    old = stir(host.add("old", "share", k=9, rank=3, ks=(("*mlp*", 8, 3),), common="all", labels=None), std=0.5)
    before = {n: p.detach().clone() for n, p in old.pools.items()}
    new = share.temporary(host, "old", "new")
    assert new.common is None and {s.name for s in new.sites} == {s.name for s in old.sites}
    for s in new.sites:
        k_a, k_b = (2, 1) if "mlp" in s.name else (2, 2)
        assert torch.equal(new.pools[f"{s.name}.basis_A"], before[f"{s.name}.basis_A"][:k_a])
        assert torch.equal(new.pools[f"{s.name}.basis_B"], before[f"{s.name}.basis_B"][:k_b])
        assert new.pools[f"{s.name}.eps_A"].shape == (k_a, min(3, k_a, k_b))
    with torch.no_grad():
        with host.route(None):
            base = answer(model, batch)
        with host.route("new"):
            assert torch.equal(answer(model, batch), base)
    assert all(p.requires_grad for p in new.pools.values())
    stir(new, 1)
    assert all(torch.equal(p, before[n]) for n, p in old.pools.items())
    wide = share.temporary(host, "old", "wide", 5, rank=2)
    assert wide.pools[f"{NAME}.basis_A"].shape[0] == 5 and wide.pools[f"{NAME}.basis_B"].shape[0] == 3


def test_a_temporary_tenant_grows_the_common_that_it_joins(tmp_path):
    """The third phase: old and new are re-expressed in directions found in both."""
    host, store = cw.Host(make("llama")[0]), Commons(tmp_path / "store")
    for i in range(2):
        stir(host.add(f"t{i}", "lora", rank=2), i)
        host.export_peft(f"t{i}", tmp_path / f"t{i}")
        host.remove(f"t{i}")
    import_peft(store, host, [tmp_path / "t0", tmp_path / "t1"], keep=1.0)
    old = host.load_from(store, "t0")
    k = len(old.pools[f"{NAME}.basis_A"])
    want = {"t0": host.merged("t0")}
    stir(share.temporary(host, "t0", "t2", 2), 2, std=0.5)
    host.export_peft("t2", tmp_path / "t2")
    want["t2"] = host.merged("t2")
    for name in list(host):
        host.remove(name)
    import_peft(store, host, [tmp_path / "t2"], keep=1.0)
    for name in want:
        grown = host.load_from(store, name)
        assert k < len(grown.pools[f"{NAME}.basis_A"]) <= k + 2
        for n, w in want[name].items():
            torch.testing.assert_close(host.merged(name)[n], w, rtol=1e-4, atol=1e-5)


def test_what_temporary_refuses():
    host = cw.Host(make("llama")[0])
    host.add("s", "share", **SMALL)
    host.add("l", "lora")
    for call, message in (
        (("l", "x"), "share: l is a tenant of lora; wanted one of 'share'"),
        (("s", "x", 0), "share: directions=0; wanted at least 1, or none for a quarter"),
        (("s", "s"), "s"),
    ):
        with pytest.raises(cw.CommonweightError, match=message):
            share.temporary(host, *call)
    with pytest.raises(cw.CommonweightError, match="rank"):
        share.temporary(host, "s", "x", rank=0)
    assert list(host) == ["s", "l"]
