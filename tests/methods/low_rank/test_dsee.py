"""DSEE: places of a sparse part that is known, and the weight."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled
from commonweight.core import Rng
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.dsee import decomposed
from commonweight.methods.low_rank.dsee_stage import SecondStage, above
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"rank": 2, "entries": 6, "rounds": 3}
VARIANTS = [{"prune": 0.2}]


def test_entries_beside_a_low_rank_are_found():
    g = torch.Generator().manual_seed(0)
    low = torch.randn(30, 2, generator=g).double() @ torch.randn(2, 24, generator=g).double()
    sparse = torch.zeros(720).double()
    at = torch.randperm(720, generator=g)[:8]
    sparse[at] = 40.0 * torch.randn(8, generator=g).double().sign()
    s = decomposed(low + sparse.view(30, 24), Rng(1, "x"), rounds=2, step=1, least=0.01)
    assert {*s.abs().flatten().topk(8).indices.tolist()} == {*at.tolist()}


def test_what_is_small_is_zero_and_the_rank_ends_below_the_weight_s():
    w = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).double()
    s = decomposed(w, Rng(1, "x"), rounds=100, step=5, least=0.3)
    assert s.any() and s[s != 0].abs().min() >= 0.3
    assert torch.linalg.matrix_rank(w - decomposed(w, Rng(1, "x"), 100, 5, 0.0)) == 6


def test_formula(tmp_path):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "dsee", rank=2, entries=5, alpha=6))
    name = "model.layers.0.self_attn.v_proj"
    A, B, S, at = (tenant.pools[f"{name}.{k}"].detach() for k in ("A", "B", "S", "places"))
    want = (host.weight(name) + 3 * B @ A).flatten()
    want[at.long()] += 3 * S
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"].flatten(), want, rtol=1e-4, atol=1e-5)
    assert at.unique().tolist() == at.tolist() and len(at) == 5


def run(model="bert", steps=4, **options):
    """A few steps of Adam by hand, the schedule at work."""
    net, batch = make(model)
    host = cw.Host(net)
    tenant = stir(host.add("t", "dsee", rank=2, entries=5, rounds=2, **options), std=0.2)
    optimizer = torch.optim.Adam([{"params": [p]} for p in tenant.parameters()], 1e-3)
    schedule = Scheduled(tenant, optimizer, None, steps)
    schedule.begin()
    before = []
    for i in range(1, steps + 1):
        optimizer.zero_grad()
        with host.route("t"):
            answer(net, batch).square().mean().backward()
        optimizer.step()
        if i == steps // 2:
            before = {n: p.detach().clone() for n, p in tenant.pools.items()}
        schedule.after(i)
    return host, tenant, batch, before


def parts(host, pools, site, scale):
    low = pools[f"{site}.B"] @ pools[f"{site}.A"]
    S = torch.zeros_like(low).flatten()
    S[pools[f"{site}.places"].long()] = pools[f"{site}.S"]
    return host.weight(site), low, S.view_as(low), scale


SIZES = {
    "update": lambda w, low, S, s: (s * (low + S)).abs(),
    "weight": lambda w, low, S, s: w.abs(),
    "both": lambda w, low, S, s: (w + s * (low + S)).abs(),
    "official": lambda w, low, S, s: (w + low + s * S).abs(),  # brackets lack in the released code
    "large": lambda w, low, S, s: (1 / (low + S) / s).abs(),  # prune_mode NABS
}


@pytest.mark.parametrize("score", SIZES)
def test_the_second_stage_leaves_out_what_is_small(score, tmp_path):
    """All queries and values together, and all others together; kept in a file; other tenants read all of the base."""
    options = {"score": "both", "compat": "official"} if score == "official" else {"score": score}
    host, tenant, batch, before = run(prune=0.3, alpha=6, **options)
    groups = {True: {}, False: {}}
    for s in host.sites:
        if s.kind == "linear":
            mine = s.role in ("query", "value")
            size = SIZES[score](*parts(host, before, s.name, 3.0)) if mine else host.weight(s.name).abs()
            groups[mine][s.name] = size
    merged, after = host.merged("t"), {n: p.detach() for n, p in tenant.pools.items()}
    for mine, sizes in groups.items():
        every = torch.cat([v.flatten() for v in sizes.values()])
        edge = every.sort().values[round(0.3 * len(every))]
        for n, size in sizes.items():
            want = torch.where(size >= edge, host.weight(n), 0.0)
            if mine:
                _, low, S, s = parts(host, after, n, 3.0)
                want = want + s * (low + S)
            else:
                assert torch.equal(merged[f"{n}.weight"] == 0, size < edge)
            torch.testing.assert_close(merged[f"{n}.weight"], want, rtol=1e-4, atol=1e-5)
    whole = answer(host.model, batch)
    host.save("t", tmp_path / "t.safetensors")
    host.load("u", tmp_path / "t.safetensors")
    host.add("l", "lora")
    with torch.no_grad():
        found = {}
        for name in ("t", "u", "l"):
            with host.route(name):
                found[name] = answer(host.model, batch)
        with host.route(["t", None, "u", "l"]):
            mixed = answer(host.model, batch)
    torch.testing.assert_close(found["t"], found["u"])
    for row, want in enumerate((found["t"], whole, found["u"], found["l"])):
        torch.testing.assert_close(mixed[row], want[row], rtol=1e-4, atol=1e-5)
    assert (found["t"] - whole).abs().max() > 1e-3


@pytest.mark.parametrize("heads", [4, None])
def test_heads_that_change_least_are_left_out(heads):
    """None: as many as the model says."""
    host, tenant, _, before = run(prune_heads=1, heads=heads)
    merged = host.merged("t")
    for i in range(2):
        home = f"encoder.layer.{i}.attention"
        sums = 0
        for part in ("query", "value"):
            _, low, S, _ = parts(host, before, f"{home}.self.{part}", 1.0)
            sums = sums + (low + S).abs().view(4, -1).sum(1)
        gone = sums.argmin()
        want = host.weight(f"{home}.output.dense").clone().view(-1, 4, low.shape[0] // 4)
        want[:, gone] = 0
        torch.testing.assert_close(merged[f"{home}.output.dense.weight"], want.flatten(1))
    assert len(tenant.plan.pools) == 2 * (2 * 4 + 1)


@pytest.mark.parametrize("how", [{"prune": 0.3}, {"prune_heads": 1}])
def test_what_goes_may_be_drawn(how):
    """prune_mode random: normal numbers in place of sizes; the same from the same seed, and others from another."""
    (host, tenant, *_), (_, again, *_) = (run(score="random", **how) for _ in range(2))
    kept = {n: p for n, p in tenant.pools.items() if n.endswith((".bits", ".heads"))}
    assert all(torch.equal(p, again.pools[n]) for n, p in kept.items())
    drawn = {n: Rng(tenant.plan.seed, f"{n.rpartition('.')[0]}/second stage") for n in kept}
    if "prune_heads" in how:
        for n, p in kept.items():
            assert p.argmin() == drawn[n].normal((4,)).argmin() and p.sum() == 3
        return
    mine = {s.name for s in host.sites if s.role in ("query", "value")}
    sizes = {n: drawn[f"{n}.bits"].normal(tuple(host.weight(n).shape)).abs() for n in mine}
    every = torch.cat([v.flatten() for v in sizes.values()])
    edge, left = every.sort().values[round(0.3 * len(every))], 0
    for n, size in sizes.items():
        low = tenant.pools[f"{n}.B"] @ tenant.pools[f"{n}.A"]
        S = torch.zeros_like(low).flatten()
        S[tenant.pools[f"{n}.places"].long()] = tenant.pools[f"{n}.S"].detach()
        want = torch.where(size >= edge, host.weight(n), 0.0) + tenant.config.scale * (low + S.view_as(low))
        torch.testing.assert_close(host.merged("t")[f"{n}.weight"], want.detach(), rtol=1e-4, atol=1e-5)
        left += int((size >= edge).sum())
    assert left == len(every) - round(0.3 * len(every))


def test_where_nothing_changed_stays_to_the_last():
    sizes = SecondStage(cw.methods.resolve("dsee", {"score": "large"})[1], 2.0, (), ())
    pools = {"x.A": torch.tensor([[1.0, 0.0, 2.0]]), "x.B": torch.tensor([[1.0], [-3.0]]), "x.S": torch.zeros(1)}
    at = Moment(1, 2, pools | {"x.places": torch.zeros(1, dtype=torch.int32)}, {}, {})
    found = above({"x": sizes.size(at, "x")}, 2 / 6)["x"]
    assert found.tolist() == [[True, True, True], [False, True, False]]


def test_what_a_second_stage_costs():
    """A bit for each number of the base's layers, and nothing that trains."""
    sites = [cw.Site(f"l.0.{n}", 768, 768, role=n) for n in ("query", "key", "value")]
    plain, pruned = cw.plan("dsee", [sites[0], sites[2]]), cw.plan("dsee", sites, prune=0.2)
    assert pruned.count() == plain.count() and pruned.nbytes - plain.nbytes == 3 * 768 * 768 // 8


