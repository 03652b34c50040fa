"""A search on a Ray cluster of two workers gives what it gives in this process."""

import warnings

import pytest

from commonweight.merge.learning import search
from commonweight.workers import workers

from .test_search import MIXED, SPACE, bowl, mixed

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'commonweight[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(("engine", "score", "space"), [("cmaes", bowl, SPACE), ("optuna", mixed, MIXED)])
def test_two_workers(engine, score, space):
    how = {"budget": 9, "seed": 2, "population": 4, "engine": engine}
    with warnings.catch_warnings(), workers(1, "local") as run:
        warnings.simplefilter("ignore")
        found = search.tune(score, space, run=search.side_by_side(run), **how)
    assert found == search.tune(score, space, **how)
