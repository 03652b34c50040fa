"""FedPara: the error of averaging four factors is told."""

import pytest

from commonweight.exchange.registry import Reply, State
from tests.exchange import small


def test_the_error_with_the_products_formed(bert):
    p = small.prepared(bert, "fedpara", {"rank": 2})
    begin = small.start(p)
    each = [Reply(c, 1, small.moved(begin, c)) for c in range(3)]
    state = p.method.gather(p.setting, State(begin), 0, each)
    error = size = 0.0
    for n in [n for n in begin if n.endswith(".A1")]:
        site = n[:-3]

        def product(t, site=site):
            A1, A2, B1, B2 = (t[f"{site}.{k}"].double() for k in ("A1", "A2", "B1", "B2"))
            return (B1.T @ A1) * (B2.T @ A2)

        mean = sum(product(r.tensors) for r in each) / 3
        error, size = error + (mean - product(state.tensors)).square().sum(), size + mean.square().sum()
    assert state.seen["averaging_error"] == pytest.approx(float((error / size) ** 0.5), rel=1e-5)
