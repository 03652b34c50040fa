"""What holds for every method: it runs, it can be cut in pieces, and nothing but its inputs decides the result."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.merge.maths import select

from ..sample import gap, models, statistics

NEEDED = {
    "nearswap": {"t": 0.05},
    "emr": {"task": 1},
    "tall_masks": {"task": 1},
    "fisher": {"statistics": statistics(3, "fisher")},
    "regmean": {"statistics": statistics(3, "gram")},
    "concrete": {"mask": statistics(1, "mask")[0]},
    "dam": {"mask": statistics(1, "mask")[0]},
    **{n: {"coefficients": statistics(1, "coefficients")[0]} for n in ("adamerging", "atlas", "unconstrained")},
    "layer_swap": {"bottom": 1, "top": 1, "transition": 1},
    "wudi": {"steps": 5},
    "doge": {"steps": 5},
}
VARIANTS = {
    "nuslerp": [{"over": "row"}, {"over": "column"}],
    "model_stock": [{"filter_wise": True}],
    "lines": [{"weights": [1.0, 0.5, 0.2]}],
    "pcb": [{"variant": "es"}],
    "sce": [{"select_topk": 0.3}],
    "robust_signatures": [{"shallow": 0.5}],
    "fisher": [{"normalize": True}],
    "bayesian": [{"statistics": statistics(2, "gram")}],
    "wudi": [{"solver": "exact"}],
    "doge": [{"others": "mean"}],
}


def _short(option):
    return str(option[1]) if isinstance(option[1], str | bool | int | float) else option[0]


def cases():
    for name, method in cw.merge.available().items():
        for options in [{}, *({"compat": c} for c in method.compat), *VARIANTS.get(name, [])]:
            yield pytest.param(
                method, {**NEEDED.get(name, {}), **options}, id="-".join([name, *map(_short, options.items())])
            )


def inputs(method, seed=1):
    base, sources = models(method.models[1] or 3, seed)
    return sources, None if method.base == "none" else base


@pytest.mark.parametrize(("method", "options"), list(cases()))
def test_pieces_and_order_change_nothing(method, options):
    sources, base = inputs(method)
    whole = method(sources, base, **options)
    assert all(t.isfinite().all() and t.dtype == torch.float32 for t in whole.values())
    for piece in (1, 30):
        assert gap(whole, method(sources, base, piece=piece, **options)) < 1e-6
    turned = [dict(reversed(s.items())) for s in sources]
    assert gap(whole, method(turned, base, **options)) == 0
    assert gap(whole, method(sources, base, **options)) == 0


@pytest.mark.parametrize(("method", "options"), list(cases()))
def test_inputs_are_left_alone_and_dtypes_kept(method, options):
    sources, base = inputs(method)
    half = [{k: t.bfloat16() for k, t in s.items()} for s in (*sources, base or sources[0])]
    copies = [{k: t.clone() for k, t in s.items()} for s in half]
    for s in half:
        s["steps"] = torch.tensor([3, 4])
    out = method(half[:-1], None if base is None else half[-1], **options)
    assert {t.dtype for k, t in out.items() if k != "steps"} == {torch.bfloat16}
    assert out["steps"].tolist() == [3, 4]
    assert all(torch.equal(s[k], c[k]) for s, c in zip(half, copies) for k in c)


@pytest.mark.parametrize("method", [m for m in cw.merge.available().values() if m.base != "none"], ids=lambda m: m.name)
def test_models_equal_to_the_base_give_the_base(method):
    _, base = inputs(method)
    out = method([base] * (method.models[1] or 3), base, **NEEDED.get(method.name, {}))
    assert gap(out, base) < 1e-6


@pytest.mark.parametrize("method", list(cw.merge.available().values()), ids=lambda m: m.name)
def test_a_method_says_where_it_comes_from(method):
    assert method.paper and method.equation and (method.__doc__ or "").strip()
    learned = method.data in ("labeled", "unlabeled")
    assert learned or method.data in ("none", "statistics")
    assert learned == (method.learn is not None)
    names = set(inspect.signature(method.function).parameters)
    assert {"tensors", "base"} <= names
    assert getattr(cw.merge, method.name) is method


def test_a_scalar_and_an_empty_tensor_are_tensors():
    sources = [{"scalar": torch.tensor(float(i)), "empty": torch.zeros(0, 3)} for i in range(3)]
    out = cw.merge.ties(sources, sources[0], density=1.0)
    assert out["scalar"].shape == () and out["scalar"] == 1.5 and out["empty"].shape == (0, 3)


def test_equal_magnitudes_are_kept_by_index():
    """bfloat16 task vectors tie massively; the first by name, then by index, stay."""
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    model = {"a": torch.tensor([[1.0, -1, 1], [2, 1, -1]]), "b": torch.tensor([1.0, 3, -1, 1])}
    for piece in (None, 1, 2):
        out = cw.merge.ties([model], base, density=0.5, piece=piece)
        assert out["a"].tolist() == [[1, -1, 1], [2, 0, 0]] and out["b"].tolist() == [0, 3, 0, 0]
        out = cw.merge.ties([model], base, density=0.5, compat="mergekit", piece=piece)
        assert out["a"].tolist() == [[1, -1, 0], [2, 0, 0]] and out["b"].tolist() == [1, 3, 0, 0]


def test_random_ones_depend_on_seed_and_tensor_name_only():
    sources, base = inputs(cw.merge.dare_linear)
    whole = cw.merge.dare_linear(sources, base, seed=4)
    alone = cw.merge.dare_linear([{"conv": s["conv"]} for s in sources], {"conv": base["conv"]}, seed=4)
    assert torch.equal(whole["conv"], alone["conv"])
    assert gap(whole, cw.merge.dare_linear(sources, base, seed=5)) > 0.1


@pytest.mark.parametrize("k", [0, 1, 37, 499, 500, 1000, 2000])
@pytest.mark.parametrize("levels", [0, 3, 10**6])
@pytest.mark.parametrize("sample", ["none", "fair", "wrong"])
def test_selection_is_a_stable_sort(k, levels, sample, monkeypatch):
    """The first k by (value, index) whatever the pieces, and the k-th value; a bad sample costs rounds only."""
    monkeypatch.setattr(select, "_FEW", 1)
    monkeypatch.setattr(select, "_SPREAD", 0.5 if sample == "wrong" else 4.0)
    g = torch.Generator().manual_seed(k)
    x = torch.randint(-levels, levels + 1, (2, 1000), generator=g).float() / 7
    x[x == 0] *= -1
    for exact in (False, True) if 0 < k <= 1000 else (False,):
        finds, done, rounds = select.start(((k, 5), (k, 5)), 1000, exact, sample != "none"), False, 0
        while not done:
            rounds += 1
            few = select.every(finds) > 1
            pieces, starts = x.split(170, dim=1), range(0, 1000, 170)
            if few:  # of the small ones alone, where it is to mislead
                pieces = [p[:, p[0].argsort()[:20]] if sample == "wrong" else p[:, ::8] for p in pieces]
            counts, *more = [select.count(finds, p, s, 1000) for p, s in zip(pieces, starts)]
            for c in more:
                counts += c
            finds, done = select.step(finds, counts, 1000)
        assert rounds < 8
        for row, found in zip(x, finds):
            if exact:
                assert found[0].value == row.sort().values[k - 1]
        if not exact:
            for row, mask in zip(x, select.held(finds, x, 0)):
                assert mask.nonzero().squeeze(1).tolist() == sorted(row.sort(stable=True).indices[:k].tolist())


def test_tallies_add_up_to_what_they_count():
    """However many bins, in whatever order they come, loose or counted."""
    g = np.random.default_rng(0)
    for most in (3, 1 << 15, 1 << 30):
        parts = [g.integers(0, most, n).astype(np.uint32) for n in (50_000, 0, 70_000, 3, 90_000)]
        total, other = select.Tally(), select.Tally(2)
        for i, part in enumerate(parts):
            (total if i % 2 else other).__iadd__(select.Tally(1, part))
        total += other
        bins, counts = total.bins()
        wanted = np.unique(np.concatenate(parts), return_counts=True)
        assert total.below == 7 and (bins == wanted[0]).all() and (counts == wanted[1]).all()


def test_keys_follow_the_floats_and_come_back():
    x = torch.tensor([-float("inf"), -2.0, -1e-40, -0.0, 0.0, 1e-40, 1.5, float("inf")])
    keys = select.key(x.numpy()).tolist()
    assert keys == sorted(keys) and keys[3] == keys[4]
    assert [select.value(k) for k in keys] == x.tolist()
    assert select.falling(x.clone()).tolist() == (-x.abs()).tolist()


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "pcb", "sce", "compeft", "arcee_fusion"])
@pytest.mark.parametrize("tied", [False, True])
def test_samples_change_nothing(method, tied, monkeypatch):
    """With samples, which are of large tensors only, and with bad ones: the same bits as without."""
    g = torch.Generator().manual_seed(1)
    base = {"a": torch.randn(600, 70, generator=g), "b": torch.randn(200, 30, generator=g)}
    moved = [{n: w + 0.1 * torch.randn(w.shape, generator=g) * w.abs() for n, w in base.items()} for _ in range(2)]
    if tied:
        base, *moved = [{n: (w * 16).round() / 16 for n, w in s.items()} for s in (base, *moved)]
    moved = moved[: cw.merge.get(method).models[1] or 2]
    more = {"select_topk": 0.3} if method == "sce" else {}
    found = []
    for few, spread in ((1 << 60, 1.0), (16, 16.0), (16, 0.1)):
        monkeypatch.setattr(select, "_FEW", few)
        monkeypatch.setattr(select, "_SPREAD", spread)
        found.append(cw.merge.merge(method, moved, base, piece=1000, **more))
    assert all(torch.equal(found[0][n], f[n]) for f in found[1:] for n in base)


@pytest.mark.parametrize("method, option", [("ties", "density"), ("compeft", "density"), ("sce", "select_topk")])
def test_cuts_that_take_all_or_nothing(method, option):
    """A share so small that nothing, or so large that everything is taken: no round is left over."""
    base = {"a": torch.zeros(3, 4)}
    moved = [{"a": torch.arange(12.0).view(3, 4) + i} for i in range(2)]
    for share in (1e-9, 1.0):
        assert cw.merge.merge(method, moved, base, **{option: share})["a"].isfinite().all()


def test_compat_is_taken_wherever_the_implementation_has_the_method():
    """A recipe may say compat for every step; where the forms are the same it changes nothing."""
    names = {n for n, m in cw.merge.available().items() if "mergekit" in (*m.same, *m.compat)}
    assert {"linear", "slerp", "ties", "della", "sce", "karcher", "passthrough", "nearswap"} <= names
    for name in names:
        method = cw.merge.get(name)
        if "mergekit" in method.same:
            sources, base = inputs(method)
            more = NEEDED.get(name, {})
            assert gap(method(sources, base, **more), method(sources, base, compat="mergekit", **more)) == 0


def test_options_that_methods_share_are_given_one_by_one():
    shared = {"density", "scale", "rescale", "seed"}
    for name in ("dare_linear", "dare_ties", "della", "della_linear"):
        method = cw.merge.get(name)
        assert shared <= set(method.options()) and "how" not in inspect.signature(method.function).parameters
        assert method.options()["seed"] == (int, 0)
    assert cw.merge.della.function.__doc__ == cw.merge.della.__doc__
