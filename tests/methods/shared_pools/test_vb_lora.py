"""VB-LoRA against the paper's formula, written out with plain loops."""

import pytest
import torch

import commonweight as cw
from commonweight.address import Chosen, TopK
from commonweight.methods.shared_pools.vb_lora import compact
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"rank": 2, "num_vectors": 16, "vector_length": 8}
NAME = "model.layers.1.mlp.up_proj"


def mix(bank, logits, k):
    best = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
    weights = torch.softmax(torch.tensor([logits[i] for i in best]), 0)
    return sum(w * bank[i] for w, i in zip(weights, best))


@pytest.mark.parametrize("k", [2, 3])
def test_formula(k):
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "vb-lora", rank=3, num_vectors=12, vector_length=8, topk=k))
    bank = tenant.pools["vb-lora.bank"].detach()
    la, lb = (tenant.pools[f"{NAME}.{s}.logits"].tolist() for s in "AB")
    A = torch.stack([torch.cat([mix(bank, la[i][j], k) for j in range(4)]) for i in range(3)])
    B = torch.stack([torch.cat([mix(bank, lb[j][i], k) for j in range(8)]) for i in range(3)], 1)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + B @ A)


def test_gradients_reach_the_chosen_logits_and_no_other():
    bank, logits = torch.randn(9, 4), torch.randn(2, 3, 9, requires_grad=True)
    (grad,) = torch.autograd.grad(TopK(2)(bank, logits).square().sum(), logits)
    chosen = torch.zeros(2, 3, 9).scatter(-1, logits.topk(2).indices, 1.0)
    assert torch.equal(grad != 0, chosen != 0)


def test_the_compact_form_answers_the_same_in_far_fewer_bytes(tmp_path):
    options = {"rank": 3, "num_vectors": 64, "vector_length": 8, "topk": 2}
    model, batch = make("llama")
    host = cw.Host(model)
    full = stir(host.add("full", "vb-lora", **options))
    small = host.add("small", "vb-lora", compact=True, **options)
    values = compact(full.pools, 2)
    assert values.keys() == small.pools.keys()
    with torch.no_grad():
        for name, value in values.items():
            small.pools[name].copy_(value)
        with host.route("full"):
            want = answer(model, batch)
        with host.route("small"):
            torch.testing.assert_close(answer(model, batch), want)
    bank = full.pools["vb-lora.bank"].nbytes
    assert (full.nbytes - bank) * 2 * 5 == (small.nbytes - bank) * 64 * 4
    host.save("small", tmp_path / "small.safetensors")
    again = host.load("again", tmp_path / "small.safetensors")
    assert all(torch.equal(again.pools[n], small.pools[n]) for n in small.pools)


def test_a_compact_tenant_starts_with_different_vectors():
    model, _ = make("llama")
    tenant = cw.Host(model).add("t", "vb-lora", compact=True, **SMALL, topk=3)
    index = tenant.pools[f"{NAME}.A.index"]
    assert index.dtype == torch.uint8 and all(len(set(v)) == 3 for row in index.tolist() for v in row)
    plan = cw.plan("vb-lora", [cw.Site("q", 8, 8)], compact=True, num_vectors=300, vector_length=8)
    assert plan.pools["q.A.index"].dtype == "int16" and isinstance(plan.uses[0].reads["A"].address, Chosen)


def test_count():
    sites = [cw.Site(f"layers.{i}.q", 512, 1024) for i in range(6)]
    plan = cw.plan("vb-lora", sites, rank=4, num_vectors=90, vector_length=256)
    assert plan.count() == 90 * 256 + 6 * 90 * 4 * (512 + 1024) // 256


def test_the_papers_learning_rates():
    model, _ = make("llama")
    tenant = cw.Host(model).add("t", "vb-lora", **SMALL)
    rates = {p.data_ptr(): g["lr"] for g in tenant.param_groups() for p in g["params"]}
    assert rates[tenant.pools["vb-lora.bank"].data_ptr()] == pytest.approx(1e-3)
    assert rates[tenant.pools[f"{NAME}.A.logits"].data_ptr()] == pytest.approx(1e-2)


def test_a_width_that_the_length_does_not_divide():
    message = r"vb-lora: q: width 48 of A is not a multiple of vector_length=32; choose .* here \[48, 24, 16, 12\]"
    with pytest.raises(cw.CommonweightError, match=message):
        cw.plan("vb-lora", [cw.Site("q", 32, 48)], vector_length=32)


@pytest.mark.parametrize(
    "options,message",
    [({"topk": 9, "num_vectors": 4}, "topk 9 of 4 vectors; take"), ({"topk": 1}, "topk is 1; it must be >= 2")],
)
def test_a_bad_topk(options, message):
    with pytest.raises(cw.CommonweightError, match=message):
        cw.plan("vb-lora", [cw.Site("q", 256, 256)], **options)


def test_the_usual_length_divides_every_width():
    sites = [cw.Site("q", 384, 384), cw.Site("up", 1536, 384)]
    assert cw.plan("vb-lora", sites).pools["vb-lora.bank"].shape == (256, 192)
    assert cw.plan("vb-lora", [cw.Site("q", 4096, 14336)]).pools["vb-lora.bank"].shape == (256, 256)


def test_a_late_tenant_on_a_frozen_bank_trains_and_costs_its_logits_alone(tmp_path):
    options = {"rank": 2, "num_vectors": 64, "vector_length": 8, "topk": 2, "common": "tasks"}
    model, batch = make("llama")
    host, c = cw.Host(model), cw.Commons(tmp_path / "store")
    first = stir(host.add("first", "vb-lora", **options))
    host.freeze("tasks")
    bank = first.pools["vb-lora.bank"].clone()
    late = host.add("late", "vb-lora", compact=True, seed=1, **options)
    vectors = sum(2 * (s.inp + s.out) // 8 for s in late.sites)
    assert late.pools["vb-lora.bank"] is first.pools["vb-lora.bank"]
    assert late.count() == 2 * vectors, "k logits for every sub-vector"
    assert late.private_nbytes == (4 + 1) * 2 * vectors, "and the number of each one's vector, a byte"
    optimizer = torch.optim.Adam(late.param_groups(0.1))
    losses = []
    for _ in range(12):
        with host.route("late"):
            loss = (answer(model, batch) - 1).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 1e-3 and torch.equal(late.pools["vb-lora.bank"], bank)
    for name in ("first", "late"):
        c.publish(host, name)
    marginal = next(r for r in c.list() if r.name == "late").marginal_bytes
    assert marginal < late.private_nbytes + 8192 < first.private_nbytes


def test_a_tenant_made_compact_after_training_stays_in_the_common():
    """Trained with all logits, kept with the k that count: on the common's bank it answers the same."""
    options = {"rank": 2, "num_vectors": 64, "vector_length": 8, "common": "tasks"}
    model, batch = make("llama")
    host = cw.Host(model)
    full = stir(host.add("full", "vb-lora", **options))
    small = host.add("small", "vb-lora", compact=True, **options)
    values = compact(full.pools, 2)
    with torch.no_grad():
        for name, value in values.items():
            if name != "vb-lora.bank":
                small.pools[name].copy_(value)
        with host.route(["full", "small", "full", "small"]):
            rows = answer(model, {k: v[:1].expand(4, *v.shape[1:]) for k, v in batch.items()})
    torch.testing.assert_close(rows[0], rows[1])
    assert small.private_nbytes * 64 * 4 == full.private_nbytes * 2 * 5
