"""Where the small models of the tests lie: `COMMONWEIGHT_TEST_DEVICE=cuda pytest tests/laws tests/serve` runs them on a GPU."""

from __future__ import annotations

import os

import torch

DEVICE = torch.device(os.environ.get("COMMONWEIGHT_TEST_DEVICE", "cpu"))
if DEVICE.type == "cuda":
    torch.backends.cudnn.allow_tf32 = False  # convolutions round to ten bits by default
