"""The papers' and the official code's forms, written out again with sorts, loops and NumPy, on flattened models."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.merge.maths.parts import uniform
from commonweight.merge.registry import At

from ..sample import SHAPES, flat, gap, models, unflat

TOLERANCE = 2e-6
WEIGHTS = [1.0, 0.7, 0.4]
BASE, SOURCES = models(3, seed=5)
TAU = torch.stack([flat(s) - flat(BASE) for s in SOURCES])
N = TAU.shape[1]


def check(mine, update):
    """update: the merged task vector, flat; or a function (name, taus of one tensor) -> its merged task vector."""
    if callable(update):
        wanted = {k: BASE[k] + update(k, [s[k] - BASE[k] for s in SOURCES]) for k in BASE}
    else:
        wanted = unflat(flat(BASE) + update, BASE)
    assert gap(mine, wanted) < TOLERANCE


def top(x, k):
    """The k largest magnitudes of a vector."""
    mask = torch.zeros(len(x), dtype=torch.bool)
    mask[x.abs().argsort(descending=True)[:k]] = True
    return x * mask


def disjoint(taus, weights, signs, divide="weights"):
    out = torch.zeros_like(taus[0])
    for i in range(len(out)):
        mine = [(w, t[i].item()) for w, t in zip(weights, taus) if np.sign(t[i].item()) == signs[i] and signs[i] != 0]
        if mine:
            total = sum(w * t for w, t in mine)
            out[i] = total / {"weights": sum(w for w, _ in mine), "count": len(mine), "one": 1}[divide]
    return out


def test_ties_paper():
    kept = [top(t, int(0.2 * N)) for t in TAU]
    signs = torch.stack(kept).sum(0).sign()
    check(cw.merge.ties(SOURCES, BASE, density=0.2), disjoint(kept, [1, 1, 1], signs))
    check(cw.merge.ties(SOURCES, BASE, density=0.2, weights=WEIGHTS, scale=0.5), 0.5 * disjoint(kept, WEIGHTS, signs))
    check(cw.merge.ties(SOURCES, BASE, density=0.2, reduce="sum"), disjoint(kept, [1, 1, 1], signs, "one"))


@pytest.mark.parametrize(("compat", "divide"), [("official", "weights"), ("fusion-bench", "one")])
def test_ties_official(compat, divide):
    """kthvalue keeps int(dK) + 1; parameters without a sign get the model's; mean, in fusion-bench the sum."""
    kept = []
    for t in TAU:
        limit = t.abs().kthvalue(N - int(0.2 * N)).values
        kept.append(t * (t.abs() >= limit))
    assert [int((k != 0).sum()) for k in kept] == [int(0.2 * N) + 1] * 3
    signs = torch.stack(kept).sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    check(cw.merge.ties(SOURCES, BASE, density=0.2, compat=compat), disjoint(kept, [1, 1, 1], signs, divide))


def test_ties_official_gives_parameters_whose_sum_is_zero_the_sign_of_the_model():
    base = {"w": torch.zeros(5)}
    a, b = {"w": torch.tensor([1.0, -2.0, -3.0, -4.0, 0.5])}, {"w": torch.tensor([-1.0, -2.5, -3.5, -4.5, 0.25])}
    assert cw.merge.ties([a, b], base, density=1.0)["w"][0] == 0
    assert cw.merge.ties([a, b], base, density=1.0, compat="official")["w"][0] == -1
    assert cw.merge.ties([a, b], base, density=1.0, compat="mergekit")["w"][0] == 1


