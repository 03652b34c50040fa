from __future__ import annotations

import pytest

from tests.adapt import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("lifelong") / "model")
