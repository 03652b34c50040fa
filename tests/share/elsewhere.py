"""What a process without commonweight gets of saved folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tests import apart
from tests.share.deep import IDS

CHILD = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "commonweight":
            raise ImportError("there is no commonweight here")
sys.meta_path.insert(0, Without())
import json, os, torch, transformers as tf
assert "commonweight" not in sys.modules
tf.dynamic_module_utils.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]
tf.utils.logging.disable_progress_bar()
ids, jobs = torch.load(sys.argv[1]), json.load(open(sys.argv[2]))
out = {}
for name, (auto, folder, trust, dtype) in jobs.items():
    model = getattr(tf, auto).from_pretrained(folder, trust_remote_code=trust, dtype=dtype).eval()
    with torch.no_grad():
        got = model(ids)
    tensors = len({p.data_ptr() for p in model.parameters()})
    out[name] = [got.logits if "logits" in got else got.last_hidden_state, tensors]
    if "logits" in got:
        how = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(model.generate(ids[:1], **how), model.generate(ids[:1], use_cache=False, **how))
torch.save(out, sys.argv[3])
"""


def answers(tmp: Path, jobs: dict[str, tuple[str, str, bool, str]]) -> dict[str, Any]:
    """jobs: {name: (Auto class, folder, trust_remote_code, dtype)} -> {name: (answer, unique tensors)}."""
    torch.save(IDS, tmp / "ids.pt")
    (tmp / "jobs.json").write_text(json.dumps(jobs))
    files = [str(tmp / n) for n in ("ids.pt", "jobs.json", "out.pt")]
    env = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp / "modules")}
    done = apart.run("-W", "ignore", "-c", CHILD, *files, env=env)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp / "out.pt")
