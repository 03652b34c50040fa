"""Where small models of the tests lie: on a GPU by `COMMONWEIGHT_TEST_DEVICE=cuda pytest tests/laws tests/serve`."""

from __future__ import annotations

import os

import torch

from tests import far

CHOSEN = os.environ.get("COMMONWEIGHT_TEST_DEVICE", "cpu")
if CHOSEN == far.NAME:
    far.begin()
DEVICE = torch.device(CHOSEN)
if DEVICE.type == "cuda":
    torch.backends.cudnn.allow_tf32 = False  # convolutions round to ten bits by default
