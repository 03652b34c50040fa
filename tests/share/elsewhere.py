"""What a process without commonweight gets of saved folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.share.deep import IDS
from tests.share.test_folders import CHILD


def answers(tmp: Path, jobs: dict[str, tuple[str, str, bool, str]]) -> dict[str, Any]:
    """jobs: {name: (Auto class, folder, trust_remote_code, dtype)} -> {name: (answer, unique tensors)}."""
    torch.save(IDS, tmp / "ids.pt")
    (tmp / "jobs.json").write_text(json.dumps(jobs))
    files = [str(tmp / n) for n in ("ids.pt", "jobs.json", "out.pt")]
    env = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp / "modules")}
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *files]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp / "out.pt")
