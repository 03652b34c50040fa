"""Siblings of a few bits: grids by hand, identities, what a step trains."""

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.bind import Elastic, Requantised
from commonweight.bind.quantised import dequantised, packed, rounded, unpacked
from commonweight.share import sampling
from tests.share.deep import IDS, KINDS, answer, far, gpt2, llama
from tests.share.methods.healing import falls


def stirred(small, std=0.1):
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for n, p in small.named_parameters():
            if n.rpartition(".")[2].startswith("B"):
                p.copy_(std * torch.randn(p.shape, generator=g))
    return small


def layers(small):
    return {n: m for n, m in small.named_modules() if hasattr(m, "merge")}


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_are_packed_and_come_back(bits):
    q = torch.randint(2**bits, (3, 13))
    small = packed(q, bits)
    assert small.shape == (3, -(-13 // (8 // bits))) and small.dtype == torch.uint8
    assert torch.equal(unpacked(small, bits, 13).long(), q)


def test_rounding_passes_gradients_within_the_grid():
    w = torch.tensor([[0.12, -0.26, 9.0, 0.4]], requires_grad=True)
    q = rounded(w, torch.tensor([[0.1]]), torch.tensor([[4.0]]), 3)
    assert q.tolist() == [[5, 1, 7, 7]]
    q.sum().backward()
    assert w.grad is not None and torch.allclose(w.grad, torch.tensor([[10.0, 10.0, 0.0, 0.0]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method, options", [("qfa", {"bits": (2, 8)}), ("efficientdm", {"bits": 8, "ends": None})])
def test_eight_bits_are_nearly_the_original(kind, method, options):
    model = KINDS[kind]()
    assert far(answer(share.share(model, method, **options)), answer(model)) < 5e-3


def test_a_grid_by_hand():
    """Smallest to largest number of each group of columns; no number is off by more than half a step."""
    model = llama()
    layer = share.share(model, "qfa", bits=(3,), group=16).model.layers[1].mlp.up_proj
    w = model.model.layers[1].mlp.up_proj.weight.detach()
    for row in (0, 5):
        for g in (0, 1):
            part = w[row, 16 * g : 16 * g + 16]
            step = (part.max() - part.min()) / 7
            assert float(layer.scale3[row, g]) == pytest.approx(float(step), rel=1e-5)
            zero = round(float(-part.min() / step))
            q = torch.clamp((part / step).round() + zero, 0, 7)
            assert torch.allclose(layer.weight[row, 16 * g : 16 * g + 16], (q - zero) * step, atol=1e-6)
    assert layer.grid3.shape == (64, 16)  # two numbers of 3 bits to a byte


def test_a_search_for_the_range_loses_less():
    model = llama()
    w = model.model.layers[2].mlp.down_proj.weight
    off = []
    for search in (False, True):
        small = share.share(model, "efficientdm", bits=2, search=search)
        off.append(float((small.model.layers[2].mlp.down_proj.weight - w).detach().abs().pow(2.4).mean()))
    assert off[1] < 0.9 * off[0]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_update_is_rounded_with_the_weight_and_merges_into_it(make):
    """B = 0 is the stored weight; after merging the layer answers the same, from whole numbers alone."""
    small = share.share(make(), "efficientdm", rank=4)
    for m in layers(small).values():
        plain = dequantised(m.grid, m.scale, m.zero, m.bits, m.columns)
        assert torch.equal(m.weight.mT if hasattr(m, "nf") else m.weight, plain)
    stirred(small)
    before = answer(small)
    m = next(iter(layers(small).values()))
    loose = dequantised(m.grid, m.scale, m.zero, m.bits, m.columns) + m.scale.mean() * m.B @ m.A
    q = torch.clamp(torch.round(loose / m.scale) + m.zero, 0, 2**m.bits - 1)  # the formula once more
    got = m.weight.mT if hasattr(m, "nf") else m.weight
    assert torch.allclose(got, (q - m.zero) * m.scale, atol=1e-6)
    for m in layers(small).values():
        m.merge()
        assert not m.B.any()
    assert far(answer(small), before) < 1e-5


def test_inputs_are_rounded_by_the_range_of_the_step():
    small = share.share(llama(), "efficientdm", acts=4, steps=3, reach=2.0)
    layer = small.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.size[2] *= 2
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for t, size in ((0, 4 / 15), (2, 8 / 15)):
        share.choose(small, t)
        want = torch.clamp(torch.round((x + 2) / size), 0, 15) * size - 2
        assert far(layer(x).detach(), (want @ layer.weight.T).detach()) < 1e-5
    assert small.model.layers[4].mlp.up_proj.code is layer.code


@pytest.mark.parametrize("make", [llama, gpt2])
def test_each_width_has_an_update_of_its_own_that_merges_into_its_zero_points(make):
    small = stirred(share.share(make(), "qfa", group=16))
    answers = {}
    for b in (2, 3, 4):
        answers[b] = answer(share.choose(small, b))
    assert far(answers[2], answers[4]) > 1e-3
    m = next(iter(layers(small).values()))  # the formula once more: the update of the input's means
    share.choose(small, 3)
    x = torch.randn(4, 32)
    pooled = x.view(4, 2, 16).mean(-1)
    want = x @ dequantised(m.grid3, m.scale3, m.zero3, 3, 32).T + pooled @ m.A3.T @ m.B3.T
    bias = 0 if m.bias is None else m.bias
    assert far(m(x).detach(), (want + bias).detach()) < 1e-5
    for m in layers(small).values():
        m.merge()
    for b in (2, 3, 4):
        assert far(answer(share.choose(small, b)), answers[b]) < 1e-5


def test_layers_are_chosen_one_by_one():
    small = stirred(share.share(llama(), "qfa"))
    all4 = answer(small)
    share.choose(small, {"layers.2.mlp": 2, "layers.5": 3})
    assert [int(small.model.layers[d].mlp.up_proj.code) for d in (1, 2, 5)] == [4, 2, 3]
    assert far(answer(small), all4) > 1e-4
    assert far(answer(share.choose(small, 4)), all4) == 0
    with pytest.raises(CommonweightError, match=r"q_proj.code is asked to be 7; wanted one of \[2, 3, 4\] bits"):
        share.choose(small, {"layers.1": 3, "layers.0": 7})
    assert int(small.model.layers[1].mlp.up_proj.code) == 4  # nothing was changed
    with pytest.raises(CommonweightError, match=r"no code's name has 'layer\.2\.' in it"):
        share.choose(small, {"layer.2.": 2})


def test_a_step_leaves_what_was_not_drawn_as_it_is():
    small = share.share(llama(), "qfa")
    share.choose(small, {"layers.0": 2})
    small(IDS, labels=IDS).loss.backward()
    got = {n for n, p in small.named_parameters() if p.grad is not None and n.rpartition(".")[2][:1] in "AB"}
    assert got and all(n.endswith("2") == n.startswith("model.layers.0.") for n in got)


def test_drawn_widths_reach_both_ends_in_the_mean():
    torch.manual_seed(0)
    drawn = [sampling.spread((2, 3, 4), 50, float(torch.rand(()))) for _ in range(300)]
    means = torch.tensor([sum(d) / 50 for d in drawn])
    assert means.min() < 2.1 and means.max() > 3.9 and abs(float(means.mean()) - 3) < 0.1
    alone = torch.randint(2, 5, (300, 50)).float().mean(1)
    assert alone.std() < 0.25 * means.std()
    assert all(len(d) == 50 and set(d) <= {2.0, 3.0, 4.0} for d in drawn)
    assert sum(sampling.spread((2, 8), 10, 0.5)) in (49.0, 50.0, 51.0, 52.0, 56.0, 44.0, 48.0)


def test_a_model_of_all_widths_is_healed(tmp_path):
    made = []

    def sample(model):
        draw = sampling.bits(model)
        return lambda: made.append(draw()) or made[-1]

    done = falls("qfa", {"bits": (4, 8), "rank": 4, "group": 16}, tmp_path, sample=sample, by=0.95)
    assert {v for d in made for v in d.values()} == {4.0, 8.0}
    assert {float(p) for p in share.codes(done.model).values()} == {8.0}


def test_a_quantised_model_is_healed(tmp_path):
    falls("efficientdm", {"bits": 4, "rank": 8}, tmp_path)


def test_the_binds_say_the_same_as_the_layers():
    small = stirred(share.share(llama(), "efficientdm", rank=4))
    m = small.model.layers[2].mlp.up_proj
    slots = {k: getattr(m, k) for k in ("grid", "scale", "zero", "A", "B")}
    assert torch.equal(Requantised(m.bits, m.columns).weight(m.weight, **slots), m.weight)
    small = stirred(share.share(llama(), "qfa"))
    m = small.model.layers[2].mlp.up_proj
    slots = {k: p for k, p in m._parameters.items() if k not in ("bias", "code")}
    assert torch.equal(Elastic((2, 3, 4), 32).weight(m.weight, code=m.code, **slots), m.weight)


def test_refusals():
    with pytest.raises(CommonweightError, match=r"bits is \(2, 2\); wanted different numbers from 1 to 8"):
        share.share(llama(), "qfa", bits=(2, 2))
    with pytest.raises(CommonweightError, match=r"its 32 columns are no multiple of group=24"):
        share.share(llama(), "qfa", group=24)
    with pytest.raises(CommonweightError, match="has no layers in several bit widths; make them with qfa"):
        sampling.bits(llama())
