"""A few steps of healing, for every method alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

from commonweight import share
from tests.adapt import tiny
from tests.share.deep import far

ROWS = [{"text": r["text"]} for r in tiny.rows(60)]


def falls(
    method: str, options: dict[str, Any], tmp_path: Path, by: float = 0.9, sample: Any = None, **more: Any
) -> Any:
    """Heals a small model that knows nothing until its loss is lower; a folder holds the healed model."""
    teacher = tf.AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "base", "llama"))
    small = share.share(teacher, method, **options)
    draw = None if sample is None else sample(small)
    how = {"sample": draw, "tokens": 2500, "lr": 3e-3, "batch_size": 4, "max_length": 32, **more}
    done = share.heal(small, teacher=None, rows=ROWS, **how)
    losses = [c["loss"] for c in done.curve]
    assert sum(losses[-5:]) < by * sum(losses[:5]), losses
    share.save(done.model, tmp_path / "s")
    ids = torch.arange(4, 40).view(2, 18)
    with torch.no_grad():
        assert far(share.load(tmp_path / "s")(ids).logits, done.model(ids).logits) < 1e-6
    return done
