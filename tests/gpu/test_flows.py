"""What a user does on a CUDA device, whole: training, healing, exchanging; and what was made there, elsewhere."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight import exchange, share
from commonweight.adapt import adapt, evaluate, open_host
from commonweight.core.directions import move_
from tests import far
from tests.adapt import tiny
from tests.adapt.test_packing import rows as chats
from tests.gpu.conftest import DEVICE
from tests.laws.subjects import METHODS, small
from tests.lifelong import small as streams

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
IDS = torch.tensor([[2, 5, 9, 14, 3], [2, 7, 8, 30, 3]])
HOW = {"options": {"rank": 2}, "epochs": 2, "batch_size": 4, "lr": 1e-2}


def same_elsewhere(host: cw.Host, folder, task: str, file) -> None:
    """The tenant "t" gives on the processor what it gives here."""
    there = open_host(folder, task, dtype="float32", device="cpu")
    there.load("t", host.save("t", file))
    with torch.no_grad(), host.route("t"):
        here = host.model(input_ids=IDS.to(DEVICE)).logits.float().cpu()
    with torch.no_grad(), there.route("t"):
        torch.testing.assert_close(there.model(input_ids=IDS).logits, here, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", ["lora", "mos", "dora", "adalora", "lst", "mola"])
def test_a_classifier(bert, tmp_path, method):
    host = open_host(bert, "classify", dtype="float32")
    how = {**HOW, "options": {"rank": 2} if method in ("lora", "dora", "mola") else {}, "epochs": 6}
    made = adapt(host, "t", tiny.rows(), dev_rows=tiny.rows(20, 1), method=method, **how)
    assert {p.device.type for p in made.tenant.parameters()} == {DEVICE}
    assert made.curve[-1]["loss"] < made.curve[0]["loss"]
    same_elsewhere(host, bert, "classify", tmp_path / "t.safetensors")


@pytest.mark.parametrize("method", [m for m in METHODS if cw.methods.get(m).begin])
def test_what_begins_from_rows(bert, method):
    if DEVICE == far.NAME and method == "eva":
        pytest.skip("an operation that the device has not")
    host = open_host(bert, "classify", dtype="float32")
    try:
        made = adapt(host, "t", tiny.rows(), method=method, epochs=1, options=small(method))
    except cw.CommonweightError as e:
        assert "sites of kind" in str(e) or "experts" in str(e), e
        return
    assert {p.device.type for p in made.tenant.parameters()} == {DEVICE}


@pytest.mark.parametrize("more", [{}, {"packing": True}, {"gradient_checkpointing": True}, {"compile": True}])
def test_a_language_model(llama, tmp_path, more):
    host = open_host(llama, "lm", dtype="float32")
    made = adapt(host, "t", chats(), task="lm", **HOW, **more)
    assert made.curve[-1]["loss"] < made.curve[0]["loss"]
    same_elsewhere(host, llama, "lm", tmp_path / "t.safetensors")


def test_in_half_precision(llama):
    host = open_host(llama, "lm")
    assert host.model.dtype == torch.bfloat16
    made = adapt(host, "t", chats(), task="lm", **HOW)
    assert next(iter(made.tenant.parameters())).dtype == torch.float32
    assert made.curve[-1]["loss"] < made.curve[0]["loss"]


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_with_ligers_kernels(llama, tmp_path):
    plain, fast = open_host(llama, "lm"), open_host(llama, "lm", liger=True)
    a, b = (adapt(h, "t", chats(), task="lm", **HOW) for h in (plain, fast))
    assert [c["loss"] for c in b.curve] == pytest.approx([c["loss"] for c in a.curve], rel=0.02)


def test_the_same_bits_twice_where_torch_is_told_so(bert, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            made = adapt(open_host(bert, "classify", dtype="float32"), "t", tiny.rows(), method="mos", epochs=1)
            found.append([p.detach().clone() for p in made.tenant.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_a_checkpoint_goes_on(bert, tmp_path):
    """From the processor's checkpoint too: what is random there and here is kept apart."""
    host = open_host(bert, "classify", dtype="float32")
    whole = adapt(host, "whole", tiny.rows(), method="lora", **HOW)

    class Stop(Exception): ...

    def stop(p):
        if p.step == 20:
            raise Stop

    with pytest.raises(Stop):
        adapt(
            host,
            "part",
            tiny.rows(),
            method="lora",
            checkpoint=tmp_path / "c",
            checkpoint_every=5,
            progress=stop,
            **HOW,
        )
    other = open_host(bert, "classify", dtype="float32")
    rest = adapt(other, "part", tiny.rows(), method="lora", checkpoint=tmp_path / "c", resume=True, **HOW)
    assert rest.curve[-1]["loss"] == pytest.approx(whole.curve[-1]["loss"], rel=1e-3)


