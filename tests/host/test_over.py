"""Tenants over frozen tenants: mixed batches, gradients, files, and what may not be removed."""

import copy

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from tests.laws.subjects import stir
from tests.models import answer, make

OVER = {"lorahub": {}, "arrow": {}, "psec": {"hidden": 4}, "autolora": {}, "xlora": {"depth": 2, "hidden": 4}}
TRAINED = [n for n in OVER if n != "arrow"]


def host(kind="llama", method="lora", **options):
    model, batch = make(kind)
    h = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(h.add(n, method, seed=i, **(options or {"rank": 2})), i)
    return h, batch


def out(h, route, batch):
    with torch.no_grad(), h.route(route):
        return answer(h.model, batch)


def gates(h):
    """A gate over each tenant, and one that takes of both."""
    for n in "ab":
        stir(h.add(f"{n}-gate", "phatgoose", over=[n]))
    return h.add("t", "phatgoose", over=["a-gate", "b-gate"])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "moe"])
@pytest.mark.parametrize("method", [*OVER, "phatgoose"])
def test_a_row_in_a_mixed_batch_is_that_row_alone(method, kind):
    h, batch = host(kind)
    if method == "lorahub" and kind == "moe":
        return
    t = gates(h) if method == "phatgoose" else stir(h.add("t", method, over=["a", "b"], **OVER[method]))
    route = ["t", "a", None, "t"]
    mixed = out(h, route, batch)
    for i, n in enumerate(route):
        row = {k: v[i : i + 1] for k, v in batch.items()}
        torch.testing.assert_close(mixed[i : i + 1], out(h, n, row), rtol=1e-4, atol=1e-5)
    assert (mixed[0] - out(h, None, batch)[0]).abs().max() > 1e-3
    assert t.over and not h.base.current.thread.given_to


@pytest.mark.parametrize("method", ["psec", "autolora"])
def test_over_adapters_beside_parts_of_a_block(method):
    h, batch = host(method="parallel", size=4)
    t = stir(h.add("t", method, over=["a", "b"]))
    mixed = out(h, ["t", "a", None, "t"], batch)
    torch.testing.assert_close(mixed[:1], out(h, "t", {k: v[:1] for k, v in batch.items()}), rtol=1e-4, atol=1e-5)
    assert (mixed[0] - out(h, None, batch)[0]).abs().max() > 1e-3 and t.over


@pytest.mark.parametrize("method", TRAINED)
def test_only_its_own_numbers_train(method):
    h, batch = host()
    held = {n: [p.clone() for p in h[n].pools.values()] for n in "ab"}
    t = stir(h.add("t", method, over=["a", "b"], **OVER[method]))
    h.model.train()
    with h.route("t"):
        answer(h.model, batch).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in t.parameters())
    for n in "ab":
        assert not [*h[n].parameters()] and h[n].count() == 0
        assert all(p.grad is None and not p.requires_grad for p in h[n].pools.values())
        assert all(torch.equal(p, q) for p, q in zip(h[n].pools.values(), held[n]))
    assert all(p is not q for p in t.parameters() for n in "ab" for q in h[n].pools.values())


def test_the_numbers_below_are_there_once():
    h, _ = host()
    t = h.add("t", "psec", over=["a", "b"])
    mine = {p.data_ptr() for p in t.pools.values()}
    assert all(p.data_ptr() in mine for n in "ab" for p in h[n].pools.values())
    assert t.nbytes == 4 * t.count()


def test_what_is_stood_on_is_not_removed():
    h, batch = host()
    h.add("t", "lorahub", over=["a", "b"])
    with pytest.raises(CommonweightError, match=r"'a' cannot be removed: 't' stands on it; remove that first"):
        h.remove("a")
    h.add("u", "psec", over=["a"])
    with pytest.raises(CommonweightError, match="'t', 'u' stand on it"):
        h.remove("a")
    before = out(h, "t", batch)
    h.remove("u")
    h.remove("t")
    assert h["a"].count() > 0 and all(p.requires_grad for p in h["a"].parameters())
    h.remove("a")
    assert before is not None and list(h) == ["b"]


