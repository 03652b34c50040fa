"""Median, trimmed mean, Flag Aggregator and merging on the server, written out; what bad clients can do."""

import statistics

import pytest
import torch

from commonweight.exchange.methods.flag import aggregate
from commonweight.exchange.registry import Reply
from tests.exchange import small


def replies(p, n, seed=0):
    begin = small.start(p)
    return [Reply(c, 3 + 4 * c, small.moved(begin, seed + c)) for c in range(n)]


def after(p, got):
    return p.method.gather(p.setting, p.method.begin(p.setting, small.start(p)), 0, got).tensors


@pytest.mark.parametrize("n", [1, 4, 5])
def test_the_median(bert, n):
    p = small.prepared(bert, "median", {"adapter": "ia3"})
    got = replies(p, n)
    for k, v in after(p, got).items():
        for i in range(0, v.numel(), 17):
            want = statistics.median(float(r.tensors[k].flatten()[i]) for r in got)
            assert float(v.flatten()[i]) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("n", "trim", "out"), [(5, 0.2, 1), (5, 0.19, 0), (10, 0.3, 3), (3, 0.4, 1), (1, 0.4, 0)])
def test_the_trimmed_mean(bert, n, trim, out):
    p = small.prepared(bert, "trimmed-mean", {"adapter": "ia3", "trim": trim})
    got = replies(p, n)
    for k, v in after(p, got).items():
        for i in range(0, v.numel(), 17):
            values = sorted(float(r.tensors[k].flatten()[i]) for r in got)[out : n - out]
            assert float(v.flatten()[i]) == pytest.approx(sum(values) / len(values), abs=1e-6)


def written_out(changes, r):
    """With Y itself: singular vectors of the normalised changes, one reweighting, projections."""
    m = statistics.median(float(c.norm()) for c in changes)
    x = torch.stack([c / c.norm() for c in changes], 1).double()  # (p, n)
    y = torch.linalg.svd(x, full_matrices=False)[0][:, :r]
    w = (1 - (y.T @ x).square().sum(0)).clamp(min=1e-8) ** -0.25
    y = torch.linalg.svd(x * w, full_matrices=False)[0][:, :r]
    return m / len(changes) * (y @ (y.T @ x)).sum(1)


@pytest.mark.parametrize("r", [1, 2, 4, 6])
def test_the_flag(r):
    torch.manual_seed(r)
    changes = [torch.randn(30) * (i + 1) for i in range(6)]
    assert (aggregate(changes, r) - written_out(changes, r)).abs().max() <= 1e-6
    default = aggregate(changes)
    assert (default - aggregate(changes, 3)).abs().max() <= 1e-9


def test_its_norm_is_that_of_a_change():
    """The published sum of projections / r falls with r and is in no unit; ours stays below the median norm, and of
    clients that agree it is their change."""
    torch.manual_seed(0)
    true = torch.randn(200)
    changes = [true + 0.3 * torch.randn(200) for _ in range(9)]
    norms = [float(aggregate(changes, r).norm()) for r in (1, 4, 8)]
    middle = statistics.median(float(c.norm()) for c in changes)
    assert all(0.8 * middle < n <= middle for n in norms)
    x = torch.stack([c / c.norm() for c in changes], 1)
    published = []
    for r in (1, 8):
        y = torch.linalg.svd(x, full_matrices=False)[0][:, :r]
        published.append(float((y @ (y.T @ x)).sum(1).norm() / r))
    assert published[0] > 5 * published[1]
    same = aggregate([true] * 5)
    assert (same - true).abs().max() <= 1e-5
    assert not aggregate([torch.zeros(4)] * 3).any()
    one = aggregate([true, torch.zeros(200), true])
    assert one.isfinite().all()


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "flag"])
def test_a_fifth_that_sends_anything(bert, name):
    """Two of nine send numbers a thousand times as large: the mean is lost, these are not."""
    options = {"adapter": "ia3", **({"trim": 0.25} if name == "trimmed-mean" else {})}
    p, q = small.prepared(bert, name, options), small.prepared(bert, "fedavg", {"adapter": "ia3"})
    begin = small.start(p)
    true = small.moved(begin, 99)
    good = [Reply(c, 5, small.moved(true, c, 0.02)) for c in range(7)]
    bad = [Reply(c, 500, small.moved(begin, c, 100.0)) for c in (7, 8)]

    def off(found):
        return float(sum((found[n] - true[n]).square().sum() for n in true)) ** 0.5

    start = off(begin)
    assert off(after(p, good + bad)) < (0.7 if name == "flag" else 0.3) * start < start < off(after(q, good + bad))


def test_variance_corrected(bert):
    p = small.prepared(bert, "merged", {"rank": 2})
    got = replies(p, 3)
    w = torch.tensor([3.0, 7.0, 11.0]).double() / 21
    for n, v in after(p, got).items():
        x = torch.stack([r.tensors[n] for r in got]).double().flatten(1)
        mean = (w[:, None] * x).sum(0)
        wanted = (w * x.var(1, unbiased=False)).sum()
        mu = mean.mean()
        want = mu + (mean - mu) * (wanted / mean.var(unbiased=False)).sqrt()
        if n.endswith(("A", "B")):
            assert (v.flatten() - want).abs().max() <= 1e-5, n


def test_another_merge_method_on_the_server(bert):
    p = small.prepared(bert, "merged", {"rank": 2, "by": "ties"})
    found = after(p, replies(p, 3))
    assert found.keys() == set(p.setting.travels) and all(v.isfinite().all() for v in found.values())
    with pytest.raises(ValueError, match="merge method"):
        small.prepared(bert, "merged", {"by": "tie"})
