"""Methods with statistics, with steps, with codecs: their formulas written out again in NumPy or with autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.core.ternary import ternary
from commonweight.merge.maths.rounding import rounded
from commonweight.merge.methods.skillpack import kind

from ..sample import SHAPES, flat, gap, models, statistics, unflat

TOLERANCE = 2e-6
WEIGHTS = [1.0, 0.7, 0.4]
BASE, SOURCES = models(3, seed=5)
TAU = torch.stack([flat(s) - flat(BASE) for s in SOURCES])
N = TAU.shape[1]
FISHER, GRAM = statistics(3, "fisher"), statistics(3, "gram")


def numpy(state):
    return {k: t.double().numpy() for k, t in state.items()}


def test_fisher_paper():
    """Where no model depends on a parameter, the target's stays (favor_first), or it is the weighted mean."""
    files = [{k: t.clone() for k, t in f.items()} for f in FISHER]
    for f in files:
        f["fisher/layers.2.bias"][3] = 0.0
    mine = cw.merge.fisher(SOURCES, weights=WEIGHTS, statistics=files)
    even = cw.merge.fisher(SOURCES, weights=WEIGHTS, statistics=files, favor_first=False)
    for k in BASE:
        x = [s[k].double().numpy() for s in SOURCES]
        f = [s[f"fisher/{k}"].double().numpy() for s in files]
        for out, floors in ((mine, (1e-6, 0, 0)), (even, (1e-6, 1e-6, 1e-6))):
            g = [np.maximum(v, floor) for v, floor in zip(f, floors)]
            wanted = sum(w * a * b for w, a, b in zip(WEIGHTS, g, x)) / sum(w * a for w, a in zip(WEIGHTS, g))
            assert np.abs(out[k].numpy() - wanted).max() < TOLERANCE
    assert mine["layers.2.bias"][3] == SOURCES[0]["layers.2.bias"][3]
    mean = sum(w * s["layers.2.bias"][3] for w, s in zip(WEIGHTS, SOURCES)) / sum(WEIGHTS)
    assert abs(even["layers.2.bias"][3] - mean) < TOLERANCE


def test_fisher_of_equal_precision_is_the_average_and_its_scale_counts_unless_normalised():
    ones = [{k: torch.ones_like(t) for k, t in f.items()} for f in FISHER]
    assert gap(cw.merge.fisher(SOURCES, statistics=ones), cw.merge.linear(SOURCES)) < TOLERANCE
    louder = [ones[0], {k: 100 * t for k, t in ones[1].items()}, ones[2]]
    assert gap(cw.merge.fisher(SOURCES, statistics=louder), cw.merge.linear(SOURCES)) > 0.1
    assert gap(cw.merge.fisher(SOURCES, statistics=louder, normalize=True), cw.merge.linear(SOURCES)) < 1e-5


def test_fisher_as_fusion_bench_has_it():
    lengths = [np.sqrt(sum((t.double().numpy() ** 2).sum() for t in f.values())) for f in FISHER]
    nu = np.array([1 / (n + 1e-6) for n in lengths])
    nu = nu / nu.sum() * np.array(WEIGHTS)
    mine = cw.merge.fisher(SOURCES, weights=WEIGHTS, statistics=FISHER, compat="fusion-bench")
    for k in BASE:
        f = [v * (s[f"fisher/{k}"].double().numpy() + 1e-6) for v, s in zip(nu, FISHER)]
        wanted = sum(a * s[k].double().numpy() for a, s in zip(f, SOURCES)) / sum(f)
        assert np.abs(mine[k].numpy() - wanted).max() < TOLERANCE


def test_regmean():
    mine = cw.merge.regmean(SOURCES, statistics=GRAM, alpha=0.7)
    for k in BASE:
        x = [s[k].double().numpy() for s in SOURCES]
        if len(SHAPES[k]) == 2:
            grams = [s[f"gram/{k}"].double().numpy() for s in GRAM]
            grams = [g * (0.7 + 0.3 * np.eye(len(g))) for g in grams]
            wanted = (np.linalg.inv(sum(grams)) @ sum(g @ w.T for g, w in zip(grams, x))).T
        else:
            wanted = sum(x) / 3
        assert np.abs(mine[k].numpy() - wanted).max() < 1e-5


