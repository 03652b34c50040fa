"""A shared model behind the engine, and tenants on it."""

from __future__ import annotations

import pytest

import commonweight as cw
from commonweight import share
from tests.serve import served
from tests.share import deep

METHODS = [
    ("recursive", {"loops": 2}), ("recursive", {"loops": 2, "relax": 4}), ("masa", {"matrices": 1}),
    ("structured", {"rank": 8, "first_dense": False}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_shared_model_and_its_tenants_answer_in_the_engine(method, options, tmp_path):
    small = share.share(served.make(), method, **options)
    host = cw.Host(small)
    served.add(host, "a", "lora")
    served.add(host, "b", "ia3")
    requests = [served.ask(n, i) for i, n in enumerate((None, "a", "b", "a"))]
    with cw.Engine(host, max_requests=4, page_size=8) as engine:
        served.right(host, requests, engine.generate(requests))
    folder = share.save(share.share(served.make(), method, **options), tmp_path / "small", form="remote-code")
    with cw.Engine(str(folder), max_requests=4, page_size=8) as engine:
        (answer,) = engine.generate([served.ask(None)])
    assert answer.tokens == served.alone(host, served.ask(None))


def test_depth_per_token_is_refused_by_the_engine():
    model = deep.llama()
    with pytest.raises(cw.CommonweightError, match=r"depth per token reads masks .* and no paged cache; use generate"):
        cw.Engine(share.share(model, "mor", loops=2), max_requests=2)
