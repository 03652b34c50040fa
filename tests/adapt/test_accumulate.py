"""Batches of one step, and blocks computed once more: the same training in less memory."""

import pytest
import torch
from transformers import Trainer

from commonweight import CommonweightError, Host
from commonweight.adapt import adapt, open_host
from commonweight.adapt.recompute import recomputed
from tests.adapt import tiny


def texts(n=24):
    """Rows of very different length: a mean of means would be another number."""
    return [{"text": " ".join(tiny.WORDS[: 2 + (7 * i) % 30])} for i in range(n)]


def trained(folder, rows, task, **more):
    host = open_host(folder, task, dtype="float32")
    how = {"method": "lora", "options": {"rank": 2}, "epochs": 2, "lr": 1e-2, **more}
    result = adapt(host, "t", rows, task=task, **how)
    return result, {n: p.detach().clone() for n, p in result.tenant.named_parameters()}


@pytest.mark.parametrize("task", ["lm", "classify"])
def test_small_batches_give_the_step_of_a_large_one(llama, bert, task):
    folder, rows = (llama, texts(22)) if task == "lm" else (bert, tiny.rows(22))
    whole, a = trained(folder, rows, task, batch_size=8)
    parts, b = trained(folder, rows, task, batch_size=2, accumulate=4)
    assert whole.steps == parts.steps == 6
    for n in a:
        assert torch.allclose(a[n], b[n], atol=2e-4), n
    assert [c["step"] for c in parts.curve] == [1, 2, 3, 4, 5, 6]
    assert parts.curve[0]["loss"] == pytest.approx(whole.curve[0]["loss"], rel=1e-4)


def test_a_long_text_weighs_more(llama, monkeypatch):
    """The mean over the tokens of the step, not the mean of its batches' means."""
    host = open_host(llama, "lm", dtype="float32")
    rows = [{"text": "w1 w2"}, {"text": " ".join(tiny.WORDS)}]
    seen = []
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, model, inputs, n=None, of=Trainer.training_step: seen.append((
            int((inputs["labels"][:, 1:] != -100).sum()), n)) or of(self, model, inputs, n)
    )  # fmt: skip
    adapt(host, "t", rows, task="lm", method="lora", batch_size=1, accumulate=2, epochs=1)
    assert sorted(seen) == [(2, 42), (40, 42)]


def test_resumed_in_the_middle_of_an_epoch(bert, tmp_path):
    def stop(p):
        if p.step == 3:
            raise KeyboardInterrupt

    how = {"batch_size": 3, "accumulate": 2, "checkpoint_every": 2, "gradient_checkpointing": True}
    _, whole = trained(bert, tiny.rows(20), "classify", **how)
    with pytest.raises(KeyboardInterrupt):
        trained(bert, tiny.rows(20), "classify", **how, checkpoint=tmp_path / "c", progress=stop)
    _, again = trained(bert, tiny.rows(20), "classify", **how, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(whole[n], again[n]) for n in whole)


@pytest.mark.parametrize("task", ["lm", "classify"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_recomputed_blocks_give_the_same_bits(request, kind, task):
    if (kind, task) == ("bert", "lm"):
        pytest.skip("not a language model")
    folder = request.getfixturevalue(kind)
    rows = texts(10) if task == "lm" else tiny.rows(10)
    how = {"batch_size": 4, "options": {"rank": 2, "dropout": 0.3}, "epochs": 1}
    _, plain = trained(folder, rows, task, **how)
    _, again = trained(folder, rows, task, **how, gradient_checkpointing=True)
    assert all(torch.equal(plain[n], again[n]) for n in plain)


def test_every_block_runs_twice_a_step(llama):
    host = open_host(llama, "lm", dtype="float32")
    host.add("t", "lora")
    ran = []
    for i, layer in enumerate(host.model.model.layers):
        layer.self_attn.q_proj.register_forward_hook(lambda *_, i=i: ran.append(i))
    ids = torch.tensor([[1, 5, 6, 7]])
    was = host.model.config.use_cache
    with recomputed(host):
        assert host.model.config.use_cache is False
        with host.route("t"):
            loss = host.model(input_ids=ids, labels=ids).loss
        loss.backward()
    assert sorted(ran) == [0, 0, 1, 1] and host.model.config.use_cache == was
    assert all("forward" not in layer.__dict__ for layer in host.model.model.layers)


def test_a_model_without_blocks():
    host = Host(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    with pytest.raises(CommonweightError, match="Sequential has no list of blocks"), recomputed(host):
        pass
