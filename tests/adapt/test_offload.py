"""A base of which parts lie elsewhere trains as the one that is whole."""

import json

import pytest
import torch

from commonweight import CommonweightError, Host
from commonweight.adapt import adapt, evaluate, offload, open_host
from commonweight.adapt.base import where
from tests.adapt import tiny
from tests.adapt.test_packing import rows
from tests.models import make

LLAMA = {"model.embed_tokens": "disk", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu",
         "model.rotary_emb": "cpu", "lm_head": "disk"}  # fmt: skip
BERT = {"embeddings": "cpu", "encoder.layer.0": "disk", "encoder.layer.1": "disk", "pooler": "cpu"}
WHOLE = {"": "disk"}


def trained(model, task, given, places=None, method="lora", **more):
    host = open_host(model, task, dtype="float32", device_map=places)
    away = [p for p in host.model.parameters() if p.device.type == "meta"]
    assert bool(away) == (places is not None)
    assert ("put away" in where(host)) == (places is not None)
    result = adapt(
        host, "t", given, dev_rows=given[:4], task=task, method=method, options={"rank": 2}, epochs=2, batch_size=4,
        lr=1e-2, **more,
    )  # fmt: skip
    assert [p.device.type for p in host.model.parameters()].count("meta") == len(away)
    return host, result


@pytest.mark.parametrize(
    "kind,places,more",
    [("llama", LLAMA, {}), ("llama", WHOLE, {"gradient_checkpointing": True, "method": "dora"}), ("bert", BERT, {})],
)
def test_parts_on_disk_train_as_the_whole(bert, llama, tmp_path, kind, places, more):
    model, task, given = (llama, "lm", rows()) if kind == "llama" else (bert, "classify", tiny.rows(12))
    plain, want = trained(model, task, given, **more)
    host, got = trained(model, task, given, places, **more)
    # what is read from disk may be aligned otherwise, and then the last bits of products differ
    assert [c["loss"] for c in got.curve] == pytest.approx([c["loss"] for c in want.curve], abs=1e-5)
    for (n, a), b in zip(got.tenant.named_parameters(), want.tenant.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=n)
    assert host.fingerprint == plain.fingerprint
    assert evaluate(host, "t", given, task) == pytest.approx(evaluate(plain, "t", given, task), abs=1e-4)
    other = open_host(model, task, dtype="float32")
    other.load("t", host.save("t", tmp_path / "t.safetensors"))
    want = other.merged("t")
    assert all(torch.equal(v, want[k]) for k, v in host.merged("t").items())


@pytest.mark.parametrize("kind", ["llama", "moe"])
@pytest.mark.parametrize("way", ["cpu", "disk"])
def test_a_model_put_away_by_accelerate_gives_the_same_gradients(tmp_path, kind, way):
    from accelerate import cpu_offload, disk_offload

    found = []
    for away in (False, True):
        model, batch = make(kind)
        if away and way == "cpu":
            cpu_offload(model, execution_device=torch.device("cpu"))
        elif away:
            disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
        host = Host(model)
        tenant = host.add("t", "lora", rank=2, sites="*" if kind == "llama" else None)
        with torch.no_grad():
            for i, p in enumerate(tenant.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 4)
        with host.route("t"):
            host.model(**batch).logits.square().mean().backward()
        found.append({n: p.grad for n, p in tenant.named_parameters()})
    assert all(g.abs().sum() > 0 for g in found[0].values())
    for n, g in found[0].items():
        torch.testing.assert_close(found[1][n], g, msg=n)


def test_what_a_map_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert offload.device_map("auto") == "auto"
    assert offload.device_map('{"model": "disk", "lm_head": 0}') == {"model": "disk", "lm_head": 0}
    (tmp_path / "map.json").write_text('{"": "cpu"}')
    assert offload.device_map(str(tmp_path / "map.json")) == {"": "cpu"}
    for wrong in ("everywhere", "[1]", "{}", '{"a": null}', str(tmp_path / "none.json")):
        with pytest.raises(CommonweightError, match="wanted auto, balanced, balanced_low_0, sequential, or a JSON"):
            offload.device_map(wrong)


@pytest.mark.parametrize("place", [1, "cuda:1"])
def test_a_place_that_is_not_there(monkeypatch, place):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for said in ({"model": place}, json.dumps({"model": place})):
        with pytest.raises(CommonweightError, match=f"device map: model on {place!r}: torch sees 1 CUDA devices"):
            offload.device_map(said)


@pytest.mark.parametrize("place", ["cuda:x", "gpu", "cpuu", -1])
def test_a_place_that_is_no_device(place):
    with pytest.raises(
        CommonweightError, match=rf"device map: the model on {place!r}: no device; wanted cpu, disk, or"
    ):
        offload.device_map({"": place})


def test_layers_over_several_devices_are_refused(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.hf_device_map = {"a": 0, "b": 1, "c": "disk"}
    with pytest.raises(CommonweightError, match="layers on the devices 0, 1; a tenant's pools lie on one"):
        offload.placed(model, tmp_path)
