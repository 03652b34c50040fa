"""The forms that FusionBench has, against its own functions (0.2.33).

Its package imports a training framework that has no place here, so its files of plain functions are loaded alone:

    pip install --no-deps --target FOLDER fusion-bench==0.2.33
    FUSION_BENCH=FOLDER pytest tests/merge
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import commonweight as cw
from commonweight.merge.maths.parts import uniform
from commonweight.merge.registry import At

from ..sample import flat, gap, models, unflat

ROOT = Path(os.environ.get("FUSION_BENCH", "-")) / "fusion_bench" / "method"
if not ROOT.is_dir():
    pytest.skip(
        "fusion-bench 0.2.33 is not at hand; FUSION_BENCH=FOLDER names where pip --target put it",
        allow_module_level=True,
    )

TOLERANCE = 2e-6
BASE, SOURCES = models(3, seed=2, shapes={"layers.0.w": (8, 12), "layers.1.w": (12, 8), "bias": (12,)})
VECTORS = [{k: s[k] - BASE[k] for k in BASE} for s in SOURCES]
DOUBLE = [{k: t.double() for k, t in v.items()} for v in VECTORS]  # their SVDs run in what they are given
TAU = torch.stack([flat(v) for v in VECTORS])


class StandIn:
    """Whatever their files import and do not need here: a base class, or a decorator that changes nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else object.__new__(cls)

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


class AnyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (StandIn,), {})


def summed(states):
    return {k: sum(s[k] for s in states) for k in states[0]}


