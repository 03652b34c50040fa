"""Inputs at the edge: weights that cancel, task vectors that are tiny or none, matrices of low rank, many models."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.merge.maths import parts
from commonweight.merge.methods.doge import shared

from ..sample import SHAPES, flat, gap, models, unflat
from .test_formulas import pcb
from .test_laws import NEEDED, cases

TOLERANCE = 2e-6


def mean_of_agreeing(tau, weights):
    """In float64, (T, n) -> (n,); sums of weights that are nothing but rounding count as zero, and then so does the
    mean."""
    sign = np.sign(tau.sum(0))
    agree = (np.sign(tau) == sign) & (sign != 0)
    w = np.array(weights)[:, None]
    total, size = (w * agree).sum(0), (abs(w) * agree).sum(0)
    live = abs(total) > 1e-6 * size
    return np.divide((w * tau * agree).sum(0), total, out=np.zeros_like(total), where=live)


def cancelling(count):
    draw = random.Random(count)
    for _ in range(10):
        some = [draw.randint(-99, 99) / 100 for _ in range(count - 1)]
        yield [*some, round(-sum(some), 2)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ties", {"density": 1.0}),
        ("dare_ties", {"density": 1.0}),
        ("della", {"density": 1.0}),
        ("breadcrumbs_ties", {"density": 1.0}),
    ],
)
def test_weights_that_cancel_change_nothing(name, options):
    """Two-decimal weights whose sum is zero, but not in float32, and all their part sums."""
    for count in (2, 3, 4, 18):
        tau = torch.randn(count, 200, generator=torch.Generator().manual_seed(count))
        tau[:, :50].abs_()  # where all agree
        sources, base = [{"w": t} for t in tau], {"w": torch.zeros(200)}
        for weights in cancelling(count):
            mine = cw.merge.merge(name, sources, base, weights=weights, **options)["w"]
            wanted = mean_of_agreeing(tau.double().numpy(), weights)
            assert np.abs(mine.numpy() - wanted).max() < 1e-4 * (1 + np.abs(wanted).max()), weights
            assert not mine[:50].any()


def test_weights_that_nearly_cancel_are_divided_by_their_exact_sum():
    sources, base = [{"w": torch.tensor([x])} for x in (1.0, 2.0, 3.0)], {"w": torch.zeros(1)}
    for rest in (1e-3, 1e-5):
        mine = cw.merge.ties(sources, base, weights=[0.3, 0.6, rest - 0.9], density=1.0)["w"]
        assert mine.item() == pytest.approx((3 * rest - 1.2) / rest, rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([1.0, 1.0, 0.5], False),
        ([-1.0, -0.2], False),
        ([1.0, 0.0], False),
        ([1.0, -0.5, 0.8], False),
        ([1.0, -1.0], True),
        ([0.3, 0.6, -0.9], True),
        ([1e-9, 1.0], False),
        ([1.0, -1.0, 1e-9], True),
        ([1.0] * 17, False),
    ],
)
def test_weights_are_known_to_cancel(weights, found):
    """Usual weights keep to the short way."""
    assert parts.may_cancel(tuple(weights)) == found
    brute = any(
        abs(sum(c)) <= 1e-3 * sum(map(abs, c))
        for n in range(1, len(weights) + 1)
        for c in itertools.combinations([w for w in weights if w], n)
    ) if len(weights) < 10 else found  # fmt: skip
    assert brute == found


def test_mergekit_divides_by_weights_that_nearly_cancel():
    sources, base = [{"w": torch.tensor([x])} for x in (1.0, -2.0, -3.0)], {"w": torch.zeros(1)}
    weights = [0.9, 0.3, -0.6 - 1e-4]
    mine = cw.merge.ties(sources, base, weights=weights, density=1.0, compat="mergekit")["w"]
    assert mine.item() == pytest.approx((0.9 + 1.8) / (0.9 - 0.6 - 1e-4), rel=1e-3)


@pytest.mark.parametrize("name", ["knots", "linear", "dare_linear", "della_linear", "breadcrumbs", "task_arithmetic"])
def test_weights_that_sum_to_zero_are_refused_where_their_sum_divides(name):
    base, sources = models(3)
    options = {"inner": "linear"} if name == "knots" else {"normalize": True}
    with pytest.raises(cw.CommonweightError, match="sum to zero, by which it divides"):
        cw.merge.merge(name, sources, None if name == "linear" else base, weights=[0.1, 0.2, -0.3], **options)


# Why the merged task vector is not in proportion to the task vectors.
SCALED = {
    "arcee_fusion": "softmax of the weights",
    "doge": "rates by length, steps of a size",
    "multislerp": "eps",
    "nearswap": "t is a distance",
    "pcb": "tanh of task vectors",
    "ram": "epsilon is a distance",
    "ramplus_tl": "epsilon is a distance",
    "wudi": "steps of a size",
}
ALIKE = [("pcb", {"variant": "es"}), ("wudi", {"solver": "exact"})]  # forms of theirs that are
DEFECTS = {("karcher", "mergekit"), ("model_stock", "mergekit"), ("sce", "mergekit")}


@pytest.mark.parametrize(("method", "options"), list(cases()))
def test_task_vectors_a_million_times_smaller_merge_alike(method, options):
    """On a base of zeros, by a power of two: nothing but a threshold could tell. mergekit has some."""
    base, sources = models(method.models[1] or 3, 1)
    big = [{k: s[k] - base[k] for k in s} for s in sources]
    small = [{k: 2.0**-20 * t for k, t in s.items()} for s in big]
    zero = None if method.base == "none" else {k: torch.zeros_like(t) for k, t in base.items()}
    mine = {k: 2.0**20 * t for k, t in method(small, zero, **options).items()}
    alike = gap(mine, method(big, zero, **options)) < 1e-5
    is_alike = method.name not in SCALED or any(method.name == n and o.items() <= options.items() for n, o in ALIKE)
    assert alike == (is_alike and (method.name, options.get("compat")) not in DEFECTS)


ODD = {"scalar": (), "empty": (0, 3), "none": (3, 0), "one": (1,), "layers.0.row": (1, 5), "layers.1.column": (5, 1),
       "same": (2, 2)}  # fmt: skip


def beside(option, count):
    """What stands beside the models, for the odd shapes."""
    kind = next(iter(option[0] if isinstance(option, list) else option)).split("/")[0]
    g, out = torch.Generator().manual_seed(9), []
    for _ in range(count):
        shapes = {k: (3,) if kind == "coefficients" else s for k, s in ODD.items()}
        if kind == "gram":
            out.append({f"gram/{k}": torch.eye(s[1]) for k, s in shapes.items() if len(s) == 2 and s[1]})
        else:
            out.append({f"{kind}/{k}": torch.rand(s, generator=g) for k, s in shapes.items()})
    return out if isinstance(option, list) else out[0]


@pytest.mark.parametrize(("method", "options"), list(cases()))
def test_scalars_empty_tensors_and_tensors_that_nobody_changed(method, options):
    base, sources = models(method.models[1] or 3, 1, shapes=ODD)
    for s in sources:
        s["same"] = base["same"].clone()
    fit = {k: beside(v, len(v)) if isinstance(v, list | dict) and k in ("statistics", "mask", "coefficients") else v
           for k, v in options.items()}  # fmt: skip
    out = method(sources, None if method.base == "none" else base, **fit)
    assert all(out[k].shape == s and out[k].isfinite().all() for k, s in ODD.items())
    if method.base != "none":
        assert (out["same"] - base["same"]).abs().max() < 1e-6


def low_rank(count, rank=4, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=g)  # noqa: E731
    taus = [(draw(size, rank) @ draw(rank, size)) for _ in range(count)]
    return taus, [t * (1 + 1e-6 * draw(size, size)) for t in taus]


@pytest.mark.parametrize("name", ["iso_c", "tsv_m", "opcm", "knots", "doge", "wudi", "twin_merging"])
def test_rounding_of_matrices_of_low_rank_changes_little(name):
    """A millionth of every number; what is built on directions that are not there changes as a whole."""
    base = {"w": torch.zeros(32, 32)}
    a, b = (cw.merge.merge(name, [{"w": t} for t in taus], base)["w"] for taus in low_rank(3))
    assert (a - b).norm() < 1e-4 * a.norm()


def test_iso_c_and_tsv_m_of_low_rank_keep_to_the_directions_that_are_there():
    taus, _ = low_rank(3)
    base, sources = {"w": torch.zeros(32, 32)}, [{"w": t} for t in taus]
    found = [np.linalg.svd(t.double().numpy()) for t in taus]
    u, s, v = np.linalg.svd(sum(taus).double().numpy())
    wanted = s[:12].mean() * u[:, :12] @ v[:12]
    assert np.abs(cw.merge.iso_c(sources, base)["w"].numpy() - wanted).max() < 1e-5

    def polar(x):
        a, _, b = np.linalg.svd(x, full_matrices=False)
        return a @ b

    left, right = polar(np.hstack([f[0][:, :4] for f in found])), polar(np.vstack([f[2][:4] for f in found]))
    wanted = left * np.hstack([f[1][:4] for f in found]) @ right
    assert np.abs(cw.merge.tsv_m(sources, base)["w"].numpy() - wanted).max() < 1e-5


def test_doge_of_low_rank_stays_out_of_a_share_of_the_directions_that_are_there():
    taus, _ = low_rank(3)
    basis = shared(torch.stack(taus), 6.0)
    assert basis.shape == (32, 2)
    whole = torch.linalg.svd(torch.cat(taus, 1).double()).U[:, :12]
    assert (whole @ (whole.T @ basis) - basis).abs().max() < 1e-10
    full = torch.randn(3, 32, 40, generator=torch.Generator().manual_seed(0))
    assert shared(full, 6.0).shape == (32, 5)
    assert shared(torch.stack([taus[0], torch.zeros(32, 32)]), 6.0).shape == (32, 0)


def test_what_models_have_in_common_counts_once():
    (tau, _), _ = low_rank(2)
    base = {"w": torch.zeros(32, 32)}
    twice = cw.merge.tsv_m([{"w": tau}, {"w": tau}], base)["w"]
    assert torch.allclose(twice, tau, atol=1e-5)
    ones = torch.full((4, 6), 0.5)
    assert torch.allclose(cw.merge.iso_c([{"w": ones}], {"w": torch.zeros(4, 6)})["w"], ones, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (300, 7), (7, 300)])
def test_a_rank_is_what_no_rounding_makes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    assert parts.rank(s) == min(shape)
    s[2:] = 0
    y = ((u * s) @ vh).float()
    assert parts.rank(torch.linalg.svdvals(y.double())) == 2
    assert parts.rank(torch.zeros(3)) == 0


def test_an_unchanged_model_has_no_vote_in_knots():
    base, (a, c) = models(2)
    for compat in (None, "official"):
        both = cw.merge.knots([a, c], base, compat=compat)
        assert gap(both, cw.merge.knots([a, base, c], base, compat=compat)) < TOLERANCE
    half = {k: t.clone() for k, t in base.items()}
    half["layers.0.w"][:, :3] = a["layers.0.w"][:, :3]  # a column that c alone changed is c's
    mine = cw.merge.knots([half, c], base, density=1.0)["layers.0.w"]
    assert (mine - c["layers.0.w"])[:, 3:].abs().max() < TOLERANCE


def test_knots_as_the_authors_code_has_it():
    """S V_t of all matrices and all else as one vector a task; cut, elected and averaged there."""
    base, sources = models(3, seed=4)
    names, basis, rows = sorted(SHAPES), {}, []
    for k in names:
        taus = [s[k] - base[k] for s in sources]
        if len(SHAPES[k]) == 2:
            u, s, v = np.linalg.svd(np.hstack([t.double().numpy() for t in taus]), full_matrices=False)
            basis[k] = u
            taus = [torch.from_numpy(x).float() for x in np.split(s[:, None] * v, 3, axis=1)]
        rows.append(torch.stack([t.reshape(-1) for t in taus]))
    whole = torch.cat(rows, 1)
    n = whole.shape[1]
    limit = whole.abs().kthvalue(n - int(0.3 * n), dim=1, keepdim=True).values
    kept = whole * (whole.abs() >= limit)
    sign = kept.sum(0).sign()
    agree = (kept.sign() == sign) & (sign != 0)
    merged = ((kept * agree).sum(0) / agree.sum(0).clamp(min=1)).split([r.shape[1] for r in rows])
    mine = cw.merge.knots(sources, base, density=0.3, scale=0.6, compat="official")
    for k, x in zip(names, merged):
        x = torch.from_numpy(basis[k]).float() @ x.view(-1, SHAPES[k][1]) if k in basis else x.view(SHAPES[k])
        assert (mine[k] - base[k] - 0.6 * x).abs().max() < TOLERANCE
    assert gap(mine, cw.merge.knots(sources, base, density=0.3, scale=0.6)) > 0.01
    linear = [cw.merge.knots(sources, base, inner="linear", compat=c) for c in (None, "official")]
    assert gap(*linear) < TOLERANCE


def test_small_task_vectors_have_their_own_weights_in_sce():
    tau = 2e-4 * torch.randn(3, 400, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [2.0], [3.0]])
    sources, base = [{"w": t} for t in tau], {"w": torch.zeros(400)}
    eta = (tau.double().square().sum(1) / tau.double().square().sum()).numpy()
    x = tau.double().numpy()
    agree = (np.sign(x) == np.where(x.sum(0) >= 0, 1, -1)) * eta[:, None]
    wanted = (x * agree).sum(0) / agree.sum(0)
    assert np.abs(cw.merge.sce(sources, base)["w"].numpy() / wanted - 1).max() < 1e-5
    equal = (x * (agree > 0)).sum(0) / (agree > 0).sum(0)
    theirs = cw.merge.sce(sources, base, compat="mergekit")["w"]
    assert np.abs(theirs.numpy() / equal - 1).max() < 1e-5


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("rows", [False, True])
def test_model_stock_goes_by_the_angle_whatever_the_length(size, rows):
    g = torch.Generator().manual_seed(1)
    shared = torch.randn(4, 64, generator=g)
    tau = size * torch.stack([shared + torch.randn(4, 64, generator=g) for _ in range(3)])
    mine = cw.merge.model_stock([{"w": t} for t in tau], {"w": torch.zeros(4, 64)}, filter_wise=rows)["w"]

    def ratio(*taus):
        c = np.mean([a @ b / np.sqrt(a @ a * (b @ b)) for a, b in itertools.combinations(taus, 2)])
        return 3 * c / (1 + 2 * c)

    x = tau.double().numpy()
    t = np.array([ratio(*r) for r in x.transpose(1, 0, 2)])[:, None] if rows else ratio(*x.reshape(3, -1))
    assert np.abs(mine.numpy() / (t * x.mean(0)) - 1).max() < 1e-4


def test_model_stock_with_a_model_that_did_not_change():
    base, (a, _) = models(2)
    for rows in (False, True):
        out = cw.merge.model_stock([a, base], base, filter_wise=rows)
        assert gap(out, base) == 0, "cos 0: as far as the base"


def test_karcher_of_short_tensors():
    one = {"w": torch.full((4,), 1e-6)}
    assert torch.allclose(cw.merge.karcher([one] * 3)["w"], one["w"], rtol=1e-6)
    assert not cw.merge.karcher([one] * 3, compat="mergekit")["w"].any()
    zero = {"w": torch.zeros(4)}
    assert not cw.merge.karcher([zero] * 3)["w"].any()
    mine = cw.merge.karcher([one, one, zero], weights=[1.0, -1.0, 1.0])["w"]
    assert mine.isfinite().all() and not mine.any()


def test_directions_that_cancel_are_summed_in_multislerp():
    signs = [{"s": torch.tensor(x), "w": torch.tensor([x, 2.0])} for x in (1.0, -1.0, 1.0, -1.0)]
    out = cw.merge.multislerp(signs)
    assert out["s"] == 0 and out["w"][1] > 2
    with pytest.raises(cw.CommonweightError, match="s: the weighted directions of the 4 models cancel"):
        cw.merge.multislerp(signs, compat="mergekit")
    assert cw.merge.multislerp(signs[:2], compat="mergekit")["s"] == 0


def test_robust_signatures_are_of_the_shallow_half():
    shapes = {**{f"features.{i}.weight": (2, 3) for i in range(13)}, "stem": (2,)}
    base, (target, robust) = models(2, shapes=shapes)
    out = cw.merge.robust_signatures([target, robust], base)
    patched = {k for k in shapes if (out[k] - target[k] - (robust[k] - base[k])).abs().max() < TOLERANCE}
    assert patched == {"stem", *(f"features.{i}.weight" for i in range(7))}
    assert all((out[k] - target[k]).abs().max() < TOLERANCE for k in shapes.keys() - patched)


def test_concrete_has_no_option_without_effect():
    with pytest.raises(cw.CommonweightError, match="compat of concrete"):
        cw.merge.concrete.resolve({**NEEDED["concrete"], "compat": "official"}, 3)


@pytest.mark.parametrize("count", [81, 120])
def test_pcb_of_more_models_than_an_exponential_holds(count):
    base, sources = models(count, seed=2, shapes={"a": (20, 9), "b": (30,)})
    tau = torch.stack([flat(s) - flat(base) for s in sources])
    wanted = unflat(flat(base) + 1.2 * pcb(tau, 0.1, 1e-4, "official"), base)
    assert gap(cw.merge.pcb(sources, base), wanted) < 1e-5
