"""Where small models of the tests lie: on a GPU by `COMMONWEIGHT_TEST_DEVICE=cuda pytest tests/laws tests/serve`."""

from __future__ import annotations

import os

import torch

DEVICE = torch.device(os.environ.get("COMMONWEIGHT_TEST_DEVICE", "cpu"))
if DEVICE.type == "cuda":
    torch.backends.cudnn.allow_tf32 = False  # convolutions round to ten bits by default
