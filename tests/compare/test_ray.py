"""A comparison on a Ray cluster of two workers gives what it gives in this process."""

import warnings

import pytest

from commonweight.compare import Cache, Comparison, compare, points, workers

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'commonweight[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_two_workers(bert, data, tmp_path):
    c = Comparison(
        str(bert), data, ("probe", "bitfit"), seeds=2, recipe={"epochs": 1, "batch_size": 8}, dtype="float32"
    )  # fmt: skip
    found = []
    for folder, address in (("here", None), ("ray", "local")):
        with warnings.catch_warnings(), workers(1, address) as run:
            warnings.simplefilter("ignore")
            outcome = compare(c, run, Cache(tmp_path / folder), say=lambda _: None)
        assert len(outcome.runs) == 8 and len(Cache(tmp_path / folder)) == 8
        found.append([p.values for p in points(outcome)])
    assert found[0] == found[1]
