"""Bi-LoRA against its quantiser written out a second time, and its file of one bit a number."""

import math
from statistics import NormalDist

import pytest
import torch

import commonweight as cw
from commonweight.compare.budget import fit
from commonweight.compare.run import sizes as run_sizes
from commonweight.core.onebit import onebit
from commonweight.host.files import settle
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 4}
NAME = "model.layers.1.mlp.up_proj"


def fixed_point(rounds: int = 500) -> float:
    """The upper one of two levels of N(0, 1): each is the median of its cell, whose boundary lies between them."""
    normal, low, high = NormalDist(), -1.0, 1.0
    for _ in range(rounds):
        boundary = normal.cdf((low + high) / 2)
        low, high = normal.inv_cdf(boundary / 2), normal.inv_cdf((1 + boundary) / 2)
    return high


def straight(p: torch.Tensor) -> torch.Tensor:
    """The released quantiser: a sign times half of the gap, with a gradient of one for the standardised number."""
    mean, std = p.mean(), p.std()
    z = (p - mean) / (std + 1e-5)
    return (z + ((z - 0).sign() * fixed_point() - z).detach()) * std + mean


def test_levels():
    assert fixed_point() == pytest.approx(0.67449, abs=1e-5)
    x = torch.randn(3, 6, 10)
    torch.testing.assert_close(onebit(x), torch.stack([straight(p) for p in x]))
    assert all(len(p.unique()) == 2 for p in onebit(x))


def test_gradients_pass_the_sign_and_the_spread():
    x = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(6, 10, dtype=torch.float64)
    (ours,) = torch.autograd.grad((onebit(x) * seed).sum(), x)
    (theirs,) = torch.autograd.grad((straight(x) * seed).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "bi-lora", rank=4, scale=2.0))
    A, B = (straight(tenant.pools[f"{NAME}.{k}"].detach()) for k in "AB")
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + 2.0 * B @ A)


def test_the_file_has_one_bit_a_number_and_the_same_answers(tmp_path):
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "bi-lora", rank=4))
    with torch.no_grad(), host.route("t"):
        before = model(**batch).logits
    tenant = host.compact("t")
    path = host.save("t", tmp_path / "t.safetensors", codec="onebit")
    host.load("again", path)
    with torch.no_grad(), host.route("again"):
        torch.testing.assert_close(model(**batch).logits, before, rtol=1e-5, atol=1e-5)
    assert all(host["again"].pools[n].equal(p) for n, p in tenant.pools.items())
    assert host.save("again", tmp_path / "b.safetensors", codec="onebit").read_bytes() == path.read_bytes()
    assert host.compact("again").config.stored


def test_a_28th_of_float32(tmp_path):
    """At the paper's width: 32 directions of 768 numbers."""
    model = torch.nn.ModuleDict({f"q_{i}": torch.nn.Linear(768, 768) for i in range(4)})
    host = cw.Host(model)
    host.add("t", "bi-lora", sites="*")
    whole = host.save("t", tmp_path / "whole.safetensors").stat().st_size
    host.compact("t")
    packed = host.save("t", tmp_path / "packed.safetensors", codec="onebit").stat().st_size
    assert packed <= whole / 28


def test_count():
    sites = [cw.Site(f"{i}.q", 768, 768) for i in range(12)]
    plan = cw.plan("bi-lora", sites)
    assert plan.count() == 12 * 32 * 2 * 768
    assert math.isclose(plan.count() / 8 + 12 * 2 * 8, 73_920 * 1, rel_tol=1e-9)


def test_a_number_at_the_mean_has_a_level():
    """The released sum of signs gives it a third value, between both, which one bit cannot hold."""
    x = torch.tensor([[-3.0, -1.0, 0.0], [0.0, 1.0, 3.0]])
    official, ours = straight(x), onebit(x)
    assert len(official.unique()) == 3 and official[0, 2] == official[1, 0] == x.mean()
    assert len(ours.unique()) == 2 and ours[0, 2] == ours[1, 0] == ours[1, 2]
    off = x != x.mean()
    torch.testing.assert_close(ours[off], official[off])