def test_ties_peft():
    utils = pytest.importorskip("peft.utils.merge_utils")
    check(
        cw.merge.ties(SOURCES, BASE, density=0.3, weights=WEIGHTS, compat="peft"),
        lambda k, taus: utils.ties(taus, torch.tensor(WEIGHTS), 0.3),
    )


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_peft(name, monkeypatch):
    utils = pytest.importorskip("peft.utils.merge_utils")
    for k in BASE:  # PEFT draws what we draw
        turn = itertools.count()
        monkeypatch.setattr(
            torch, "bernoulli", lambda p, k=k, turn=turn: (uniform(3, At(k, ()), next(turn), p) < p).to(p.dtype)
        )
        wanted = getattr(utils, name)([s[k] - BASE[k] for s in SOURCES], torch.tensor(WEIGHTS), 0.4)
        one = [{k: s[k]} for s in SOURCES]
        mine = cw.merge.merge(name, one, {k: BASE[k]}, weights=WEIGHTS, density=0.4, seed=3, compat="peft")
        assert (mine[k] - BASE[k] - wanted).abs().max() < TOLERANCE


def masks(density, seed=0, chance=None):
    def draw(k, taus):
        chances = [torch.full_like(t, density) if chance is None else chance(t) for t in taus]
        kept = [(uniform(seed, At(k, ()), i, t) < p).float() for i, (t, p) in enumerate(zip(taus, chances))]
        return [t * m / p for t, m, p in zip(taus, kept, chances)]

    return draw


def signs_and_mean(taus, weights):
    shape = taus[0].shape
    rows = [t.reshape(-1) for t in taus]
    return disjoint(rows, weights, torch.stack(rows).sum(0).sign()).view(shape)


def test_dare_paper():
    draw = masks(0.3)
    check(
        cw.merge.dare_linear(SOURCES, BASE, density=0.3, weights=WEIGHTS),
        lambda k, taus: sum(w * t for w, t in zip(WEIGHTS, draw(k, taus))),
    )
    check(
        cw.merge.dare_ties(SOURCES, BASE, density=0.3, weights=WEIGHTS),
        lambda k, taus: signs_and_mean(draw(k, taus), WEIGHTS),
    )


def test_dare_is_unbiased_and_keeps_its_density():
    base, (model,) = {"w": torch.zeros(200, 200)}, [{"w": torch.ones(200, 200)}]
    out = cw.merge.dare_linear([model], base, density=0.25)["w"]
    assert set(out.unique().tolist()) == {0.0, 4.0}
    assert abs(out.mean() - 1) < 0.05


def test_della_paper():
    density, epsilon = 0.4, 0.2

    def chance(t):
        out = torch.empty_like(t)
        for row, target in zip(t.reshape(-1, t.shape[-1]), out.view(-1, t.shape[-1])):
            for rank, i in enumerate(sorted(range(len(row)), key=lambda j: -abs(row[j].item()))):
                target[i] = 1 - ((1 - density) - epsilon / 2 + epsilon / len(row) * rank)
        return out

    draw = masks(density, 7, chance)
    options = {"density": density, "epsilon": epsilon, "seed": 7, "weights": WEIGHTS}
    check(cw.merge.della(SOURCES, BASE, **options), lambda k, taus: signs_and_mean(draw(k, taus), WEIGHTS))
    check(
        cw.merge.della_linear(SOURCES, BASE, **options),
        lambda k, taus: sum(w * t for w, t in zip(WEIGHTS, draw(k, taus))),
    )


def middle(x, density, gamma):
    first = int(gamma * len(x))
    return top(x, first + int(density * len(x))) - top(x, first)


def test_breadcrumbs_per_tensor_and_per_row():
    options = {"density": 0.3, "gamma": 0.1, "weights": WEIGHTS}
    per_tensor = lambda t: middle(t.reshape(-1), 0.3, 0.1).view(t.shape)  # noqa: E731
    per_row = lambda t: torch.stack([middle(r, 0.3, 0.1) for r in t.reshape(-1, t.shape[-1])]).view(t.shape)  # noqa: E731
    for compat, mask in ((None, per_tensor), ("official", per_row)):
        check(
            cw.merge.breadcrumbs(SOURCES, BASE, compat=compat, scale=0.4, **options),
            lambda k, taus, mask=mask: 0.4 * sum(w * mask(t) for w, t in zip(WEIGHTS, taus)),
        )
        check(
            cw.merge.breadcrumbs_ties(SOURCES, BASE, compat=compat, **options),
            lambda k, taus, mask=mask: signs_and_mean([mask(t) for t in taus], WEIGHTS),
        )