def test_stages_that_cannot_be():
    site = cw.Site("l.0.key", 64, 64, role="key")
    with pytest.raises(cw.CommonweightError, match="prune and prune_heads are two ways; take one"):
        cw.plan("dsee", [site], prune=0.1, prune_heads=1)
    with pytest.raises(cw.CommonweightError, match="score='large' is one for numbers, not for heads; take prune"):
        cw.plan("dsee", [site], prune_heads=1, score="large")
    with pytest.raises(cw.CommonweightError, match="prune updates queries and values, and none of 1 site is one"):
        cw.plan("dsee", [site], prune=0.1)
    with pytest.raises(cw.CommonweightError, match="prune_heads wants queries, values and the layer behind"):
        cw.plan("dsee", [site], prune_heads=1)
    q, v, o = (cw.Site(f"l.0.{n}", w, 64, role=n) for n, w in (("query", 64), ("value", 32), ("attn_out", 64)))
    with pytest.raises(cw.CommonweightError, match="its heads share keys and values"):
        cw.plan("dsee", [q, v, o], prune_heads=1, heads=4)
    v = v._replace(out=64)
    with pytest.raises(cw.CommonweightError, match=r"its width 64 is not a multiple of heads=5"):
        cw.plan("dsee", [q, v, o], prune_heads=1, heads=5)
    with pytest.raises(cw.CommonweightError, match=r"prune_heads=1 of 1 heads; wanted less"):
        cw.plan("dsee", [q, v, o], prune_heads=1)
