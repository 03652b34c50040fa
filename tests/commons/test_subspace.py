"""The common subspace of finished adapters: what is kept, what is promised, how it grows."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.commons.subspace import distance, fit

SITES = {"q": (24, 16), "v": (12, 16)}  # site -> (d_out, d_in)
EACH = {s: [s] for s in SITES}


def lora(seed, rank=3, scale=1.0, sites=SITES):
    g = torch.Generator().manual_seed(seed)
    return {
        s: (torch.randn(rank, i, generator=g), scale * torch.randn(o, rank, generator=g)) for s, (o, i) in sites.items()
    }


def updates(space, tenant):
    out = {}
    for site, (eps_A, eps_B) in space.coefficients[tenant].items():
        basis_A, basis_B = space.bases[site]
        out[site] = eps_A.mT @ basis_A, basis_B.mT @ eps_B
    return out


def relative(a, b):
    """The plain way: products of full size."""
    gap = sum((a[s][1] @ a[s][0] - b[s][1] @ b[s][0]).square().sum() for s in a)
    return math.sqrt(gap / sum((B @ A).square().sum() for A, B in a.values()))


def test_all_directions_lose_nothing():
    loras = {f"t{i}": lora(i, rank=2 + i) for i in range(3)}
    space = fit(loras, EACH, keep=1.0)
    for t in loras:
        assert relative(loras[t], updates(space, t)) < 1e-5


@pytest.mark.parametrize("keep", [0.6, 0.9, 0.99])
def test_the_mean_share_that_is_kept_is_as_promised(keep):
    loras = {f"t{i}": lora(i, scale=10.0**i) for i in range(5)}  # whatever their sizes
    space = fit(loras, EACH, keep)
    errors = {t: relative(loras[t], updates(space, t)) for t in loras}
    assert sum(e**2 for e in errors.values()) / 5 <= 1 - keep
    for t in loras:
        assert math.isclose(errors[t], distance(loras[t], updates(space, t)), abs_tol=1e-5)


def test_adapters_of_one_subspace_need_only_that():
    """Twenty adapters of rank 2 in four directions of each side: four are found, and nothing is lost."""
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(4, 16, generator=g), torch.randn(24, 4, generator=g)
    loras = {
        f"t{i}": {"q": (torch.randn(2, 4, generator=g) @ A, B @ torch.randn(4, 2, generator=g))} for i in range(20)
    }
    space = fit(loras, {"q": ["q"]}, keep=0.9999)
    assert [b.shape[0] for b in space.bases["q"]] == [4, 4]
    assert max(relative(loras[t], updates(space, t)) for t in loras) < 1e-5
    for basis in space.bases["q"]:
        torch.testing.assert_close(basis @ basis.mT, torch.eye(4))
    assert space.coefficients["t0"]["q"][0].shape == (4, 2)


def test_the_scales_of_A_and_B_do_not_matter():
    loras = {f"t{i}": lora(i) for i in range(3)}
    twisted = {t: {s: (1e3 * A, 1e-3 * B) for s, (A, B) in v.items()} for t, v in loras.items()}

    def errors(space, t):
        return relative(loras[t], updates(space, t))

    one, two = fit(loras, EACH, k=4), fit(twisted, EACH, k=4)
    assert all(math.isclose(errors(one, t), errors(two, t), rel_tol=1e-4) for t in loras)


def test_a_grown_subspace_holds_old_and_new():
    old = {f"t{i}": lora(i) for i in range(2)}
    first = fit(old, EACH, keep=1.0)
    again = fit({t: updates(first, t) for t in old} | {"new": lora(9)}, EACH, keep=1.0)
    assert again.bases["q"][0].shape[0] == first.bases["q"][0].shape[0] + 3
    for t, was in {**old, "new": lora(9)}.items():
        assert relative(was, updates(again, t)) < 1e-4


def test_sites_of_a_group_get_equally_many_directions_also_where_one_has_fewer():
    loras = {"a": lora(1, sites={"x.0.q": (8, 8), "x.1.q": (8, 8)}), "b": lora(2, sites={"x.1.q": (8, 8)})}
    space = fit(loras, {"x.*.q": ["x.0.q", "x.1.q"]}, keep=1.0)
    assert {b.shape[0] for pair in space.bases.values() for b in pair} == {6}
    assert relative(loras["a"], updates(space, "a")) < 1e-5 and "x.0.q" not in space.coefficients["b"]


def test_an_adapter_of_zeros():
    zero = {"q": (torch.zeros(2, 16), torch.zeros(24, 2))}
    space = fit({"zero": zero, "one": {"q": lora(1)["q"]}}, {"q": ["q"]}, keep=1.0)
    assert not (updates(space, "zero")["q"][1].abs() > 1e-6).any()


def test_errors():
    with pytest.raises(cw.CommonweightError, match=r"a common subspace of 0 adapters with keep=0.95, k=0: wanted adap"):
        fit({}, EACH)
    with pytest.raises(cw.CommonweightError, match=r"wanted adapters, 0 < keep <= 1"):
        fit({"a": lora(1)}, EACH, keep=1.5)
