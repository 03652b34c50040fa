"""The forms that FusionBench has, against its own functions (0.2.33).

Its package imports a training framework that has no place here, so its files of plain functions are loaded alone:

    pip install --no-deps --target FOLDER fusion-bench==0.2.33
    FUSION_BENCH=FOLDER pytest tests/merge
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import commonweight as cw

from .sample import flat, gap, models, unflat

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


@pytest.fixture
def load(monkeypatch):
    """A file of FusionBench's as a module, with stand-ins for what it imports from the rest."""
    stand_in = {n: ModuleType(n) for n in ("fusion_bench", "fusion_bench.utils", "fusion_bench.utils.type")}
    utils: Any = stand_in["fusion_bench.utils"]
    utils.timeit_context = lambda *a, **k: contextlib.nullcontext()
    utils.state_dict_to_vector = utils.vector_to_state_dict = None
    kinds: Any = stand_in["fusion_bench.utils.type"]
    kinds.StateDictType = dict
    for name, module in stand_in.items():
        monkeypatch.setitem(sys.modules, name, module)

    def load(path: str) -> Any:
        spec = importlib.util.spec_from_file_location("theirs", ROOT / path)
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
