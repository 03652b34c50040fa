"""VQT against its formula: each block of the model written out for queries that read its tokens."""

import math

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from commonweight.adapt.recompute import recomputed
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"queries": 2, "size": 3}
MASK = torch.ones(4, 6, dtype=torch.long)
MASK[0, :2] = MASK[1, 5:] = 0


def attended(q, k, v, heads):
    """One row: q (T, d), k and v (S, kv), of fewer heads perhaps."""
    width = q.shape[-1] // heads
    q, k, v = (t.unflatten(-1, (-1, width)).transpose(0, 1) for t in (q, k, v))
    k, v = (t.repeat_interleave(heads // len(t), 0) for t in (k, v))
    return ((q @ k.mT / math.sqrt(width)).softmax(-1) @ v).transpose(0, 1).flatten(1)


def of_bert(block, x, p):
    own, out = block.attention.self, block.attention.output
    a = attended(own.query(p), own.key(x), own.value(x), 4)
    h = out.LayerNorm(out.dense(a) + p)
    return block.output.LayerNorm(block.output.dense(F.gelu(block.intermediate.dense(h))) + h)


def turned(t, places, width=8, theta=10000.0):
    """Rotary positions, half against half."""
    angle = places[:, None, None] / theta ** (torch.arange(0, width, 2) / width)
    a, b = t.unflatten(-1, (-1, width)).chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(1)


def of_llama(block, x, p, places):
    own, n = block.self_attn, block.input_layernorm
    q = turned(own.q_proj(n(p)), places[-1:].expand(len(p)))
    h = p + own.o_proj(attended(q, turned(own.k_proj(n(x)), places), own.v_proj(n(x)), 4))
    return h + block.mlp(block.post_attention_layernorm(h))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_formula(kind, attention):
    """Row by row, on the tokens that are there alone."""
    model, batch = make(kind)
    model.set_attn_implementation(attention)
    blocks, home = (model.encoder.layer, "encoder.layer") if kind == "bert" else (model.model.layers, "model.layers")
    given, last = [], []
    handles = [
        b.register_forward_pre_hook(lambda m, a, k: given.append((*a, *k.values())[0]), with_kwargs=True)
        for b in blocks
    ]
    handles.append(blocks[-1].register_forward_hook(lambda m, a, y: last.append(y[0] if isinstance(y, tuple) else y)))
    with torch.no_grad():
        model(**batch, attention_mask=MASK)
    [h.remove() for h in handles]
    host = cw.Host(model)
    tenant = stir(host.add("t", "vqt", queries=2, size=5), std=0.3)
    P, V, U = (tenant.pools[f"{home}.queries.{k}"].detach() for k in "PVU")
    with torch.no_grad():
        want = last[0].clone()
        for i in range(4):
            there = MASK[i].bool()
            z = []
            for n, block in enumerate(blocks):
                x = given[n][i, there]
                out = of_bert(block, x, P[n]) if kind == "bert" else of_llama(block, x, P[n], there.nonzero()[:, 0])
                z.append(out.flatten() / out.norm())
            want[i] += U @ (V @ torch.cat(z))
        want = want if kind == "bert" else model.lm_head(model.model.norm(want))
        with host.route("t"):
            found = answer(model, {**batch, "attention_mask": MASK})
    torch.testing.assert_close(found[MASK.bool()], want[MASK.bool()], rtol=1e-4, atol=1e-5)


def test_a_linear_head_over_the_answers_is_the_papers():
    """With r of the number of classes a head on y' says what the paper's, over y and all z, says."""
    g = torch.Generator().manual_seed(0)
    y, z, head, wide = (torch.randn(s, generator=g) for s in ((7, 16), (7, 40), (3, 16), (3, 40)))
    V, U = wide, torch.linalg.pinv(head)
    torch.testing.assert_close(
        (y + z @ V.T @ U.T) @ head.T, torch.cat([y, z], -1) @ torch.cat([head, wide], -1).T, rtol=1e-4, atol=1e-4
    )


def test_tokens_do_not_read_queries():
    """The keys and values of a pass are those of the plain base: a tenant of zero U moves no bit."""
    model, batch = make("bert")
    plain = answer(model, batch)
    host = cw.Host(model)
    host.add("t", "vqt", queries=3)
    with host.route("t"):
        assert torch.equal(answer(model, batch), plain)


def test_count():
    """Twelve blocks of width 768, 4 queries each, rank 16."""
    site = cw.Site("layers.queries", 768, 12 * 768, "queries")
    assert cw.plan("vqt", [site], queries=4, size=16).count() == 12 * 4 * 768 * 17 + 16 * 768


def test_blocks_whose_forward_is_another_are_asked_too():
    """A tenant that leaves blocks out, and checkpoints, stand in the place of a block's forward."""
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("t", "vqt", **SMALL)
    stir(host["t"])
    with host.route("t"), torch.no_grad():
        want = answer(model, batch)
    with recomputed(host), host.route("t"):
        assert torch.equal(answer(model, batch), want)
    host.add("out", "das", skip=1)
    for name in ("out", "t"):
        with host.route(name), torch.no_grad():
            found = answer(model, batch)
    assert torch.equal(found, want)