def test_a_file_holds_its_own_numbers(tmp_path):
    for method in [*OVER, "phatgoose"]:
        h, batch = host()
        t = gates(h) if method == "phatgoose" else stir(h.add("t", method, over=["a", "b"], **OVER[method]))
        names = [n for n in h if n != "t"]
        for n in [*names, "t"]:
            h.save(n, tmp_path / f"{n}.safetensors")
        assert (tmp_path / "t.safetensors").stat().st_size < t.nbytes + 8000
        other = cw.Host(make("llama")[0])
        with pytest.raises(CommonweightError, match=r"stands on the tenant .*, which this host does not have"):
            other.load("t", tmp_path / "t.safetensors")
        for n in names:
            other.load(f"{n}2", tmp_path / f"{n}.safetensors")
        other.load("t", tmp_path / "t.safetensors")
        torch.testing.assert_close(out(other, "t", batch), out(h, "t", batch), rtol=0, atol=0)
        for n in h:
            (tmp_path / f"{n}.safetensors").unlink()


def test_a_file_over_other_numbers(tmp_path):
    h, _ = host()
    h.add("t", "lorahub", over=["a", "b"])
    h.save("t", tmp_path / "t.safetensors")
    h.remove("t")
    stir(h["a"], 9)
    with pytest.raises(CommonweightError, match=r"'a', whose numbers are others here") as e:
        h.load("t", tmp_path / "t.safetensors")
    assert str(e.value).count("t.safetensors") == 1
    assert list(h) == ["a", "b"] and h["a"].count() > 0


def test_it_may_be_merged_where_it_is_one_update():
    h, batch = host()
    stir(h.add("t", "lorahub", over=["a", "b"]))
    plain, _ = make("llama")
    plain.load_state_dict(h.merged("t"), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(answer(plain, batch), out(h, "t", batch), rtol=1e-4, atol=1e-5)
    h.add("u", "arrow", over=["a", "b"])
    with pytest.raises(CommonweightError, match="cannot be merged"):
        h.merged("u")


def test_over_tenants_of_other_kinds():
    """Their changes are added, whatever their methods, if that is a sum at all."""
    model, batch = make("llama")
    h = cw.Host(model)
    stir(h.add("a", "molora", rank=2, experts=2))
    stir(h.add("b", "lora", rank=3, sites="*.q_proj"))
    stir(h.add("c", "psec", over=["a", "b"]))
    stir(h.add("f", "autolora", over=["b", "a"]))
    stir(h.add("d", "psec", over=["b", "f"]))
    assert (out(h, "d", batch) - out(h, "c", batch)).abs().max() > 1e-3
    with pytest.raises(
        CommonweightError, match=r"c: at .* it (reads what another site is|gives what it is) given"
    ):  # it reads what other sites are given
        h.add("e", "psec", over=["c"])
    stir(h.add("x", "ia3"))
    with pytest.raises(CommonweightError, match=r"x: at .* it is no addition to what the site gives"):
        h.add("e", "psec", over=["a", "x"])
    with pytest.raises(CommonweightError, match=r"a: at .* no update of low rank"):
        h.add("e", "arrow", over=["a", "b"])
    with pytest.raises(CommonweightError, match="not all LoRA of one rank and one scale"):
        h.add("e", "lorahub", over=["a", "b"])
    assert "e" not in h


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"method": "psec"}, r"over=\(\): wanted the names of tenants"),
        ({"method": "psec", "over": "ab"}, "wanted the names"),
        ({"method": "psec", "over": ["a", "a"]}, "stands there twice"),
        ({"method": "psec", "over": ["a", "z"]}, "'z'"),
        ({"method": "lora", "over": ["a"]}, "method over tenants"),
        ({"method": "psec", "over": ["a"], "sites": "*.q_proj"}, "leave out sites"),
        ({"method": "phatgoose", "over": ["a", "b"]}, "each must have a gate of its own"),
    ],
)
def test_what_does_not_go(how, told):
    h, _ = host()
    with pytest.raises(CommonweightError, match=told):
        h.add("t", **how)
    assert list(h) == ["a", "b"] and h["a"].count() > 0


def test_a_copy_of_the_host():
    h, batch = host()
    stir(h.add("t", "psec", over=["a", "b"]))
    other = copy.deepcopy(h)
    torch.testing.assert_close(out(other, "t", batch), out(h, "t", batch))
    assert other["t"].over[0] is other["a"] and other["a"].under == [other["t"]]


def test_a_head_of_its_own():
    model = cw.Classifier(make("bert")[0])
    _, batch = make("bert")
    h = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(h.add(n, "lora", rank=2, seed=i, labels=2), i)
    t = h.add("t", "psec", over=["a", "b"], labels=3)
    with torch.no_grad(), h.route("t"):
        assert h.model(**batch).logits.shape[-1] == 3
    assert t.labels == ("0", "1", "2")