@pytest.mark.parametrize("method", streams.METHODS)
def test_a_stream(bert, tmp_path, method):
    made = streams.stream(bert, tmp_path / "shop", method, evals=streams.evals())
    assert all(v is not None and math.isfinite(v) for v in made.summary.values())


@pytest.mark.parametrize("method", ["recursive", "masa", "ilr", "sut"])
def test_a_shared_model_heals(llama, method):
    teacher = tf.AutoModelForCausalLM.from_pretrained(llama).to(DEVICE)
    given = [{"text": r["text"]} for r in tiny.rows(60)]
    small = share.share(teacher, method, rows=given[:8])
    assert {p.device.type for p in small.parameters()} == {DEVICE}
    done = share.heal(small, teacher=teacher, rows=given, tokens=1500, batch_size=4, max_length=32)
    assert math.isfinite(done.curve[-1]["loss"])
    small.generate(IDS.to(DEVICE), max_new_tokens=4)


@pytest.mark.parametrize("method", ["fedavg", "fed-sb", "ffa-lora", "fedkseed", "mezo", "one-byte", "diloco", "frl"])
def test_an_exchange(bert, method):
    host = open_host(bert, "classify", dtype="float32")
    how = {"clients": 4, "rounds": 2, "batch_size": 4, "eval_rows": tiny.rows(20, 1), "name": "t"}
    run = exchange.simulate(host, tiny.rows(), method=method, **how)
    assert run.curve[-1]["replies"] == 4 and math.isfinite(run.curve[-1]["loss"])
    assert 0 <= evaluate(host, "t", tiny.rows(20, 1))["accuracy"] <= 1


def test_directions_are_those_of_the_processor():
    """A seed stands for the same numbers on every machine."""
    here, there = (move_(torch.zeros(700, 3, device=d), "a", [(7, 0.5), (8, -1.0)]).cpu() for d in ("cpu", DEVICE))
    assert torch.equal(here, there)


def test_merged_and_exported(llama, tmp_path):
    host = open_host(llama, "lm", dtype="float32")
    adapt(host, "t", chats(), task="lm", **HOW)
    with torch.no_grad(), host.route("t"):
        want = host.model(input_ids=IDS.to(DEVICE)).logits
    with torch.no_grad():
        got = host.merged_model("t").to(DEVICE)(input_ids=IDS.to(DEVICE)).logits
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    host.export_peft("t", tmp_path / "peft")
    host.import_peft("again", tmp_path / "peft")
    with torch.no_grad(), host.route("again"):
        torch.testing.assert_close(host.model(input_ids=IDS.to(DEVICE)).logits, want, rtol=2e-3, atol=2e-3)


def test_a_map_over_the_device_and_the_processor(llama):
    places = {"model.embed_tokens": "cpu", "model.layers.0": 0, "model.layers.1": "cpu", "model.norm": 0,
              "model.rotary_emb": 0, "lm_head": 0}  # fmt: skip
    host, whole = open_host(llama, "lm", dtype="float32", device_map=places), open_host(llama, "lm", dtype="float32")
    a, b = (adapt(h, "t", chats(), task="lm", **HOW) for h in (host, whole))
    assert [c["loss"] for c in a.curve] == pytest.approx([c["loss"] for c in b.curve], rel=1e-3)
