"""Some of the flows of a GPU's users on the device that is not there; `make far` runs all, and the laws."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests import apart

ROOT = Path(__file__).parents[2]
SOME = "classifier and lora or from_rows and fish or language_model and more0 or heals and masa or merged or directions"
WANTED = [shutil.which("c++") or shutil.which("g++"), shutil.which("ninja")]
WANTED += [p for p in [Path(sysconfig.get_path("include"), "Python.h")] if p.exists()]


@pytest.mark.skipif(len([w for w in WANTED if w]) < 3, reason="wants a C++ compiler, ninja and Python's headers")
def test_flows(tmp_path):
    env = {**os.environ, "COMMONWEIGHT_TEST_DEVICE": "far", "PYTEST_ADDOPTS": "", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    env = {k: v for k, v in env.items() if not k.startswith("PYTEST_XDIST")}
    how = "-p no:cacheprovider -W ignore::pytest.PytestAssertRewriteWarning tests/gpu/test_flows.py -k".split()
    done = apart.run("-m", "pytest", *how, SOME, env=env, cwd=ROOT, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]
