"""Models that are many in one, by a code that their layers read."""

import math

import pytest
import torch
from torch.nn import functional as F

from commonweight import CommonweightError, share
from tests.share.deep import KINDS, answer, bert, far, gpt2, llama
from tests.share.methods.healing import falls


def stirred(small, std=0.05):
    """With numbers that are not the first ones."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for n, p in small.named_parameters():
            if p.requires_grad and ("bank" in n or "experts" in n or "layers" in n.rpartition(".")[2]):
                p.add_(std * torch.randn(p.shape, generator=g))
    return small


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method, options", [("mip", {"parts": "all"}), ("supernet", {"noise": 0.0})])
def test_a_fresh_one_is_the_original_whatever_the_code(kind, method, options):
    model = KINDS[kind]()
    small = share.share(model, method, **options)
    assert far(answer(small), answer(model)) < 1e-6
    if method == "mip":
        assert far(answer(share.choose(small, (0.9,))), answer(model)) < 1e-6


def test_mip_is_a_network_whose_last_bias_are_the_weights():
    """The formula once more: theta = Linear(MLP([cos, sin])), one output for each number."""
    model = llama()
    small = stirred(share.share(model, "mip", code=(0.2, 0.7), hidden=(5, 3)))
    layer = small.model.layers[2].mlp.down_proj
    x = torch.tensor([0.2, 0.7]) * math.pi / 2
    x = torch.cat([torch.cos(x), torch.sin(x)])
    for i in (0, 2):
        w, b = getattr(layer, f"weight_layers{i}"), getattr(layer, f"weight_layers{i + 1}")
        x = F.leaky_relu(w @ x + b)
    last = layer.weight_bank[1:].flatten(1).T  # (|theta|, k)
    want = (last @ x + layer.weight_bank[0].flatten()).view(layer.weight_bank.shape[1:])
    assert torch.allclose(layer.weight, want, atol=1e-6)
    assert layer.weight_layers0 is small.model.layers[5].mlp.up_proj.weight_layers0


def test_mip_s_encoding_has_one_size():
    """What is made is as large for a small code as for a large one; the bare code's would shrink with it."""
    small = share.share(llama(), "mip", init="fan_out", hidden=(16, 64))
    sizes = []
    for gamma in (0.01, 0.1, 1.0):
        share.choose(small, (gamma,))
        layer = small.model.layers[0].mlp.up_proj
        sizes.append(float((layer.weight - layer.weight_bank[0]).detach().std()))
    assert max(sizes) < 3 * min(sizes)


@pytest.mark.parametrize("make", [llama, gpt2, bert])
@pytest.mark.parametrize("routing", ["layer", "neuron"])
def test_supernet_by_the_formula(make, routing):
    widths = (0.5, 1.0, 0.25, 0.75, 1.0, 0.5)
    small = stirred(share.share(make(), "supernet", experts=3, widths=widths, routing=routing), 0.3)
    for depth, (name, module) in [(d, x) for d in (0, 2) for x in _ffn(small, d)]:
        a, turned = torch.tensor(widths), hasattr(module, "nf")
        for of in ("weight", "bias"):
            if not hasattr(module, f"{of}_experts"):
                continue
            experts = getattr(module, f"{of}_experts").detach()
            e = experts.mT if turned and of == "weight" else experts
            w1, b1, w2, b2 = (getattr(module, f"{of}_layers{i}").detach() for i in range(4))
            logits = w2 @ torch.relu(w1 @ a + b1) + b2
            if routing == "layer":
                want = sum(p * one for p, one in zip(torch.softmax(logits, 0), e))
            else:
                rows = torch.stack([
                    sum(p * e[i, j] for i, p in enumerate(torch.softmax(logits[3 * j : 3 * j + 3], 0)))
                    for j in range(e.shape[1])
                ])  # fmt: skip
                want = rows
            down = "down" in name or name == "output.dense" or (turned and module.nf == 32)
            inner = want.shape[1] if down and of == "weight" else want.shape[0]
            n = round(inner * widths[depth])
            if of == "weight" and down:
                want = torch.cat([want[:, :n], torch.zeros_like(want[:, n:])], 1)
            elif not down:
                want = torch.cat([want[:n], torch.zeros_like(want[n:])])
            got = getattr(module, of).detach()
            assert torch.allclose(got.mT if turned and of == "weight" else got, want, atol=1e-5), (name, of)


def _ffn(small, depth):
    block = small.get_submodule(share.anatomy(small).path)[depth]
    return [(n, m) for n, m in block.named_modules() if hasattr(m, "weight_experts")]


def test_what_is_out_of_use_might_as_well_be_cut_off():
    """slice(mix) = mix(slices): half the width is the network of the first half of the neurons."""
    small = stirred(share.share(llama(), "supernet", widths=(0.5,) * 6))
    x = torch.randn(3, 32)
    mlp = small.model.layers[1].mlp
    up, gate, down = (m.weight.detach() for m in (mlp.up_proj, mlp.gate_proj, mlp.down_proj))
    want = (F.silu(x @ gate[:32].T) * (x @ up[:32].T)) @ down[:, :32].T
    assert far(mlp(x).detach(), want) < 1e-6


def test_one_expert_alone_is_its_plain_supernet():
    """Router's logits that are one-hot."""
    small = stirred(share.share(llama(), "supernet", experts=2))
    with torch.no_grad():
        for m in small.modules():
            if hasattr(m, "weight_layers2"):
                m.weight_layers2.zero_()
                m.weight_layers3.copy_(torch.tensor([0.0, 1e4]))
    layer = small.model.layers[3].mlp.up_proj
    assert torch.equal(layer.weight, layer.weight_experts[1])


@pytest.mark.parametrize("method", ["mip", "supernet"])
def test_another_code_is_another_model_and_the_first_comes_back(method, tmp_path):
    small = stirred(share.share(gpt2(), method), 0.3)
    first = answer(small)
    other = (0.1,) if method == "mip" else (0.5,) * 6
    before = share.codes(small)
    (name,) = before
    was = before[name].tolist()
    assert far(answer(share.choose(small, other)), first) > 1e-3
    share.save(small, tmp_path / "s")
    again = share.load(tmp_path / "s")
    assert far(answer(again), answer(small)) < 1e-6
    assert not share.codes(again)[name].requires_grad and all(
        p.requires_grad for n, p in again.named_parameters() if n != name
    )
    assert far(answer(share.choose(small, was)), first) < 1e-6
    with pytest.raises(CommonweightError, match=r"code has \d numbers; 4 were given"):
        share.choose(small, (0.0,) * 4)
    with pytest.raises(CommonweightError, match="reads no code"):
        share.choose(gpt2(), (0.0,))


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_the_chosen_one_alone_is_a_stock_model(make):
    small = stirred(share.share(make(), "supernet", widths=(0.5, 1.0) * 3))
    alone = share.settle(small)
    assert type(alone) is type(make()) and far(answer(alone), answer(small)) < 1e-5
    assert sum(p.numel() for p in alone.parameters()) == sum(p.numel() for p in make().parameters())


@pytest.mark.parametrize("method, options", [("mip", {"hidden": (4, 2)}), ("supernet", {"routing": "neuron"})])
def test_heals(method, options, tmp_path):
    falls(method, options, tmp_path)


def test_refusals():
    with pytest.raises(CommonweightError, match=r"code is \(2.0,\); wanted numbers from 0 to 1"):
        share.share(llama(), "mip", code=(2.0,))
    with pytest.raises(CommonweightError, match=r"widths has 2 shares, from 0.5 to 1.0; wanted one in \(0"):
        share.share(llama(), "supernet", widths=(0.5, 1.0))
