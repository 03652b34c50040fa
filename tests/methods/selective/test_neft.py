"""NeFT: which neurons turn most, and that these alone are trained and stored."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.schedule import Moment
from commonweight.methods.selective.neft import least
from tests.models import make

SMALL = {"share": 0.1}
VARIANTS = [{"form": "stored"}]
SITES = "*.up_proj|*.down_proj"


def test_the_neurons_that_turn_are_trained_anew():
    model, batch = make("llama")
    host = cw.Host(model, sites=SITES)
    tenant = host.add("t", "neft", share=0.1, find=0.5)
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(0.01)), weight_decay=0.0)
    at = Scheduled(tenant, optimizer, None, 6)
    at.begin()
    for step in range(1, 7):
        with host.route("t"):
            model(**batch).logits.square().mean().backward()
        at.masked()
        optimizer.step()
        if step == 3:
            merged, turned = host.merged("t"), []
            for s in host.sites:
                w, new = host.weight(s.name).double(), merged[f"{s.name}.weight"].double()
                lines = zip(w, new) if "up" in s.name else zip(w.T, new.T)
                turned += [(float((a @ b) / (a.norm() * b.norm())), s.name, i) for i, (a, b) in enumerate(lines)]
            want = {(n, i) for _, n, i in sorted(turned)[: round(0.1 * len(turned))]}
        at.after(step)
        optimizer.zero_grad()
        assert at.settled(step) == (step > 3)
        if step == 3:
            assert not any(p.any() for p in tenant.parameters())
    merged = host.merged("t")
    got = set()
    for s in host.sites:
        change = merged[f"{s.name}.weight"] - host.weight(s.name)
        lines = change if "up" in s.name else change.T
        got |= {(s.name, i) for i in lines.any(1).nonzero()[:, 0].tolist()}
    assert got == want
    small = host.compact("t")
    for n, w in host.merged("t").items():
        assert torch.equal(w, merged[n])
    assert small.count() < 0.12 * sum(s.out * s.inp for s in host.sites)


def test_a_run_of_one_step_keeps_what_it_found():
    host = cw.Host(make("llama")[0], sites=SITES)
    tenant = host.add("t", "neft", share=0.1)
    way = tenant.method.schedule(tenant.config, tenant.plan)
    pools = {n: torch.randn(p.shape) for n, p in tenant.pools.items()}
    edit = way.after(Moment(1, 1, pools, {}, {}, weight=host.weight), {})[1]
    assert sum(int(v.any(1).sum()) for v in edit.values.values()) == round(0.1 * sum(map(len, pools.values())))
    assert all(torch.equal(v, pools[n] * edit.masks[n]) for n, v in edit.values.items())


def test_the_share_is_taken_whole():
    """The code takes what is below the N-th smallest, and so one less, and of equal ones none."""
    cosines = [torch.tensor([0.9, 0.5, 0.7]), torch.tensor([0.5, 0.8])]
    found = torch.cat(least(cosines, 0.4))
    assert found.tolist() == [False, True, False, True, False]
    flat = torch.cat(cosines)
    assert not (flat < flat.sort().values[1]).any(), "as released: none of the two"


def test_kept_goes_with_stored():
    with pytest.raises(cw.CommonweightError, match="kept goes with form='stored'"):
        cw.plan("neft", [cw.Site("up", 8, 4)], kept=[["up", 2]])