def test_regmean_is_the_least_squares_answer_of_the_models_own_inputs():
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(200, 8, generator=g) @ torch.randn(8, 8, generator=g) for _ in range(2)]
    w = [torch.randn(5, 8, generator=g) for _ in range(2)]
    files = [{"gram/w": a.T @ a / len(a)} for a in x]
    mine = cw.merge.regmean([{"w": a} for a in w], statistics=files, alpha=1.0)["w"]
    answers = torch.cat([a @ b.T for a, b in zip(x, w)]).double()
    wanted = torch.linalg.lstsq(torch.cat(x).double(), answers).solution.T
    assert (mine - wanted).abs().max() < 1e-4


def test_regmean_of_inputs_that_leave_directions_empty():
    """A singular sum of Grams: both models' answers on their own inputs are kept, and nothing blows up."""
    w = [torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    x = [torch.eye(6)[:2], torch.eye(6)[2:4]]
    files = [{"gram/w": a.T @ a / 2} for a in x]
    out = cw.merge.regmean([{"w": a} for a in w], statistics=files, alpha=1.0)["w"]
    assert torch.allclose(out[:, :2], w[0][:, :2], atol=1e-5) and torch.allclose(out[:, 2:4], w[1][:, 2:4], atol=1e-5)
    assert out[:, 4:].abs().max() < 1e-5


def test_bayesian():
    """The minimum of the regression with the anchor as prior mean: the gradient there is zero."""
    experts, anchor = SOURCES[:2], cw.merge.task_arithmetic(SOURCES[:2], BASE, scale=0.4)
    for files in (None, GRAM[:2]):
        mine = cw.merge.bayesian([*experts, anchor], BASE, statistics=files, prior=0.3)
        for k in BASE:
            if len(SHAPES[k]) != 2:
                assert torch.equal(mine[k], anchor[k])
                continue
            if files is None:
                grams = [(e[k] - BASE[k]).double() for e in experts]
                grams = [t.T @ t for t in grams]
                grams = [g / g.diagonal().mean() for g in grams]
            else:
                grams = [s[f"gram/{k}"].double() for s in files]
            strength = 0.3 * sum(grams).diagonal().mean()
            w = mine[k].double().requires_grad_(True)
            fit = sum(((w - e[k].double()) @ g * (w - e[k].double())).sum() for e, g in zip(experts, grams))
            (fit + strength * (w - anchor[k].double()).square().sum()).backward()
            assert w.grad is not None and w.grad.abs().max() < 1e-4
    assert gap(cw.merge.bayesian([*experts, anchor], BASE, prior=1e9), anchor) < 1e-5


def wudi_loss(tau, taus):
    return sum(((tau - t) @ t.T).square().sum() / t.square().sum() for t in taus)


def test_wudi_walks_as_autograd_would_and_its_exact_form_is_the_minimum():
    mine, exact = cw.merge.wudi(SOURCES, BASE, steps=20, lr=1e-3), cw.merge.wudi(SOURCES, BASE, solver="exact")
    for k in BASE:
        taus = [s[k] - BASE[k] for s in SOURCES]
        if len(SHAPES[k]) != 2:
            assert (mine[k] - BASE[k] - sum(taus) / 3).abs().max() < TOLERANCE
            continue
        tau = torch.nn.Parameter(sum(taus).clone())
        adam = torch.optim.Adam([tau], lr=1e-3)
        for _ in range(20):
            adam.zero_grad()
            wudi_loss(tau, taus).backward()
            adam.step()
        assert (mine[k] - BASE[k] - tau.detach()).abs().max() < 1e-5
        least = (exact[k] - BASE[k]).double().requires_grad_(True)
        wudi_loss(least, [t.double() for t in taus]).backward()
        assert least.grad is not None and least.grad.abs().max() < 1e-4
        assert wudi_loss(exact[k] - BASE[k], taus) < wudi_loss(mine[k] - BASE[k], taus) < wudi_loss(sum(taus), taus)


@pytest.mark.parametrize("compat", [None, "official"])
def test_doge(compat):
    """The authors' steps with autograd, SVDs and kthvalue; embeddings and all, biases stay the base's."""
    names = sorted(k for k in BASE if len(SHAPES[k]) == 2)
    taus = [{k: s[k] - BASE[k] for k in names} for s in SOURCES]
    rates = [{k: 0.07 / t[k].norm() for k in names} for t in taus]
    delta = {}
    for k in names:
        r = min(SHAPES[k])
        left = torch.zeros(SHAPES[k][0], r, dtype=torch.float64)
        for i, t in enumerate(taus):
            u = torch.linalg.svd(t[k].double(), full_matrices=False)[0]
            left[:, i * (r // 3) : (i + 1) * (r // 3)] = u[:, : r // 3]
        top = torch.linalg.svd(left, full_matrices=False)[0][:, : int(r / 2)]
        away = (torch.eye(len(top), dtype=torch.float64) - top @ top.T).float()
        d = torch.nn.Parameter(torch.zeros(SHAPES[k]))
        adam = torch.optim.Adam([d], lr=1e-2)
        for _ in range(30):
            adam.zero_grad()
            merged = sum(m[k] * (t[k] + d) for m, t in zip(rates, taus))
            sum(((v[k] * (merged - v[k])).sum(1) ** 2).sum() for v in taus).backward()
            d.grad = away @ d.grad
            adam.step()
        delta[k] = d.detach()
    out = {k: torch.zeros(SHAPES[k]) for k in names}
    for m, t in zip(rates, taus):
        vector = torch.cat([t[k].flatten() for k in names])
        keep = int(0.3 * len(vector)) + (1 if compat else 0)
        limit = vector.abs().sort(descending=True).values[keep - 1]
        for k in names:
            out[k] += m[k] * (t[k] + delta[k]) * (t[k].abs() >= limit)
    mine = cw.merge.doge(SOURCES, BASE, steps=30, lr=1e-2, subspace=2.0, compat=compat)
    for k in BASE:
        assert (mine[k] - BASE[k] - out.get(k, 0)).abs().max() < 1e-5
        assert k in out or torch.equal(mine[k], BASE[k])
    mean = cw.merge.doge(SOURCES, BASE, steps=1, others="mean")
    assert (mean["conv"] - BASE["conv"] - sum(s["conv"] - BASE["conv"] for s in SOURCES) / 3).abs().max() < TOLERANCE


def test_compeft():
    parts = []
    for tau, alpha, w in zip(TAU, (1.0, 2.0, 3.0), WEIGHTS):
        kept = torch.zeros(N)
        kept[tau.abs().argsort(descending=True)[: int(0.1 * N)]] = 1
        parts.append(w * alpha * tau.double().std(correction=0) * kept * tau.sign())
    mine = cw.merge.compeft(SOURCES, BASE, weights=WEIGHTS, density=0.1, alpha=[1, 2, 3])
    assert gap(mine, unflat(flat(BASE) + sum(parts).float(), BASE)) < TOLERANCE


def test_compeft_of_one_model_is_what_the_ternary_form_gives_back():
    signs, sigma = ternary(TAU[0], 0.25)
    assert signs.dtype == torch.int8 and int((signs != 0).sum()) == int(0.25 * N)
    mine = cw.merge.compeft(SOURCES[:1], BASE, density=0.25, alpha=2.0)
    assert gap(mine, unflat(flat(BASE) + 2 * sigma * signs, BASE)) < TOLERANCE
    same, level = ternary(torch.tensor([2.0, -2, 2, 1, 0, 0]), 0.34)
    assert same.tolist() == [1, -1, 0, 0, 0, 0] and level == pytest.approx(np.std([2, -2, 2, 1, 0, 0]))
    assert ternary(torch.zeros(0), 0.5)[0].shape == (0,)


def test_layer_swap():
    shapes = {**{f"model.layers.{i}.w": (2, 2) for i in range(9)}, "model.norm": (2,)}
    _, (a, b) = models(2, shapes=shapes)
    out = cw.merge.layer_swap([a, b], bottom=2, top=1, transition=2, inside=0.25, outside=0.0)
    shares = [1, 1, 0.25, 0.25, 0, 0, 0.25, 0.25, 1]
    for i, part in enumerate(shares):
        k = f"model.layers.{i}.w"
        assert (out[k] - (1 - part) * a[k] - part * b[k]).abs().max() < 1e-6, k
    assert torch.equal(out["model.norm"], a["model.norm"])
    assert gap(cw.merge.layer_swap([a, b], bottom=9, top=0, outside=1.0), b) < 1e-6


PACKED = {"embed_tokens.weight": (20, 8), "layers.0.self_attn.q_proj.weight": (8, 8),
          "layers.0.mlp.up_proj.weight": (16, 8), "layers.0.norm.weight": (8,)}  # fmt: skip


def nearest(x, bits):
    """Row by row the nearest of 2^bits equal levels, one of them zero, from the least to the largest number."""
    out = np.empty_like(x)
    for i, row in enumerate(x):
        low, high = min(row.min(), 0), max(row.max(), 0)
        step = (high - low) / (2**bits - 1)
        zero = np.round(-low / step)
        out[i] = step * (np.clip(np.round(row / step) + zero, 0, 2**bits - 1) - zero)
    return out


def gptq(w, gram, bits):
    """The authors' loop without blocks and groups: Cholesky of the damped inverse, columns of large inputs first."""
    order = np.argsort(-np.diag(gram), kind="stable")
    w, h = w[:, order].copy(), gram[order][:, order] + 0.01 * np.diag(gram).mean() * np.eye(len(gram))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
    step = (high - low) / (2**bits - 1)
    zero = np.round(-low / step)
    out = np.empty_like(w)
    for j in range(w.shape[1]):
        q = step * (np.clip(np.round(w[:, j] / step) + zero, 0, 2**bits - 1) - zero)
        out[:, order[j]] = q
        w[:, j:] -= np.outer((w[:, j] - q) / u[j, j], u[j, j:])
    return out


@pytest.mark.parametrize("known", [False, True])
def test_skillpack_by_kind_of_module(known):
    base, (one,) = models(1, shapes=PACKED)
    assert [kind(k) for k in list(PACKED)[:3]] == ["embedding", "attention", "mlp"]
    assert kind("bert.encoder.layer.0.attention.self.query.weight") == "attention"
    assert kind("bert.encoder.layer.0.intermediate.dense.weight") == "mlp" and kind("classifier.weight") == "embedding"
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 9)
    files = [{f"gram/{k}": x.T @ x / 40 for k in list(PACKED)[1:3]}] if known else None
    options = {"density": 0.25, "rank": 6, "fine": 1, "middle": 2, "middle_bits": 5, "bits": 3}
    out = cw.merge.skillpack([one], base, statistics=files, **options)
    tau = {k: (one[k] - base[k]).double().numpy() for k in base}
    limit = np.sort(np.abs(tau["embed_tokens.weight"]).ravel())[::-1][39]
    wanted = {
        "embed_tokens.weight": tau["embed_tokens.weight"] * (np.abs(tau["embed_tokens.weight"]) >= limit),
        "layers.0.norm.weight": tau["layers.0.norm.weight"],
    }
    gram = (x.T @ x / 40).double().numpy()
    for k in list(PACKED)[1:3]:
        u, s, v = np.linalg.svd(tau[k], full_matrices=False)
        sign = np.sign([row[np.abs(row).argmax()] for row in v])
        u, v, wanted[k] = u * sign, v * sign[:, None], 0.0
        for a, b, bits in ((0, 1, 8), (1, 3, 5), (3, 6, 3)):
            v2 = gptq(v[a:b], gram, bits) if known else nearest(v[a:b], bits)
            met = s[a:b, None] * v2
            u2 = gptq(u[:, a:b], met @ gram @ met.T, bits) if known else nearest(u[:, a:b], bits)
            wanted[k] = wanted[k] + u2 @ met
    for k in base:
        assert np.abs((out[k] - base[k]).numpy() - wanted[k]).max() < 1e-5, k
    assert gap(cw.merge.skillpack([one], base, density=1.0, energy=1.0, fine=99), one) < 0.02


def test_skillpack_official_ranks_and_whole_embeddings():
    shapes = {"embed.weight": (5, 4), "mlp.up.weight": (6, 4)}
    base, (one,) = models(1, shapes=shapes)
    out = cw.merge.skillpack([one], base, rank=1, density=0.1, fine=99, compat="official")
    assert torch.allclose(out["embed.weight"], one["embed.weight"], atol=1e-6)
    assert (out["mlp.up.weight"] - one["mlp.up.weight"]).abs().max() < 0.02, "rank 1400, and so all of it"


def test_rounding_against_the_inputs_loses_less_of_the_outputs():
    """Wider than one group of columns; inputs that are correlated, and one that never comes."""
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(24, 300, generator=g), torch.randn(500, 300, generator=g) @ torch.randn(300, 300, generator=g)
    x[:, 7] = 0
    losses = []
    for gram in (None, x.T @ x):
        q = rounded(w, 3, gram)
        losses.append((x.double() @ (q - w.double()).T).square().sum())
    assert losses[1] < 0.5 * losses[0]
    q = rounded(w, 3)
    assert all(len(q[i, j : j + 128].unique()) <= 8 for i in range(24) for j in (0, 128, 256))
    assert not rounded(torch.zeros(3, 4), 2).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cw.merge.fisher(SOURCES), "fisher: the option statistics is missing"),
        (lambda: cw.merge.fisher(SOURCES, statistics=FISHER[:2]), "statistics has 2 files for 3 models"),
        (lambda: cw.merge.fisher(SOURCES, statistics=GRAM), r"statistics\[0\] holds gram; wanted fisher"),
        (lambda: cw.merge.fisher(SOURCES, statistics=[3, 4, 5]), r"statistics\[0\] is a int; wanted statistics"),
        (lambda: cw.merge.fisher(SOURCES, statistics=["no"] * 3), r"statistics\[0\]: no: no such file"),
        (
            lambda: cw.merge.fisher(SOURCES, statistics=[*FISHER[:2], {"fisher/conv": FISHER[2]["fisher/conv"]}]),
            r"embed.weight: fisher: statistics\[2\] has no fisher of it",
        ),
        (
            lambda: cw.merge.fisher(SOURCES, statistics=[*FISHER[:2], {**FISHER[2], "fisher/conv": torch.ones(3)}]),
            r"conv: fisher: statistics\[2\] has fisher of shape \(3,\), wanted \(4, 3, 5\)",
        ),
        (
            lambda: cw.merge.regmean(SOURCES, statistics=[*GRAM[:2], {k: t * torch.nan for k, t in GRAM[2].items()}]),
            "has NaN or infinity in its gram",
        ),
        (lambda: cw.merge.bayesian(SOURCES, BASE, statistics=GRAM), "statistics has 3 files for 2 models"),
        (lambda: cw.merge.concrete(SOURCES, BASE, mask=GRAM[0]), "mask holds gram; wanted mask, as learn"),
        (lambda: cw.merge.layer_swap(SOURCES[:2], bottom=0, top=0), "bottom and top are 0: nothing is swapped"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(cw.CommonweightError, match=message):
        call()
