"""The laws, training and mixed batches on a CUDA device, of bases in floating point and of quantised ones."""

from __future__ import annotations

import pytest
import torch

import commonweight as cw
from tests.gpu.conftest import DEVICE
from tests.host.quantised import IDS, KINDS, here, in_float, quantised
from tests.laws.subjects import METHODS, can, small, stir
from tests.models import answer, make

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
ROUGH = {"rtol": 2e-3, "atol": 2e-3}  # TF32 and other orders of sums


def on_device(kind: str):
    model, batch = make(kind)
    return model.to(DEVICE), {k: v.to(DEVICE) for k, v in batch.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "moe"])
@pytest.mark.parametrize("method", METHODS)
def test_a_tenant_answers_as_on_the_processor(method, kind, tmp_path):
    model, batch = make(kind)
    host = cw.Host(model)
    if not can(method, host):
        pytest.skip("nothing to read")
    stir(host.add("t", method, **small(method)))
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    moved, inputs = on_device(kind)
    there = cw.Host(moved)
    there.load("t", host.save("t", tmp_path / "t.safetensors"))
    assert {p.device.type for p in there["t"].parameters()} <= {DEVICE}
    with torch.no_grad(), there.route("t"):
        torch.testing.assert_close(answer(moved, inputs).cpu(), want, **ROUGH)


@pytest.mark.parametrize("kind", ["llama", "bert", "moe"])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_in_a_mixed_batch_is_that_row_alone(method, kind):
    model, batch = on_device(kind)
    host = cw.Host(model)
    if not can(method, host):
        pytest.skip("nothing to read")
    for i, name in enumerate(("one", "two")):
        stir(host.add(name, method, seed=i, **small(method)), i)
    route = ["one", None, "two", "one"]
    with torch.no_grad(), host.route(route):
        mixed = answer(model, batch)
    for i, name in enumerate(route):
        with torch.no_grad(), host.route(name):
            alone = answer(model, {k: v[i : i + 1] for k, v in batch.items()})
        torch.testing.assert_close(mixed[i : i + 1], alone, **ROUGH)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_moves_the_tenant_alone(checkpointed):
    model, batch = on_device("llama")
    host = cw.Host(model)
    tenant = host.add("t", "lora", rank=2)
    if checkpointed:
        model.gradient_checkpointing_enable()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser, losses = torch.optim.AdamW(tenant.parameters(), lr=1e-2), []
    model.train()
    for _ in range(5):
        with host.route("t"):
            loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("kind", [here(k) for k in KINDS if not k.startswith("gptq")])
def test_a_quantised_base(kind, tmp_path):
    """Trains after an evaluation as before it, and a mixed batch is right."""
    host = cw.Host(quantised(kind).to(DEVICE))
    plain = cw.Host(in_float(host.model).to(DEVICE))
    ids = IDS.to(DEVICE)
    for h in (host, plain):
        for i, name in enumerate("ab"):
            stir(h.add(name, "lora", rank=2, seed=i), i)
    found = []
    for h in (host, plain):
        with torch.no_grad(), h.route(["a", "b"]):
            y = h.model(ids).logits.float()
        with h.route("a"):
            h.model(ids, labels=ids).loss.backward()
        found.append((y, torch.cat([p.grad.flatten() for p in h["a"].parameters()])))  # type: ignore[union-attr]
    for mine, theirs in zip(*found):
        assert (mine - theirs).norm() < 0.1 * theirs.norm()
    host.load("again", host.save("a", tmp_path / "a.safetensors"))


@pytest.mark.parametrize("config", ["FineGrainedFP8Config", "Mxfp4Config", "HqqConfig"])
def test_what_transformers_packs_on_a_device_alone(config, tmp_path):
    import transformers

    from tests.host.quantised import llama

    llama(hidden_size=256, intermediate_size=512).save_pretrained(tmp_path)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=getattr(transformers, config)(), device_map=DEVICE, dtype=torch.bfloat16
        )
        with torch.no_grad():
            model(IDS.to(DEVICE))
    except (ImportError, NotImplementedError) as e:  # a kernel that is not installed, which the first pass may ask for
        pytest.skip(str(e).splitlines()[0])
    except ValueError as e:
        if "`kernels`" not in str(e):
            raise
        pytest.skip(str(e).splitlines()[0])
    host = cw.Host(model)
    stir(host.add("a", "lora", rank=2))
    ids = IDS.to(DEVICE)
    with host.route("a"):
        model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in host["a"].parameters())
    with torch.no_grad(), host.route("a"):
        y = model(ids).logits.float()
    with torch.no_grad():
        want = host.merged_model("a").to(DEVICE)(ids).logits.float()
    assert (y - want).norm() < 0.1 * want.norm()