def test_a_number_of_bits_that_is_no_multiple_of_eight(tmp_path):
    """The released `dump` puts eight signs in a byte and drops the rest: of 3 x 7 numbers five."""
    host = cw.Host(torch.nn.ModuleDict({"q": torch.nn.Linear(7, 3)}))
    stir(host.add("t", "bi-lora", rank=3, sites="*"))
    tenant = host.compact("t")
    signs = tenant.pools["q.A"].detach().flatten() >= tenant.pools["q.A"].mean()
    assert len(signs) == 21 and signs[: len(signs) // 8 * 8].numel() == 16
    host.load("again", host.save("t", tmp_path / "t.safetensors", codec="onebit"))
    assert all(host["again"].pools[n].equal(p) for n, p in tenant.pools.items())


@pytest.mark.parametrize("codec", ["onebit", "int8"])
@pytest.mark.parametrize(("method", "options"), [("bi-lora", {"rank": 4}), ("bi-adaptformer", {"size": 4})])
def test_a_codec_takes_what_it_answers_by(method, options, codec, tmp_path):
    """Also before `compact`: its levels, not levels of its levels. What is trained on stays as it is."""
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", method, **options))
    host.load("u", host.save("t", tmp_path / "t.safetensors", codec=codec))
    assert not tenant.config.stored and host["u"].config.stored
    settle(stir(host.add("v", method, **options)), codec)
    found = {}
    with torch.no_grad():
        for name in (None, "t", "u", "v"):
            with host.route(name):
                found[name] = model(**batch).logits
    effect = (found["t"] - found[None]).abs().max()
    for name in "uv":
        assert (found[name] - found["t"]).abs().max() < (1e-5 if codec == "onebit" else 0.05) * effect


@pytest.mark.parametrize(("method", "options"), [("bi-lora", {"rank": 4}), ("bi-adaptformer", {"size": 4})])
def test_one_that_is_trained_at_its_levels_is_not_packed_in_silence(method, options, tmp_path):
    """It answers by plain numbers then; one bit would be another tenant's."""
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", method, **options))
    host.load("u", host.save("t", tmp_path / "t.safetensors", codec="onebit"))
    optimizer = torch.optim.SGD(host["u"].param_groups(), lr=0.1)
    with host.route("u"):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    with pytest.raises(cw.CommonweightError, match="was trained after it had been brought to its two levels"):
        host.save("u", tmp_path / "u.safetensors", codec="onebit")
    with pytest.raises(cw.CommonweightError, match="was trained after"):
        settle(host["u"], "onebit")
    host.load("v", host.save("u", tmp_path / "u.safetensors"))
    host.load("w", host.save("u", tmp_path / "w.safetensors", codec="int8"))
    found = {}
    with torch.no_grad():
        for name in ("u", "v", "w"):
            with host.route(name):
                found[name] = model(**batch).logits
    assert found["v"].equal(found["u"])
    torch.testing.assert_close(found["w"], found["u"], rtol=0, atol=0.05)


@pytest.mark.parametrize(("method", "options"), [("bi-lora", {"rank": 4}), ("bi-adaptformer", {"size": 4})])
def test_a_head_keeps_all_its_bits(method, options, tmp_path):
    model, _ = make("bert")
    host = cw.Host(cw.Classifier(model))
    tenant = stir(host.add("t", method, labels=("a", "b", "c"), **options))
    host.load("u", host.save("t", tmp_path / "t.safetensors", codec="onebit"))
    assert all(host["u"].pools[n].equal(p) for n, p in host.compact("t").pools.items())
    sizes = run_sizes(tenant, "onebit")
    assert sizes["head_bytes"] == 4 * sum(p.numel() for n, p in tenant.pools.items() if n.startswith("head"))


@pytest.mark.parametrize("codec", ["onebit", {"*A": "onebit"}])
def test_a_method_without_two_levels_is_refused_before_it_trains(codec, tmp_path):
    """One bit would leave little of the change."""
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lora", rank=2))
    before = {n: p.clone() for n, p in tenant.pools.items()}
    for wrong in (lambda: host.save("t", tmp_path / "t.safetensors", codec=codec), lambda: settle(tenant, codec)):
        with pytest.raises(cw.CommonweightError, match="lora: codec onebit stores matrices of two values"):
            wrong()
    assert not [*tmp_path.iterdir()] and all(tenant.pools[n].equal(p) for n, p in before.items())
    with pytest.raises(cw.CommonweightError, match="lora: codec onebit"):
        fit("lora", tenant.sites, 4096, codec="onebit")
