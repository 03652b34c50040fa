"""Two-stage tuning: the score written out with the layer's outputs, the stages, and what is left of them."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Edit, Moment
from commonweight.methods.selective.two_stage import TwoStage, largest
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"ratio": 0.2}
VARIANTS = [{"form": "stored"}]


def test_a_gate_has_the_gradient_of_the_taylor_score():
    model, batch = make("gpt2")
    host = cw.Host(model)
    tenant = host.add("t", "two-stage", ratio=0.2)
    site = next(u.site for u in tenant.plan.uses if f"{u.site}.g" in tenant.pools)
    kept = []
    module = model.get_submodule(site)

    def keep(module, args, y):
        y.retain_grad()
        kept.append(y)

    with host.route("t"):
        handle = module.register_forward_hook(keep)  # behind the host's own hook: with a gate of 1 the same numbers
        model(**batch, labels=batch["input_ids"]).loss.backward()
    handle.remove()
    h = kept[0]
    torch.testing.assert_close(tenant.pools[f"{site}.g"].grad, (h * h.grad).sum((0, 1)).detach(), rtol=1e-3, atol=1e-7)


def test_stages():
    tenant = cw.Host(make("gpt2")[0]).add("t", "two-stage", ratio=0.1, first=0.5)
    way = tenant.method.schedule(tenant.config, tenant.plan)
    pools = {n: p.detach() for n, p in tenant.pools.items()}
    state, edit = way.begin(tenant.plan, pools, 8)
    site = way.sites[0]
    assert len(way.sites) == 2 and edit.resting == {f"{s}.{k}" for s in way.sites for k in "Mm"}
    assert {*edit.rates} == {f"{s}.g" for s in way.sites} and not any(edit.rates.values())
    g = torch.Generator().manual_seed(0)
    grads = [{n: torch.randn(pools[n].shape, generator=g) for n in way.gates} for _ in range(8)]
    for step in range(1, 5):
        state, edit = way.after(Moment(step, 8, pools, grads[step - 1], {}), state)
        assert (edit.resting is None) == (step < 4) and not way.settled(step, 8)
    score = sum(grads[i][f"{site}.g"].abs() for i in (1, 2, 3))
    assert sorted(score.topk(3).indices.tolist()) == edit.values[f"{site}.at"].tolist()
    assert edit.resting == {*way.norms, *way.gates} and way.settled(5, 8)
    assert way.after(Moment(5, 8, pools, {}, {}), state)[1] == Edit()


def test_the_largest_of_equal_ones_are_the_first():
    assert largest(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 2]


def test_formula_and_the_stored_form():
    host = cw.Host(make("gpt2")[0])
    tenant = host.add("t", "two-stage", ratio=0.2)
    moved = [p for n, p in tenant.named_parameters() if not n.endswith(".g")]
    with torch.no_grad():
        for p in moved:
            p.normal_(std=0.1)
    way = tenant.method.schedule(tenant.config, tenant.plan)
    merged, pools = host.merged("t"), {n: p.detach() for n, p in tenant.pools.items()}
    site, norm = way.sites[0], way.norms[0].rpartition(".")[0]
    w, at = host.weight(site).clone(), pools[f"{site}.at"].long()
    w[at] += pools[f"{site}.M"] @ w[at]
    torch.testing.assert_close(merged[f"{site}.weight"], w.T)  # GPT-2 stores it the other way round
    gain = host.model.get_submodule(norm).weight + pools[f"{norm}.dw"]
    torch.testing.assert_close(merged[f"{norm}.weight"], gain)
    host.compact("t")
    assert host["t"].config.form == "stored" and not any(n.endswith(".g") for n in host["t"].pools)
    for n, v in host.merged("t").items():
        torch.testing.assert_close(v, merged[n])


def test_gates_that_moved_stay():
    host = cw.Host(make("gpt2")[0])
    stir(host.add("t", "two-stage", ratio=0.2))
    host.compact("t")
    assert host["t"].config.form == "whole"


def test_count():
    sites = [cw.Site("o", 48, 32, "linear", "attn_out"), cw.Site("n", 48, 1, "norm")]
    k = round(0.125 * 48)
    assert cw.plan("two-stage", sites, form="stored").count() == k * k + k + 2 * 48
    assert cw.plan("two-stage", sites).count() == k * k + k + 3 * 48


def test_first_is_at_most_nine_tenths():
    with pytest.raises(cw.CommonweightError, match=r"TwoStage: first is 0.95; it must be <= 0.9"):
        TwoStage(ratio=0.1, first=0.95, form="whole")
