"""All tests in this folder want a CUDA device: `pytest -m gpu`. Without one they are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("COMMONWEIGHT_TEST_DEVICE", "cuda")  # cpu: to try the tests themselves


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
