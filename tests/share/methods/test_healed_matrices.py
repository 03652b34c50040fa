"""A few steps of healing: the loss falls, what is tied stays tied, and a folder holds the healed model."""

import pytest
import torch
import transformers as tf

from commonweight import share
from tests.adapt import tiny

ROWS = [{"text": r["text"]} for r in tiny.rows(60)]
METHODS = {
    "masa": {"matrices": 1}, "basis": {"rank": 8}, "structured": {"rank": 4, "guide": True, "first_dense": False},
    "kind": {"genes": 4, "tailors": 2, "groups": 2}, "hashed": {"compression": 8.0},
    "shared_diff": {}, "product_keys": {"n": 8, "width": 8, "k": 4},
}  # fmt: skip


def healed(folder, method, tokens=2500, **more):
    teacher = tf.AutoModelForCausalLM.from_pretrained(folder)
    small = share.share(teacher, method, **METHODS[method])
    how = {"tokens": tokens, "lr": 3e-3, "batch_size": 4, "max_length": 32, "distillation": {"share": 1.0}, **more}
    return share.heal(small, teacher=teacher, rows=ROWS, **how)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(method, llama, tmp_path):
    done = healed(llama, method)
    losses = [c["loss"] for c in done.curve]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    share.save(done.model, tmp_path / "s")
    ids = torch.arange(4, 40).view(2, 18)
    with torch.no_grad():
        assert torch.equal(share.load(tmp_path / "s")(ids).logits, done.model(ids).logits)


def test_a_guided_run_is_resumed_to_the_same_bits(llama, tmp_path):
    def stop(p):
        if p.step == 3:
            raise KeyboardInterrupt

    how = {"tokens": 1200, "dev_rows": 0.2, "checkpoint_every": 2}
    whole = healed(llama, "structured", **how)
    with pytest.raises(KeyboardInterrupt):
        healed(llama, "structured", **how, checkpoint=tmp_path / "c", progress=stop)
    again = healed(llama, "structured", **how, checkpoint=tmp_path / "c", resume=True)
    assert again.curve == whole.curve
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    assert not any(n.endswith(".W") for n, _ in again.model.named_parameters())
