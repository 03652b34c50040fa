"""VectorFit against the product of its parts."""

import torch

import commonweight as cw
from commonweight.core.schedule import Moment
from commonweight.methods.spectral.vectorfit import Freezing, VectorFit
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"resting": 0.3, "every": 2}
VARIANTS = [{"bias": False}]


def test_formula():
    host = cw.Host(make("qwen")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "vectorfit"))
    for site in host.sites:
        w = host.weight(site.name)
        u, s, v = torch.linalg.svd(w.bfloat16().double(), full_matrices=False)
        d, b = (tenant.pools[f"{site.name}.{k}"].detach() for k in "db")
        want = w.double() + u @ torch.diag(d.double()) @ v
        merged = host.merged("t")
        torch.testing.assert_close(merged[f"{site.name}.weight"].double(), want, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(merged[f"{site.name}.bias"], host.model.get_submodule(site.name).bias + b)
        assert len(s) == len(d)


def test_count():
    assert cw.plan("vectorfit", [cw.Site("q", 48, 32)]).count() == 32 + 48


def test_the_strongest_vectors_rest_until_others_are_stronger():
    names = ("a.d", "a.b", "c.d", "e.d")
    way = Freezing(VectorFit(resting=0.5, begin=0.2, every=2, smooth=0.5), names)
    first = {n: torch.tensor([k, 2.0, -k]) for k, n in enumerate(names)}  # as of a tenant that is trained again
    state, _ = way.begin(None, first, 20)
    far = {1: (1.0, 0.0, 0.0, -2.0), 2: (1, 1, 0, -2), 3: (1, 1, 0, -2), 4: (1, 1, 0, -2), 5: (1, 1, 9, -2)}
    strength, seen = [0.0] * 4, {}
    for step in range(1, 9):
        at = far.get(step, (1, 1, 9, -2))
        pools = {n: first[n] + torch.tensor([v, -v, v]) for n, v in zip(names, at)}
        state, edit = way.after(Moment(step, 20, pools, {}, {}), state)
        strength = [0.5 * s + 0.5 * abs(v) for s, v in zip(strength, at)]
        seen[step] = edit.resting
        torch.testing.assert_close(state["strength"], torch.tensor(strength, dtype=torch.float64))
    assert seen[2] is seen[3] is None and seen[4] == {"e.d", "a.d"}  # before 0.2 of the steps none
    assert seen[6] == seen[8] == {"c.d", "e.d"}


def test_the_vectors_of_a_plan_and_none_rest_where_none_shall():
    host = cw.Host(cw.Classifier(make("bert")[0]))
    tenant = host.add("t", "vectorfit", labels=["a", "b"])
    way = tenant.method.schedule(tenant.config, tenant.plan)
    head = host.head_site().name
    assert {*way.vectors} == {n for n, _ in tenant.named_parameters() if not n.startswith(f"{head}.")}
    assert tenant.method.scheduled(VectorFit(bias=True, resting=0.0, begin=0, every=1, smooth=0), tenant.plan) is None