@pytest.mark.parametrize("compat", [None, "mergekit"])
def test_sce(compat):
    """The selection shapes the weights; mergekit also masks what is merged."""

    def wanted(k, taus):
        x = torch.stack([t.reshape(-1) for t in taus]).double()
        variance = ((x - x.mean(0)) ** 2).mean(0)
        k = int(0.3 * int((variance != 0).sum()))
        chosen = torch.zeros(x.shape[1], dtype=torch.bool)
        chosen[variance.argsort(descending=True)[:k]] = True
        eta = (x * chosen).square().mean(1)
        eta = eta / eta.sum()
        x = x * chosen if compat else x
        sign = torch.where(x.sum(0) >= 0, 1.0, -1.0)
        agree = (x.sign() == sign) * eta[:, None]
        return ((x * agree).sum(0) / agree.sum(0).clamp(min=1e-6)).float().view(taus[0].shape)

    check(cw.merge.sce(SOURCES, BASE, select_topk=0.3, compat=compat), wanted)


def pcb(tau, ratio, tail, variant):
    tau = tau.double().numpy()
    t, d = tau.shape

    def held(x, low, high):
        s = np.sort(x, axis=1)
        return np.clip(x, s[:, [int(d * low)]], s[:, [int(d * (1 - high) - 1)]])

    def norm(x):
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        return (x - low) / (high - low)

    a = held(np.abs(tau), tail, tail)
    n = norm(a)
    signed = np.sign(tau) * n
    if variant == "vision":
        inter = np.tanh(signed * signed.sum(0))
    elif variant == "es":
        inter = sum(np.tanh(signed * signed[j]) for j in range(t))
    else:
        inter = np.tanh(tau * tau.sum(0))
    beta = norm(held(np.exp(t * n**2) * inter, 1 - ratio, 0))
    return torch.from_numpy((np.sign(tau) * a * beta).sum(0) / np.maximum(beta.sum(0), 1e-12)).float()


@pytest.mark.parametrize(("variant", "tail"), [("official", 1e-4), ("nlp", 0.01), ("vision", 1e-4), ("es", 1e-4)])
def test_pcb(variant, tail):
    mine = cw.merge.pcb(SOURCES, BASE, variant=variant, scale=1.2, density=0.1)
    wanted = unflat(flat(BASE) + 1.2 * pcb(TAU, 0.1, tail, variant), BASE)
    assert gap(mine, wanted) < TOLERANCE


def test_lines():
    tau = TAU.sum(0)
    by_name = unflat(tau, BASE)
    scale = {"layers.0.w": 1 / 3, "layers.1.w": 1 / 3 + 0.4, "layers.2.w": 1 / 3 + 0.8, "layers.2.bias": 1 / 3 + 0.8}
    mine = cw.merge.lines(SOURCES, BASE, beta=0.8)
    assert gap(mine, {k: BASE[k] + scale.get(k, 1 / 3) * by_name[k] for k in BASE}) < TOLERANCE
    weighted = sum(w * t for w, t in zip(WEIGHTS, TAU))
    alpha = (tau.abs().sum() / weighted.abs().sum() / 3).item()
    mine = cw.merge.lines(SOURCES, BASE, beta=0.0, weights=WEIGHTS)
    check(mine, alpha * weighted)
    one = cw.merge.lines(SOURCES[:1], BASE, alpha=0.2, beta=0.8)
    assert (one["layers.2.w"] - SOURCES[0]["layers.2.w"]).abs().max() < TOLERANCE
    assert (
        one["embed.weight"] - (BASE["embed.weight"] + 0.2 * (SOURCES[0]["embed.weight"] - BASE["embed.weight"]))
    ).abs().max() < TOLERANCE


