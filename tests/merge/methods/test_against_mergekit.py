"""The forms that mergekit has, against mergekit 0.1.5 itself.

It pins old versions of other packages, so it is not among the development dependencies:

    pip install --no-deps --target FOLDER mergekit==0.1.5
    MERGEKIT=FOLDER pytest tests/merge
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

import commonweight as cw
from commonweight.merge.maths.parts import uniform
from commonweight.merge.registry import At

from ..sample import gap, models

if folder := os.environ.get("MERGEKIT"):
    sys.path.append(folder)
theirs = pytest.importorskip(
    "mergekit.merge_methods", reason="mergekit 0.1.5 is not installed; MERGEKIT=FOLDER names where pip --target put it"
)

TOLERANCE = 2e-6
WEIGHTS = [1.0, 0.7, 0.4]


def run(name, sources, base, weighted=True, **parameters):
    named = dict(enumerate(sources))
    if base is not None:
        named = {"base": base, **named}
    if weighted:
        parameters["weight"] = dict(enumerate(weighted if isinstance(weighted, list) else WEIGHTS))
    with torch.no_grad():
        return theirs.merge_state_dicts(named, name, base="base" if base is not None else None, parameters=parameters)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [WEIGHTS, [1.0, -0.5, 0.8]])
@pytest.mark.parametrize(
    ("name", "ours", "parameters"),
    [
        ("task_arithmetic", {"scale": 0.3}, {"lambda": 0.3}),
        ("task_arithmetic", {"normalize": True}, {"normalize": True}),
        ("ties", {"density": 0.2, "normalize": True}, {"density": 0.2}),
        (
            "ties",
            {"density": 0.6, "normalize": False, "scale": 0.5},
            {"density": 0.6, "normalize": False, "lambda": 0.5},
        ),
        ("ties", {"density": 1.0}, {"density": 1.0}),
        ("breadcrumbs", {"density": 0.3, "gamma": 0.05}, {"density": 0.3, "gamma": 0.05}),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.3}, {"density": 0.9, "gamma": 0.3}),
        ("breadcrumbs", {"density": 0.3, "gamma": 0.0}, {"density": 0.3, "gamma": 0.0}),
        ("breadcrumbs", {"density": 1.0, "gamma": 0.1}, {"density": 1.0, "gamma": 0.1}),
        ("breadcrumbs_ties", {"density": 0.3, "gamma": 0.05}, {"density": 0.3, "gamma": 0.05}),
        ("breadcrumbs_ties", {"density": 0.3, "normalize": True}, {"density": 0.3, "normalize": True}),
    ],
)
def test_task_vectors(name, ours, parameters, weights, seed):
    base, sources = models(3, seed)
    mine = cw.merge.merge(name, sources, base, weights=weights, compat="mergekit", **ours)
    assert gap(mine, run(name, sources, base, weights, **parameters)) < TOLERANCE


def test_a_density_for_each_model():
    base, sources = models(3)
    mine = cw.merge.ties(sources, base, weights=WEIGHTS, density=[0.2, 0.5, 1.0], compat="mergekit")
    assert gap(mine, run("ties", sources, base, density={0: 0.2, 1: 0.5, 2: 1.0})) < TOLERANCE


@pytest.fixture
def drawn(monkeypatch):
    """mergekit draws what we draw: model after model within each tensor."""

    def install(sources, seed):
        names, calls = iter([k for k in sources[0] for _ in sources]), [0]

        def bernoulli(p):
            name, t = next(names), calls[0] % len(sources)
            calls[0] += 1
            return (uniform(seed, At(name, tuple(p.shape)), t, p) < p).to(p.dtype)

        monkeypatch.setattr(torch, "bernoulli", bernoulli)

    return install


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dare_linear", {"density": 0.3}),
        ("dare_ties", {"density": 0.3}),
        ("dare_ties", {"density": 0.6, "normalize": True}),
        ("della", {"density": 0.4, "epsilon": 0.15}),
        ("della_linear", {"density": 0.4, "epsilon": 0.3}),
    ],
)
def test_random_ones(name, options, rescale, seed, drawn):
    base, sources = models(3, seed)
    mine = cw.merge.merge(
        name, sources, base, weights=WEIGHTS, rescale=rescale, seed=seed, compat="mergekit", **options
    )
    drawn(sources, seed)
    assert gap(mine, run(name, sources, base, rescale=rescale, **options)) < TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_averages_and_spheres(seed):
    base, sources = models(3, seed)
    two = sources[:2]
    pairs = [
        (cw.merge.linear(sources, weights=WEIGHTS), run("linear", sources, None)),
        (cw.merge.linear(sources, weights=WEIGHTS, normalize=False), run("linear", sources, None, normalize=False)),
        (cw.merge.slerp([base, sources[0]], t=0.3), run("slerp", sources[:1], base, False, t=0.3)),
        (cw.merge.multislerp(sources, weights=WEIGHTS), run("multislerp", sources, None)),
        (cw.merge.multislerp(sources, base, weights=WEIGHTS), run("multislerp", sources, base)),
        (cw.merge.karcher(sources), run("karcher", sources, None, False)),
        (cw.merge.model_stock(sources, base), run("model_stock", sources, base, False)),
        (
            cw.merge.model_stock(sources, base, filter_wise=True, compat="mergekit"),
            run("model_stock", sources, base, False, filter_wise=True),
        ),
        (cw.merge.nearswap(sources[:1], base, t=0.05), run("nearswap", sources[:1], base, False, t=0.05)),
        (cw.merge.arcee_fusion(sources[:1], base), run("arcee_fusion", sources[:1], base, False)),
        (cw.merge.ram(sources, base, epsilon=0.2), run("ram", sources, base, False, epsilon=0.2)),
        (
            cw.merge.ramplus_tl(sources, base, epsilon=0.2, r=0.5, alpha=3.0),
            run("ramplus_tl", sources, base, False, epsilon=0.2, r=0.5, alpha=3.0),
        ),
        (cw.merge.passthrough(sources[:1], scale=0.5), run("passthrough", sources[:1], None, False, scale=0.5)),
    ]
    for over, flags in {
        "tensor": {},
        "row": {"nuslerp_flatten": False},
        "column": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    }.items():
        for b in (None, base):
            mine = cw.merge.nuslerp(two, b, weights=[0.6, 0.3], over=over)
            pairs.append((mine, run("nuslerp", two, b, [0.6, 0.3], **flags)))
    for i, (mine, peer) in enumerate(pairs):
        assert gap(mine, peer) < TOLERANCE, i


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("topk", [1.0, 0.4, 0.0])
def test_sce(seed, topk):
    base, sources = models(3, seed)
    mine = cw.merge.sce(sources, base, select_topk=topk, compat="mergekit")
    assert gap(mine, run("sce", sources, base, False, select_topk=topk)) < TOLERANCE


@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-6])
def test_their_thresholds(size):
    """Where ours have none: task vectors that are small, tensors that are short, weights that nearly cancel."""
    base, moved = models(3)
    zero = {k: torch.zeros_like(t) for k, t in base.items()}
    small = [{k: size * (s[k] - base[k]) for k in s} for s in moved]
    pairs = [
        (cw.merge.sce(small, zero, compat="mergekit"), run("sce", small, zero, False)),
        (cw.merge.model_stock(small, zero, compat="mergekit"), run("model_stock", small, zero, False)),
        (
            cw.merge.model_stock(small, zero, compat="mergekit", filter_wise=True),
            run("model_stock", small, zero, False, filter_wise=True),
        ),
        (cw.merge.karcher(small, compat="mergekit"), run("karcher", small, None, False)),
    ]
    for i, (mine, peer) in enumerate(pairs):
        assert gap(mine, peer) < 1e-5 * size, i


def test_weights_that_nearly_cancel():
    base, sources = models(3)
    weights = [0.6, 0.3, -0.601]
    mine = cw.merge.ties(sources, base, weights=weights, density=1.0, compat="mergekit")
    peer = run("ties", sources, base, weights, density=1.0)
    assert max(t.abs().max() for t in peer.values()) > 100
    assert gap(mine, peer) < 0.1


def test_directions_that_cancel():
    sources = [{"s": torch.tensor([x])} for x in (1.0, -1.0, 1.0, -1.0)]
    with pytest.raises(cw.CommonweightError, match="cancel"):
        cw.merge.multislerp(sources, compat="mergekit")
    with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
        run("multislerp", sources, None, [1.0] * 4)


def test_every_method_of_theirs_is_here():
    assert {m.spec.name for m in theirs.registered_methods()} <= cw.merge.available().keys()
