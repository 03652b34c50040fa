"""Differential attention in the projections: the original at lambda 0, the formula once more, a cache."""

import pytest
import torch

from commonweight import CommonweightError, share
from tests.share.deep import IDS, answer, far, gpt2, llama, qwen


@pytest.mark.parametrize("make", [llama, qwen])
def test_it_begins_as_the_model_itself(make):
    assert far(answer(share.share(make(), "shared_diff")), answer(make())) < 1e-5
    with pytest.raises(CommonweightError, match="shared_diff: wanted a self_attn with q, k, v and output"):
        share.share(gpt2(), "shared_diff")


def lively(rank=4):
    small = share.share(llama(), "shared_diff", rank=rank)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for n, p in small.named_parameters():
            if n.rpartition(".")[2] in ("B1", "B2"):
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
            if n.endswith("lam"):
                p.fill_(0.4)
    return small


def test_by_hand():
    small = lively()
    block = small.model.layers[1].self_attn
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    cos, sin = small.model.rotary_emb(x, torch.arange(5)[None])
    mask = torch.full((5, 5), float("-inf")).triu(1)

    def turned(h):  # (heads, 5, 8)
        return h * cos[0] + torch.cat([-h[..., 4:], h[..., :4]], -1) * sin[0]

    def heads(w, n):
        return (x[0] @ w.T).view(5, n, 8).transpose(0, 1)

    p = block
    v = heads(p.v_proj.weight, 2).repeat_interleave(2, 0)
    maps = []
    for i in "12":
        wq, wk = (m.weight + getattr(m, f"B{i}") @ getattr(m, f"A{i}") for m in (p.q_proj, p.k_proj))
        q, k = turned(heads(wq, 4)), turned(heads(wk, 2)).repeat_interleave(2, 0)
        maps.append((q @ k.mT / 8**0.5 + mask).softmax(-1))
    want = ((maps[0] - 0.4 * maps[1]) @ v).transpose(0, 1).reshape(5, 32) @ p.o_proj.weight.T
    got = block(x, position_embeddings=(cos, sin), attention_mask=mask[None, None])[0][0]
    assert torch.allclose(got, want, atol=1e-5)


def test_a_cache_changes_nothing():
    small, how = lively(), {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(small.generate(IDS, **how), small.generate(IDS, use_cache=False, **how))
