"""The loops need numba; what they are made of is kept between runs of the tests as between merges."""

from __future__ import annotations

import pytest

from commonweight.merge.loops import load


@pytest.fixture
def loops(monkeypatch):
    """Loops for merges of any size."""
    pytest.importorskip("numba")
    monkeypatch.setenv(load.SWITCH, "on")
    found = load.loops(0)
    assert found is not None
    return found
