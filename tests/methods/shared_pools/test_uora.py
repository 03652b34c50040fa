"""UORA: VeRA's equation over orthonormal matrices, and which rows are drawn again."""

import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.schedule import Moment
from commonweight.methods.shared_pools.uora import magnitude
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3, "every": 1}
VARIANTS = [{"draws": 0}, {"d_initial": 0.2}]


def rows(draws, counts, mix):
    """Row by row: counts[i] times (1 - mix) old + mix new."""
    out = []
    for i, n in enumerate(counts):
        row = draws[0][i]
        for k in range(1, n + 1):
            row = (1 - mix) * row + mix * draws[k][i]
        out.append(row)
    return torch.stack(out)


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "uora", rank=6, mix=0.25, share=0.5))
    A, B = tenant.pools["uora.A"], tenant.pools["uora.B"]
    torch.testing.assert_close(A[1] @ A[1].T, torch.eye(6))
    torch.testing.assert_close(B[2].T @ B[2], torch.eye(6))
    schedule = tenant.method.schedule(tenant.config, tenant.plan)
    looks = [0.1, 9, 0.1, 9, 9, 0.1], [9, 9, 0.1, 0.1, 9, 0.1], [9, 0.1, 0.1, 9, 9, 0.1]
    for look, d in enumerate(looks, 1):  # half of the six rows; the third look finds rows that were drawn twice
        pools = {k: v for k, v in tenant.pools.items() if k.endswith(".shares")} | {"x.b": torch.ones(64)}
        at = Moment(10 * look, 100, {**pools, "x.d": torch.tensor(d) * (-1) ** look}, {}, {})
        _, edit = schedule.after(at, {})
        tenant.pools["uora.A.shares"].copy_(edit.values["uora.A.shares"])
        tenant.pools["uora.B.shares"].copy_(edit.values["uora.B.shares"])
    counts, others = [1, 1, 2, 1, 0, 2], [2] * 32 + [0] * 32  # of equal ones the first
    for name, out, inp in (("mlp.up_proj", 64, 32), ("self_attn.k_proj", 16, 32)):
        name = f"model.layers.1.{name}"
        d, b = (tenant.pools[f"{name}.{k}"].detach() for k in "db")
        low = torch.diag(d) @ rows(A, counts, 0.25)[:, :inp]
        want = torch.diag(b) @ rows(B, others, 0.25)[:out] @ low
        torch.testing.assert_close(host.merged("t")[f"{name}.weight"], host.weight(name) + want)


def test_a_row_goes_by_the_sites_that_read_it():
    got = magnitude([torch.tensor([1.0, -3.0]), torch.tensor([-2.0, 1.0, 5.0])], 4)
    assert got.tolist() == [1.5, 2.0, 5.0, 0.0]


def test_training_draws_rows_again_and_the_file_says_so(tmp_path):
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "uora", rank=6, every=2, share=0.5)
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(1e-2)))
    run = Scheduled(tenant, optimizer, None, 8)
    run.begin()
    for step in range(1, 9):
        with host.route("t"):
            model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        run.after(step)
        optimizer.zero_grad()
        seen = {k: (tenant.pools[f"uora.{k}.shares"] != 0).sum(0) for k in "AB"}
        if step < 2:
            assert all((n == 1).all() for n in seen.values())
        if step == 4:
            half = {k: n.clone() for k, n in seen.items()}
    assert seen["A"].sum() > 6 + 3 and seen["B"].sum() == 64 + 64
    assert all(torch.equal(half[k], seen[k]) for k in "AB"), "in the second half rows stay as they are"
    with torch.no_grad(), host.route("t"):
        want = model(**batch).logits
    host.save("t", tmp_path / "t.safetensors")
    other = cw.Host(make("llama")[0])
    other.load("again", tmp_path / "t.safetensors")
    with torch.no_grad(), other.route("again"):
        torch.testing.assert_close(other.model(**batch).logits, want)


def test_tenants_of_a_seed_share_the_draws():
    host = cw.Host(make("llama")[0])
    one, two = host.add("one", "uora", rank=6), host.add("two", "uora", rank=6)
    assert one.pools["uora.A"] is two.pools["uora.A"] and one.pools["uora.B"] is two.pools["uora.B"]
    assert one.pools["uora.A.shares"] is not two.pools["uora.A.shares"]


def test_count_is_veras():
    sites = [cw.Site(f"layers.{i}.{n}", 768, 768) for i in range(12) for n in ("query", "value")]
    plan = cw.plan("uora", sites, rank=1)
    assert plan.count() == 18456 and plan.nbytes == 4 * (18456 + 3 * (1 + 768))
