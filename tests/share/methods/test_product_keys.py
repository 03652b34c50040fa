"""A memory that is read by product keys: an exact search, the formula once more, zero values beside the network."""

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.builder.forms.keys import nearest
from tests.share.deep import answer, bert, far, gpt2, llama


@pytest.mark.parametrize(("n", "k"), [(20, 7), (4, 16), (3, 5), (30, 1)])
def test_the_search_is_exact(n, k):
    g = torch.Generator().manual_seed(n)
    q, keys = torch.randn(2, 9, 6, generator=g), torch.randn(2, 2, n, 3, generator=g)
    every = ((q[..., :3] @ keys[0].mT)[..., :, None] + (q[..., 3:] @ keys[1].mT)[..., None, :]).flatten(2)
    want, where = every.topk(k, -1)
    scores, at = nearest(q, keys, k)
    assert torch.allclose(scores, want, atol=1e-6) and torch.equal(at, where)


def test_a_memory_by_hand():
    small = share.share(llama(), "product_keys", layers=(1, 4), n=8, heads=2, k=3, width=6)
    m, x = small.model.layers[1].mlp, torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    want = torch.zeros(5, 32)
    for t in range(5):
        for h in range(2):
            q = (m.query @ x[t] + m.query_bias)[6 * h : 6 * h + 6]
            s = (m.keys[0, h] @ q[:3])[:, None] + (m.keys[1, h] @ q[3:])[None]
            top, at = s.flatten().topk(3)
            want[t] += (top.softmax(0)[:, None] * m.values[at]).sum(0)
    assert torch.allclose(m(x), want, atol=1e-5)
    assert m.values is small.model.layers[4].mlp.values and m.keys is not small.model.layers[4].mlp.keys
    assert not list(m.children())
    layout = share.layout(llama(), "product_keys", layers=(1, 4), n=8, heads=2, k=3, width=6)
    memory = 64 * 32 + 2 * (2 * 2 * 8 * 3 + 12 * 33)
    assert layout.count() == memory + sum(p.numel() for p in llama().model.layers.parameters()) - 2 * 3 * 32 * 64


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_beside_the_network_zero_values_change_nothing(make):
    if make is bert:
        with pytest.raises(CommonweightError, match="product_keys: the feed-forward network of a block must be one"):
            share.share(make(), "product_keys", beside=True)
        return
    model = make()
    small = share.share(model, "product_keys", beside=True, n=8, width=8)
    assert far(answer(small), answer(model)) < 1e-6
    with torch.no_grad():
        small.get_submodule(share.anatomy(small).path)[3].mlp.values.normal_()
    assert far(answer(small), answer(model)) > 1e-3


def test_refusals():
    for options, told in (
        ({"layers": (9,)}, "product_keys: layer 9; the model has 6 layers"), ({"width": 7}, "width=7 has no halves"),
        ({"n": 2, "k": 5}, "k=5 of 4 values"),
    ):  # fmt: skip
        with pytest.raises(CommonweightError, match=told):
            share.share(llama(), "product_keys", **options)
