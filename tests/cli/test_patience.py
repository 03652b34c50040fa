"""How long torch's threads wait awake in a server: said before torch is loaded, and only where nobody has said it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from commonweight.cli import serving
try:
    serving.looked_at("not-there", None, "auto", "auto")
except Exception:
    pass
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("said", "found"), (({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None"))
)
def test_it_is_said_before_torch_is_loaded(said, found):
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    out = subprocess.run(
        [sys.executable, "-c", CODE], env=env | said, capture_output=True, text=True, check=True
    ).stdout
    assert out.split() == [found, "False"]
