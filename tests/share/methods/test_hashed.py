"""One array behind all matrices: the hash by whole numbers of Python, the fold, both ways to multiply, gradients."""

import pytest
import torch
from torch.nn import functional as F

from commonweight import CommonweightError, share
from commonweight.address import Hashed, fold
from commonweight.address.hashed import hashed
from commonweight.share.methods.hashed import scaled_gradients
from tests.share.deep import far, llama

M = 2**64


def splitmix(x, seed):
    x = (x + 0x9E3779B97F4A7C15 * (seed + 1)) % M
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % M
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % M
    x ^= x >> 31
    return x - M if x >= M // 2 else x


def test_the_hash_is_splitmix64():
    for seed in (0, 7):
        assert hashed(torch.arange(20), seed).tolist() == [splitmix(i, seed) for i in range(20)]
    assert hashed(torch.arange(3), 0).tolist() == [-2152535657050944081, -7995527694508729151, -7541218347953203506]


@pytest.mark.parametrize("balanced", [True, False])
def test_a_weight_by_hand(balanced):
    """Also one that begins within a part and ends in another."""
    a = Hashed(24, (6, 8), 32, 4, 3, balanced)
    psi, scale = torch.randn(32, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    want = []
    for chunk in range(6, 18):
        part = sorted(range(chunk // 8 * 8, chunk // 8 * 8 + 8), key=lambda i: splitmix(i, 6))
        at = part[chunk % 8] % 8 if balanced else (splitmix(chunk, 6) >> 1) % 8
        want += [0.5 * (1 if splitmix(chunk, 7) & 1 else -1) * psi[4 * at + j] for j in range(4)]
    assert torch.equal(a(psi, scale), torch.stack(want).view(6, 8))
    g = torch.randn(6, 8)
    back = fold(a, (32,), g, scale)
    assert float((a(psi, scale) * g).sum()) == pytest.approx(float((psi * back).sum()), rel=1e-4)


def test_a_stable_fold_reads_all_numbers_alike():
    layout = share.layout(llama(), "hashed", compression=5.0, chunk=8)
    loads = []
    for name in ("stable", "roast"):
        count = torch.zeros(layout.plan.pools["psi"].shape[0] // 8)
        for u in share.layout(llama(), "hashed", compression=5.0, chunk=8, fold=name).plan.uses:
            if isinstance(u.reads["weight"].address, Hashed):
                at = u.reads["weight"].address.places(torch.device("cpu"))[0]
                count.index_add_(0, at, torch.ones(len(at)))
        loads.append((int(count.min()), int(count.max())))
    assert loads[0] == (5, 5) or loads[0] == (4, 5)
    assert loads[1][1] > 8 and loads[1][0] == 0


def test_the_array_is_the_least_squares_fit():
    """Against lstsq over all numbers of all weights, with lambda the spread of each."""
    model = llama(2)
    small = share.share(model, "hashed", compression=40.0, chunk=8, parts="qkv")
    rows, want, psi = [], [], None
    for at, block in enumerate(small.model.layers):
        for n in ("q_proj", "k_proj", "v_proj"):
            layer, w = getattr(block.self_attn, n), getattr(model.model.layers[at].self_attn, n).weight.detach()
            psi, address = layer.weight_pool.detach(), layer.reads["weight"][0]
            assert float(layer.weight_scale.detach()) == pytest.approx(float(w.std()))
            eye = torch.eye(len(psi))
            rows.append(torch.stack([address(e, layer.weight_scale.detach()).flatten() for e in eye], 1))
            want.append(w.flatten())
    assert psi is not None
    best = torch.linalg.lstsq(torch.cat(rows), torch.cat(want)[:, None]).solution[:, 0]
    assert far(psi, best) < 1e-4
    assert len({id(b.self_attn.q_proj.weight_pool) for b in small.model.layers}) == 1


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("chunk", [4, 16])
def test_both_ways_to_multiply_agree(tokens, chunk):
    small = share.share(llama(), "hashed", compression=16.0, chunk=chunk)
    layer = small.model.layers[1].mlp.down_proj
    x = torch.randn(2, tokens, 64)
    want = F.linear(x, layer.weight)
    assert torch.allclose(layer(x), want, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), layer.weight_pool)[0] for y in (layer(x), want)]
    assert torch.allclose(*grads, atol=1e-4)


def test_a_step_of_sgd_is_the_mean_of_the_readers_steps():
    small = share.share(llama(), "hashed", compression=6.0, chunk=8, parts="ffn")
    with torch.no_grad():
        for m in small.modules():
            if "weight_scale" in m._parameters:
                m.weight_scale.fill_(0.7)
    handle = scaled_gradients(small)
    layers = [m for m in small.modules() if "weight_pool" in m._parameters]
    psi, ones = layers[0].weight_pool, []
    for m in layers:  # every number's own gradient is its sign: all readers want the same step
        _, sign = m.reads["weight"][0].places(torch.device("cpu"))
        ones.append((m.weight * sign[:, None].expand(-1, 8).reshape(m.weight.shape)).sum())
    sum(ones).backward()
    assert torch.allclose(0.7 * psi.grad, torch.ones_like(psi), atol=1e-4)  # a weight moves by 1, as it would alone
    handle.remove()


def test_scaled_gradients_are_a_least_squares_step():
    """With scales of any size a step of psi moves the weights as near to their own steps as sharing allows."""
    small = share.share(llama(), "hashed", compression=4.0, chunk=8)
    layers = [m for m in small.modules() if "weight_pool" in m._parameters]
    with torch.no_grad():
        for i, m in enumerate(layers):
            m.weight_scale.fill_(0.5 + 0.1 * i)
    handle = scaled_gradients(small)
    wanted = [torch.randn(m.weight.shape, generator=torch.Generator().manual_seed(i)) for i, m in enumerate(layers)]
    sum((m.weight * g).sum() for m, g in zip(layers, wanted)).backward()
    step = layers[0].weight_pool.grad
    with torch.no_grad():
        for m in layers:
            m.weight_pool.data = step
        left = [g - m.weight for m, g in zip(layers, wanted)]  # what sharing cannot say is at right angles to it
    handle.remove()
    layers[0].weight_pool.grad = None
    sum((m.weight * g).sum() for m, g in zip(layers, left)).backward()
    assert layers[0].weight_pool.grad.abs().max() < 1e-4
    with pytest.raises(CommonweightError, match="reads no array by a hash"):
        scaled_gradients(llama())


def test_the_array_is_there_once_while_a_model_is_made(monkeypatch):
    """Not once for each of its readers until they are tied."""
    made, old = [], torch.nn.init.normal_
    monkeypatch.setattr(torch.nn.init, "normal_", lambda t, **k: made.append(t.numel()) or old(t, **k))
    small = share.share(llama(), "hashed", compression=1.0)
    array = small.model.layers[0].mlp.up_proj.weight_pool.numel()
    assert made.count(array) == 1
    again = type(small)(small.config)
    assert made.count(array) == 2 and again.model.layers[5].mlp.up_proj.weight_pool.numel() == array