def test_tall_masks_and_consensus():
    total, levels = TAU.sum(0), [0.3, 0.4, 0.6]
    m = [t.abs() > level * (total - t).abs() for t, level in zip(TAU, levels)]
    for task in range(3):
        check(cw.merge.tall_masks(SOURCES, BASE, task=task, threshold=levels), m[task] * total)
    used = sum(x.int() for x in m) >= 2
    check(cw.merge.consensus(SOURCES, BASE, threshold=levels, scale=0.5), 0.5 * used * total)


def test_tall_masks_as_fusion_bench_computes_them_differ():
    """Its algorithm class compares |theta_0 - tau_t|, weights with task vectors; its helper functions do not."""
    theta, total = flat(BASE), TAU.sum(0)
    theirs = (theta - TAU[1]).abs() > 0.4 * (total - TAU[1]).abs()
    right = TAU[1].abs() > 0.4 * (total - TAU[1]).abs()
    check(cw.merge.tall_masks(SOURCES, BASE, task=1, compat="fusion-bench"), theirs * total)
    assert 0.1 < (theirs != right).float().mean() < 0.6


@pytest.mark.parametrize("compat", [None, "official"])
def test_emr(compat):
    sign = torch.where(TAU.sum(0) > 0, 1.0, -1.0)
    unified = sign * torch.stack([(t * sign).clamp(min=0) for t in TAU]).max(0).values
    for task in range(3):
        mask = (TAU[task] * unified) > 0
        if compat:
            parts = [unflat(x, BASE) for x in (TAU[task].abs(), (mask * unified).abs())]
            before, after = (sum(x.mean() for x in p.values()) for p in parts)
        else:
            before, after = TAU[task].abs().sum(), (mask * unified).abs().sum()
        check(cw.merge.emr(SOURCES, BASE, task=task, compat=compat), before / after * mask * unified)


def test_tsv_m():
    def wanted(k, taus):
        if len(SHAPES[k]) != 2:
            return sum(taus) / 3
        us, ss, vs = zip(*[np.linalg.svd(t.double().numpy(), full_matrices=False) for t in taus])
        r = len(ss[0]) // 3
        u, s = np.zeros_like(us[0]), np.zeros_like(ss[0])
        v = np.zeros_like(vs[0])
        for i in range(3):
            u[:, i * r : (i + 1) * r], s[i * r : (i + 1) * r], v[i * r : (i + 1) * r] = (
                us[i][:, :r],
                ss[i][:r],
                vs[i][:r],
            )
        (pu, _, qu), (pv, _, qv) = np.linalg.svd(u, full_matrices=False), np.linalg.svd(v, full_matrices=False)
        return torch.from_numpy(pu @ qu @ np.diag(s) @ pv @ qv).float()

    check(cw.merge.tsv_m(SOURCES, BASE), wanted)


def test_iso_c():
    def wanted(k, taus):
        if len(SHAPES[k]) != 2:
            return sum(taus) / 3
        u, s, v = np.linalg.svd(sum(taus).double().numpy(), full_matrices=False)
        return torch.from_numpy(u @ np.diag(np.full_like(s, s.mean())) @ v).float()

    check(cw.merge.iso_c(SOURCES, BASE), wanted)


def test_knots():
    """With the linear inner merge the basis changes nothing; with TIES it is TIES on the right factors."""
    mean = cw.merge.knots(SOURCES, BASE, inner="linear", weights=WEIGHTS)
    assert gap(mean, cw.merge.task_arithmetic(SOURCES, BASE, weights=WEIGHTS, normalize=True)) < TOLERANCE

    def wanted(k, taus):
        if len(SHAPES[k]) != 2:
            parts = [top(t.reshape(-1), int(0.5 * t.numel())) for t in taus]
            return disjoint(parts, WEIGHTS, torch.stack(parts).sum(0).sign()).view(taus[0].shape)
        u, s, v = np.linalg.svd(np.concatenate([t.double().numpy() for t in taus], 1), full_matrices=False)
        blocks = [torch.from_numpy(x).float() for x in np.split(v, 3, axis=1)]
        parts = [top(x.reshape(-1), int(0.5 * x.numel())) for x in blocks]
        merged = disjoint(parts, WEIGHTS, torch.stack(parts).sum(0).sign()).view(blocks[0].shape)
        return torch.from_numpy(u * s @ merged.double().numpy()).float()

    check(cw.merge.knots(SOURCES, BASE, density=0.5, weights=WEIGHTS), wanted)


