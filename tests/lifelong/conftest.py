from __future__ import annotations

import os

import pytest

from tests.adapt import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("lifelong") / "model")


@pytest.fixture(scope="package", autouse=True)
def quick():
    """Without what takes most of the time of a training of two steps: a collection of all garbage, and waiting for the
    disk. Neither changes a bit."""
    from accelerate.utils import memory

    with pytest.MonkeyPatch.context() as m:
        m.setattr(memory.gc, "collect", lambda *_: 0)
        m.setattr(os, "fsync", lambda _: None)
        yield