@pytest.fixture
def load(monkeypatch):
    """A file of FusionBench's as a module, with stand-ins for what it imports from the rest."""
    names = ["lightning", "fusion_bench", "omegaconf", "tqdm.autonotebook", "theirs", "theirs.utils"]
    rest = ("utils", "utils.type", "utils.state_dict_arithmetic", "utils.json", "utils.parameters", "method")
    more = ("method.base_algorithm", "mixins", "mixins.lightning_fabric", "mixins.simple_profiler", "modelpool")
    last = ("models", "models.modulator", "models.modulator.base", "models.parameter_dict", "models.utils", "taskpool")
    inside = (f"fusion_bench.{n}" for n in (*rest, *more, *last))
    stand_in: dict[str, Any] = {n: AnyModule(n) for n in [*names, *inside]}
    stand_in["fusion_bench.utils"].timeit_context = lambda *a, **k: contextlib.nullcontext()
    stand_in["fusion_bench.utils.type"].StateDictType = stand_in["fusion_bench"].StateDictType = dict
    stand_in["fusion_bench.utils.state_dict_arithmetic"].state_dict_sum = summed
    stand_in["fusion_bench.method.base_algorithm"].BaseAlgorithm = type("Base", (), {"_config_mapping": {}})
    for name, module in stand_in.items():
        monkeypatch.setitem(sys.modules, name, module)

    def load(path: str) -> Any:
        spec = importlib.util.spec_from_file_location("theirs.file", ROOT / path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def added(update):
    return {k: BASE[k] + update[k] for k in BASE}


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_ties(load, reduce):
    utils = load("ties_merging/ties_merging_utils.py")
    merged = utils.ties_merging(TAU.clone(), reset_thresh=20, merge_func=reduce)
    mine = cw.merge.ties(SOURCES, BASE, density=0.2, reduce=reduce, compat="fusion-bench")
    assert gap(mine, added(unflat(merged, BASE))) < TOLERANCE


def test_tall_masks_by_its_helper(load):
    theta = flat(BASE)
    masks = load("tall_mask/utils.py").generate_task_masks(TAU, theta + TAU, theta, tall_mask_lambda=0.4)
    for task in range(3):
        mine = cw.merge.tall_masks(SOURCES, BASE, task=task, threshold=0.4)
        assert gap(mine, added(unflat(masks[task] * TAU.sum(0), BASE))) < TOLERANCE


def test_tsv_m(load):
    utils = load("task_singular_vector/utils/TSVM_utils.py")
    merged = utils.compute_and_sum_svd_mem_reduction(DOUBLE, accelerator=torch.device("cpu"))
    assert gap(cw.merge.tsv_m(SOURCES, BASE), added(merged)) < TOLERANCE


def test_iso_c(load):
    merged = load("isotropic_merging/iso_utils.py").iso_c(DOUBLE, accelerator="cpu")
    assert gap(cw.merge.iso_c(SOURCES, BASE), added(merged)) < TOLERANCE


def test_knots_basis(load):
    """Its basis is ours: TIES on its right factors gives the same matrix (signs of singular vectors cancel)."""
    u, s, vs = load("knots/knots_utils.py").subspace_alignment([v["layers.0.w"] for v in VECTORS])
    base = {"v": torch.zeros_like(vs[0])}
    inner = cw.merge.ties([{"v": v} for v in vs], base, density=0.3)["v"]
    mine = cw.merge.knots(SOURCES, BASE, density=0.3)["layers.0.w"]
    assert (mine - BASE["layers.0.w"] - u * s @ inner).abs().max() < TOLERANCE


FISHER = [{f"fisher/{k}": torch.rand(t.shape, generator=torch.Generator().manual_seed(i)) for k, t in BASE.items()}
          for i in range(3)]  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
def test_fisher(load, normalize):
    theirs = load("fisher_merging/fisher_merging.py").merging_with_fisher_weights(
        {k: [s[k] for s in SOURCES] for k in BASE},
        [{k: f[f"fisher/{k}"] for k in BASE} for f in FISHER],
        torch.ones(3) / 3,
        normalize_fisher_weight=normalize,
    )
    mine = cw.merge.fisher(SOURCES, statistics=FISHER, compat="fusion-bench", normalize=normalize)
    assert gap(mine, theirs) < TOLERANCE


def test_regmean(load):
    x = [torch.randn(60, 12, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    grams = [a.T @ a / len(a) for a in x]
    theirs = load("regmean/regmean.py").merging_with_regmean_weights(
        {"layers.0.weight": [s["layers.0.w"] for s in SOURCES], "bias": [s["bias"] for s in SOURCES]},
        [{"layers.0": g} for g in grams],
        reduce_non_diagonal_ratio=0.6,
    )
    renamed = [{"layers.0.weight": s["layers.0.w"], "bias": s["bias"]} for s in SOURCES]
    mine = cw.merge.regmean(renamed, statistics=[{"gram/layers.0.weight": g} for g in grams], alpha=0.6)
    assert gap(mine, theirs) < 1e-5  # theirs inverts in float32


def test_wudi(load):
    theirs = load("wudi/wudi.py").wudi_merging(VECTORS, accelerator="cpu", iter_num=50)
    mine = cw.merge.wudi(SOURCES, BASE, steps=50)
    assert gap(mine, added({k: t.detach() for k, t in theirs.items()})) < TOLERANCE


def test_doge_loss_and_mask(load):
    """Its algorithm wants a pool of models and a fabric; its loss and its mask are plain functions."""
    theirs = load("doge_ta/doge_ta.py").DOGE_TA_Algorithm
    taus = torch.stack([v["layers.0.w"] for v in VECTORS])
    rates, delta = torch.tensor([0.3, 0.2, 0.1]), torch.nn.Parameter(torch.full((8, 12), 0.05))
    theirs.taskvector_loss(None, taus, delta, rates).backward()
    total = sum(r * (t + delta.detach()) for r, t in zip(rates, taus))
    mine = 2 * rates.sum() * sum((t * (total - t)).sum(1)[:, None] * t for t in taus)
    assert (delta.grad - mine).abs().max() < 1e-5
    mask = theirs.topk_values_mask(None, TAU[0].clone(), K=0.3)
    assert int(mask.sum()) == int(0.3 * TAU.shape[1]) + 1


def test_entropy(load):
    from commonweight.merge.learning.blend import entropy

    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert abs(entropy(scores) - load("adamerging/entropy_loss.py").entropy_loss(scores)) < 1e-6


@pytest.mark.parametrize("task", range(3))
def test_emr(load, task):
    unified, masks, rescalers = load("emr_merging/utils.py").emr_merge(VECTORS)
    mine = cw.merge.emr(SOURCES, BASE, task=task, compat="fusion-bench")
    assert gap(mine, added({k: rescalers[task] * masks[k][task] * t for k, t in unified.items()})) < TOLERANCE


def test_opcm(load, monkeypatch):
    """Its steps for linear and other parameters, and its rescaling between them, in its order."""
    monkeypatch.setitem(sys.modules, "theirs.utils", load("opcm/utils.py"))
    theirs, own = load("opcm/opcm.py").OPCMForCLIP, SimpleNamespace(previous_lambda_t=1, lambda_t=1)
    size = lambda state: torch.linalg.norm(flat(state) - flat(BASE))  # noqa: E731
    merged, sizes = dict(SOURCES[0]), [size(SOURCES[0])]
    for model in SOURCES[1:]:
        sizes.append(size(model))
        for k in BASE:
            args = (own, merged[k], BASE[k], model[k], k)
            step = theirs.merge_linear_weights if BASE[k].dim() == 2 else theirs.merge_other_parameters
            merged[k] = step(*args, **({"alpha": 0.5} if BASE[k].dim() == 2 else {}))
        own.previous_lambda_t = size(merged) / torch.stack(sizes).mean()
        merged = {k: BASE[k] + (t - BASE[k]) / own.previous_lambda_t for k, t in merged.items()}
    assert gap(cw.merge.opcm(SOURCES, BASE), merged) < 1e-5  # theirs decomposes in float32


def test_dare(load, monkeypatch):
    """It draws what we draw; it drops where the draw is small, we where it is large."""
    for k in BASE:
        turn = itertools.count()
        draw = lambda t, k=k, turn=turn: 1 - uniform(3, At(k, ()), next(turn), t)  # noqa: E731
        monkeypatch.setattr(torch, "rand_like", draw)
        vectors = [{k: v[k].clone()} for v in VECTORS]
        for v in vectors:
            load("dare/utils.py").module_random_drop_(v, 0.6, rescale=True)
        mine = cw.merge.dare_linear([{k: s[k]} for s in SOURCES], {k: BASE[k]}, density=0.4, scale=0.3, seed=3)
        assert (mine[k] - BASE[k] - 0.3 * summed(vectors)[k]).abs().max() < TOLERANCE


def test_model_stock_of_two(load):
    """With more, it averages angles where mergekit and we average cosines."""
    theirs = load("model_stock/model_stock.py")
    ratio = theirs.compute_ratio(theirs.compute_angle(*SOURCES[:2], BASE))
    merged = theirs.merge_weights(*SOURCES[:2], BASE, ratio)
    assert gap(cw.merge.model_stock(SOURCES[:2], BASE), merged) < TOLERANCE