def test_twin_merging():
    router = [0.7, 0.2, 0.1]

    def wanted(k, taus):
        shared = 0.29 * sum(taus)
        out = shared.clone()
        for p, t in zip(router, taus):
            v = (t - shared).double().numpy()
            if v.ndim == 2:
                u, s, vh = np.linalg.svd(v, full_matrices=False)
                r = max(1, int(0.25 * min(v.shape) + 1e-9))
                v = u[:, :r] * s[:r] @ vh[:r]
            out += p * torch.from_numpy(v).float()
        return out

    check(cw.merge.twin_merging(SOURCES, BASE, weights=router, mask_rate=0.75), wanted)
    whole = cw.merge.twin_merging(SOURCES, BASE, weights=[0, 1, 0], mask_rate=0.0)
    assert gap(whole, SOURCES[1]) < TOLERANCE


def test_robust_signatures():
    target, robust = SOURCES[0], SOURCES[1]
    mine = cw.merge.robust_signatures([target, robust], BASE, weights=[1.0, 0.5], shallow=0.5)
    shallow = {"embed.weight", "conv", "layers.0.w", "layers.1.w"}
    wanted = {k: target[k] + (0.5 * (robust[k] - BASE[k]) if k in shallow else 0) for k in BASE}
    assert gap(mine, wanted) < TOLERANCE


def test_variance_corrected():
    """(v - mean) sqrt(mean of the variances / variance of the average) + mean, of every tensor; statistics are none."""
    extra = {"norm.running_mean": (6,), "norm.weight": (6,), "temperature": ()}
    _, sources = models(3, shapes={**SHAPES, **extra})
    mine = cw.merge.variance_corrected(sources, weights=WEIGHTS)
    w = np.array(WEIGHTS) / sum(WEIGHTS)
    for k in sources[0]:
        x = np.stack([s[k].double().numpy() for s in sources])
        mean = np.tensordot(w, x, 1)
        if k not in ("norm.running_mean", "temperature"):
            wanted = sum(p * v.var() for p, v in zip(w, x))
            mean = mean.mean() + (mean - mean.mean()) * math.sqrt(wanted / mean.var())
            assert abs(mine[k].double().var(correction=0).item() - wanted) < 1e-5
        assert np.abs(mine[k].double().numpy() - mean).max() < TOLERANCE


def test_averages_and_arithmetic():
    assert (
        gap(
            cw.merge.linear(SOURCES, weights=WEIGHTS),
            {k: sum(w * s[k] for w, s in zip(WEIGHTS, SOURCES)) / 2.1 for k in BASE},
        )
        < TOLERANCE
    )
    check(cw.merge.task_arithmetic(SOURCES, BASE, scale=0.3), 0.3 * TAU.sum(0))
    assert gap(cw.merge.passthrough(SOURCES[:1]), SOURCES[0]) == 0


def test_slerp_keeps_the_length_and_halves_the_angle():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    for out in (
        cw.merge.slerp([{"w": a}, {"w": b}])["w"],
        cw.merge.nuslerp([{"w": a}, {"w": b}])["w"],
        cw.merge.multislerp([{"w": a}, {"w": b}])["w"],
        cw.merge.karcher([{"w": a}, {"w": b}])["w"],
    ):
        assert torch.allclose(out, torch.full((2,), 3 / math.sqrt(2)), atol=1e-6)
    same = cw.merge.slerp([{"w": a}, {"w": 2 * a}], t=0.25)["w"]
    assert torch.allclose(same, 1.25 * a)


