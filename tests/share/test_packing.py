"""Several models in one array: exact with room for all, the fit and the gradients of keyed ones, what is stored."""

from typing import Any

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.address import Hashed, fold
from commonweight.share import packing
from commonweight.share.folders.unrolled import plain
from tests.share.deep import IDS, answer, far, gpt2, llama


def layers(model) -> list[Any]:
    return [m for m, _ in packing.arrays(model)]


def test_models_of_two_kinds_lie_side_by_side_exactly():
    models = {"a": llama(3), "b": gpt2(2)}
    packed = packing.pack(models, chunk=16)
    for name, model in models.items():
        assert far(answer(packed[name]), answer(model)) < 1e-5
    pool = {id(layer.weight_pool) for m in packed.values() for layer in layers(m)}
    assert len(pool) == 1
    matrices = 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64) + 2 * (4 * 32 * 32 + 2 * 32 * 128)
    assert layers(packed["a"])[0].weight_pool.numel() == matrices
    blocks = sum(p.numel() for m in models.values() for p in _blocks(m).parameters())
    assert packing.count(packing.plan(models, chunk=16)) == blocks + 3 * 7 + 2 * 4  # a scale for each matrix


def _blocks(model) -> Any:
    return model.get_submodule(share.anatomy(model).path)


def test_one_model_with_a_key_is_exact_too():
    packed = packing.pack({"a": llama(2)}, {"a": 12345}, chunk=8)
    assert far(answer(packed["a"]), answer(llama(2))) < 1e-5
    assert packed["a"].config.sharing["options"] == {"key": 12345}


def test_keyed_models_read_the_fit_to_both():
    """psi_j = sum lambda s w / sum lambda^2 over the readers of j in both models, by single numbers."""
    models = {"a": llama(1), "b": gpt2(1)}
    keys = {"a": 5, "b": 9}
    packed = packing.pack(models, keys, compression=3.0, chunk=4, parts="attention")
    psi = layers(packed["a"])[0].weight_pool.detach()
    total, weight = torch.zeros_like(psi), torch.zeros_like(psi)
    places = {}
    for name, layout in packing.plan(models, keys, compression=3.0, chunk=4, parts="attention").items():
        for use in layout.plan.uses:
            address = use.reads["weight"].address
            if not isinstance(address, Hashed):
                continue
            assert address.seed == keys[name]
            w = _blocks(models[name]).get_parameter(use.site).detach()
            at, sign = address.places(torch.device("cpu"))
            places.setdefault(name, at.tolist())
            for c, (place, s) in enumerate(zip(at.tolist(), sign.tolist())):
                for j in range(4):
                    total[4 * place + j] += w.std() * s * w.flatten()[4 * c + j]
                    weight[4 * place + j] += w.std() ** 2
    assert far(psi, total / weight.clamp_min(1e-30)) < 1e-4
    assert places["a"][:20] != places["b"][:20]


def test_the_array_s_gradient_is_the_sum_of_the_folds():
    packed = packing.pack({"a": llama(2), "b": gpt2(2)}, {"a": 1, "b": 2}, compression=2.0, chunk=8)
    pool = layers(packed["a"])[0].weight_pool
    want = torch.zeros_like(pool)
    for model in packed.values():
        model(IDS, labels=IDS).loss.backward()
        unrolled = plain(model)
        unrolled(IDS, labels=IDS).loss.backward()
        for layer, (_, name) in zip(layers(model), packing.arrays(model)):
            g = unrolled.get_submodule(name).weight.grad
            want += fold(layer.reads["weight"][0], tuple(pool.shape), g, layer.weight_scale.detach())
    assert torch.allclose(pool.grad, want, atol=1e-5)
    assert sum(p is pool for p in packing.parameters(packed)) == 1


def test_trained_together_and_stored_once(tmp_path):
    packed = packing.pack({"a": llama(2), "b": gpt2(2)}, {"a": 1, "b": 2}, compression=2.0, chunk=8)
    optimizer = torch.optim.Adam(packing.parameters(packed), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = torch.stack([m(IDS, labels=IDS).loss for m in packed.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    packing.save(packed, tmp_path / "p")
    again = packing.load(tmp_path / "p")
    for name, model in packed.items():
        assert far(answer(again[name]), answer(model)) == 0
    assert layers(again["a"])[0].weight_pool is layers(again["b"])[-1].weight_pool
    held = sum(f.stat().st_size for f in (tmp_path / "p").glob("*.safetensors"))
    unique = 4 * sum(p.numel() for p in {id(p): p for m in packed.values() for p in m.parameters()}.values())
    assert unique <= held < unique + 12_000
    share.save(packing.load(tmp_path / "p", "b")["b"], tmp_path / "b")
    assert far(answer(share.load(tmp_path / "b")), answer(packed["b"])) == 0


def test_what_packing_refuses(tmp_path):
    for models, keys, told in (
        ({}, None, "each model wants one key"), ({"a": llama(1)}, {"b": 1}, "each model wants one key"),
        ({"a": llama(1)}, {"a": -1}, "the key of 'a' is -1"), ({"../a": llama(1)}, None, "cannot be a tenant's name"),
        ({"a": llama(1), "b": llama(1).bfloat16()}, None, "one array has one dtype"),
    ):  # fmt: skip
        with pytest.raises(CommonweightError, match=told):
            packing.plan(models, keys)
    with pytest.raises(CommonweightError, match=r"wanted a folder that packing\.save wrote"):
        packing.load(tmp_path)
    one, two = (packing.pack({"a": llama(1)})["a"] for _ in range(2))
    with pytest.raises(CommonweightError, match="these models read 2 arrays"):
        packing.save({"a": one, "b": two}, tmp_path / "x")
    packing.save({"a": one}, tmp_path / "x")
    with pytest.raises(CommonweightError, match="no model 'b'; there are a"):
        packing.load(tmp_path / "x", "b")
