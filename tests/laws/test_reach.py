"""The laws over every method and every kind of site beside linear layers, norms and blocks."""

from __future__ import annotations

import pytest
import torch

import commonweight as cw
from tests.laws.reach import SITES, make
from tests.laws.subjects import METHODS, small, stir

OF_SITES = [m for m in METHODS if cw.methods.get(m).kinds]
KIND = {name: name.split()[-1] for name in SITES} | {"patches": "conv", "volume": "conv"}
NO_BIAS = {"bitfit": {"grouped conv"}}  # methods with nothing to read there


def taken(method: str) -> list[str]:
    about = cw.methods.get(method)
    return [n for n in SITES if KIND[n] in (*about.kinds, *about.named) and n not in NO_BIAS.get(method, ())]


@pytest.mark.parametrize("method", OF_SITES)
def test_a_method_says_which_kinds_it_takes(method):
    host = cw.Host(make()[0])
    for name in SITES.keys() - set(taken(method)):
        with pytest.raises(cw.CommonweightError, match="reads sites of kind"):
            host.add("t", method, sites=SITES[name], **small(method))


@pytest.mark.parametrize("method", OF_SITES)
def test_fresh_is_the_base_and_merged_is_routed(method, tmp_path):
    model, batch = make()
    host, other = cw.Host(model), cw.Host(make()[0])
    with torch.no_grad():
        base = model(**batch)
    for name in taken(method):
        tenant = host.add("t", method, sites=SITES[name], seed=1, **small(method))
        with torch.no_grad(), host.route("t"):
            fresh = model(**batch)
            if cw.methods.get(method).fresh == "exact":
                torch.testing.assert_close(fresh, base, rtol=1e-6, atol=1e-6)
            stir(tenant)
            moved = model(**batch)
        assert (moved - base).abs().max() > 1e-5, f"{name}: a stirred tenant does nothing"
        again = other.load("t", host.save("t", tmp_path / "t.safetensors"))
        assert again.plan == tenant.plan and all(torch.equal(tenant.pools[n], again.pools[n]) for n in tenant.pools)
        if all(getattr(u.bind, "weight", None) is not None for u in tenant.plan.uses):
            plain, _ = make()
            assert not plain.load_state_dict(host.merged("t"), strict=False).unexpected_keys
            with torch.no_grad():
                torch.testing.assert_close(plain(**batch), moved, rtol=1e-5, atol=1e-6, msg=lambda m: f"{name}: {m}")  # noqa: B023
        host.remove("t")
        other.remove("t")


@pytest.mark.parametrize("method", OF_SITES)
def test_a_row_is_that_row_alone_and_gradients_flow(method):
    model, batch = make()
    host = cw.Host(model)
    base = {None: model(**batch).detach()}
    stir(host.add("other", "lora", sites="*", rank=3), 5)
    with torch.no_grad(), host.route("other"):
        base["other"] = model(**batch)
    for name in taken(method):
        for seed, n in enumerate("ab"):
            stir(host.add(n, method, sites=SITES[name], seed=seed, **small(method)), seed)
        alone = {**base}
        for n in "ab":
            with torch.no_grad(), host.route(n):
                alone[n] = model(**batch)
        for route in (["a", None, "b", "a"], ["b", "a", "other", "b"]):
            with host.listening() as heard, host.route(route):
                mixed = model(**batch)
            for i, n in enumerate(route):
                torch.testing.assert_close(mixed[i], alone[n][i], rtol=1e-5, atol=5e-6, msg=lambda m: f"{name}: {m}")  # noqa: B023
        (mixed.square().sum() + sum(heard.loss(host[n]) for n in "ab")).backward()
        for n in "ab":
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in host[n].parameters()), name
            host.remove(n)