@pytest.mark.parametrize("rows", [False, True])
def test_model_stock(rows):
    def ratio(taus):
        cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in itertools.combinations(taus, 2)]
        c = sum(cosines) / len(cosines)
        return 3 * c / (1 + 2 * c)

    def wanted(k, taus):
        mean = sum(taus) / 3
        if not rows or mean.dim() == 1:
            return ratio([t.reshape(-1) for t in taus]) * mean
        return torch.stack([ratio([t[i].reshape(-1) for t in taus]) * mean[i] for i in range(len(mean))])

    check(cw.merge.model_stock(SOURCES, BASE, filter_wise=rows), wanted)


def test_nearswap():
    mine = cw.merge.nearswap(SOURCES[:1], BASE, t=0.1)
    for k in BASE:
        a, b = BASE[k].double().numpy(), SOURCES[0][k].double().numpy()
        wanted = np.where(np.abs(b - a) <= 0.1, b, a + 0.1 * np.sign(b - a))
        assert np.abs(mine[k].numpy() - wanted).max() < TOLERANCE


def test_arcee_fusion():
    mine = cw.merge.arcee_fusion(SOURCES[:1], BASE)
    for k in BASE:
        x, b = SOURCES[0][k].double().numpy(), BASE[k].double().numpy()
        p, q = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) + 1e-8 for v in (x, b))
        score = np.abs(x - b) * (p * np.log(p / q)).sum(-1, keepdims=True)
        quarters = np.sort(score.reshape(-1))[[int(s * (score.size - 1)) for s in (0.25, 0.5, 0.75)]]
        wanted = np.where(score >= quarters[1] + 1.5 * (quarters[2] - quarters[0]), x, b)
        assert np.abs(mine[k].numpy() - wanted).max() < TOLERANCE


def test_ram():
    changed = TAU.abs() > 0.2
    count, part = changed.sum(0), TAU * changed
    check(cw.merge.ram(SOURCES, BASE, epsilon=0.2), part.sum(0) / count.clamp(min=1))

    def wanted(k, taus):
        x = torch.stack(taus)
        changed = x.abs() > 0.2
        count, out = changed.sum(0), torch.zeros_like(taus[0])
        for t in range(3):
            ratio = (changed[t] & (count > 1)).sum() / (changed[t] & (count == 1)).sum()
            alone = 1 + 0.5 * min(3.0, ratio.item())
            out += x[t] * changed[t] * torch.where(count == 1, alone, 1 / count.clamp(min=1))
        return out

    check(cw.merge.ramplus_tl(SOURCES, BASE, epsilon=0.2, r=0.5, alpha=3.0), wanted)


@pytest.mark.parametrize("compat", [None, "official"])
def test_opcm(compat):
    """The sequence as it runs over a model; the authors' code leaves the diagonal, by clearing a copy of it."""
    taus = [{k: (s[k] - BASE[k]).double().numpy() for k in BASE} for s in SOURCES]
    size = lambda model: math.sqrt(sum((x**2).sum() for x in model.values()))  # noqa: E731
    merged, last = dict(taus[0]), 1.0
    for i in (1, 2):
        mean = sum(size(t) for t in taus[: i + 1]) / (i + 1)
        for k in BASE:
            new = taus[i][k]
            if new.ndim == 2:
                u, s, vh = np.linalg.svd(merged[k])
                inside = u.T @ new @ vh.T
                r = int(np.argmax(np.cumsum(s) / s.sum() > 0.5))
                inside[:r, :r] = 0
                if compat is None:
                    np.fill_diagonal(inside, 0)
                new = u @ inside @ vh
            merged[k] = last * merged[k] + new
        last = size(merged) / mean
        merged = {k: x / last for k, x in merged.items()}
    mine = cw.merge.opcm(SOURCES, BASE, compat=compat)
    assert max(np.abs((mine[k] - BASE[k]).numpy() - merged[k]).max() for k in BASE) < TOLERANCE
