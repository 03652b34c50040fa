"""TensorPoly against the official code's formula, written out with plain loops."""

import math

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"skills": 2, "rank": 2, "alpha": 0.1}
VARIANTS = [{"by": "rank"}, {"by": "rank", "order": 2}]
NAME = "model.layers.1.mlp.up_proj"


def z(logits):
    p = [1 / (1 + math.exp(-v)) for v in logits]
    return [v / sum(p) for v in p]


def normal(rows):
    """LayerNorm over all numbers of a matrix."""
    flat = [v for row in rows for v in row]
    m = sum(flat) / len(flat)
    d = math.sqrt(sum((v - m) ** 2 for v in flat) / len(flat) + 1e-5)
    return [[(v - m) / d for v in row] for row in rows]


def product(leaves, width):
    """leaves: N matrices (r, p) as lists -> (r, width)."""
    pairs = []
    for u, v in zip(leaves[::2], leaves[1::2]):
        pairs.append(normal([[a * b for a in x for b in y] for x, y in zip(u, v)]))
    rows = pairs[0] if len(pairs) == 1 else [[a * b for a in x for b in y] for x, y in zip(*pairs)]
    return torch.tensor([row[:width] for row in rows])


@pytest.mark.parametrize(("by", "order"), [("rank", 2), ("rank", 4), ("order", 2), ("order", 4)])
def test_formula(by, order):
    host = cw.Host(make("llama")[0])
    t = stir(host.add("t", "tensorpoly", skills=3, rank=2, by=by, order=order, alpha=0.6), std=0.5)
    low = {}
    logits = t.pools[f"{NAME}.logits"].tolist()
    for slot, width in (("a", 32), ("b", 64)):
        leaves = t.pools[f"{NAME}.{slot}"].detach()  # (N, S, r, p)
        if by == "rank":
            skills = [product(leaves[:, s].tolist(), width) for s in range(3)]
            low[slot] = sum(w * a for w, a in zip(z(logits[0]), skills))
        else:
            mixed = [sum(w * leaves[n, s] for s, w in enumerate(z(logits[n]))).tolist() for n in range(order)]
            low[slot] = product(mixed, width)
    want = host.weight(NAME) + 0.6 / 2 * low["b"].T @ low["a"]
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want, rtol=1e-4, atol=1e-5)
    assert (want - host.weight(NAME)).abs().max() > 1e-2


def test_count():
    """N S r (p + q), and the logits: at widths 768 and 3072, p = 6 and q = 8 of order 4."""
    site = [cw.Site("up", 3072, 768)]
    assert cw.plan("tensorpoly", site).count() == 4 * 8 * 16 * (6 + 8) + 4 * 8
    assert cw.plan("tensorpoly", site, order=2, by="rank").count() == 2 * 8 * 16 * (28 + 56) + 8
