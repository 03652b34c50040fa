"""RoLoRA against LoRA on weights that Hadamard matrices have turned."""

import copy

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.address import spread
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
LAYER = "model.layers.1."


def hadamard(width):
    """Sylvester's, in blocks of the largest power of two."""
    block, H = width & -width, np.ones((1, 1))
    while len(H) < block:
        H = np.block([[H, H], [H, -H]])
    return torch.from_numpy(np.kron(np.eye(width // block), H / len(H) ** 0.5)).float()


@pytest.mark.parametrize("width", [1, 2, 5, 12, 32])
def test_the_matrix(width):
    torch.testing.assert_close(spread(torch.eye(width)), hadamard(width).T)


def test_formula():
    """W' in turned coordinates is the turned W and a plain B A."""
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "rolora", rank=3, alpha=6, sites="*.q_proj|*.o_proj|*.up_proj|*.down_proj"))
    merged = host.merged("t")
    width = host.weight(f"{LAYER}self_attn.q_proj").shape[1]
    Q = torch.diag(tenant.pools[f"rolora.{width}"]) @ hadamard(width)
    assert set(tenant.pools[f"rolora.{width}"].tolist()) == {-1.0, 1.0}
    for name, turned in (
        ("self_attn.q_proj", lambda w: w @ Q), ("mlp.up_proj", lambda w: w @ Q),
        ("self_attn.o_proj", lambda w: Q.T @ w),
        ("mlp.down_proj", lambda w: Q.T @ w @ hadamard(w.shape[1])),
    ):  # fmt: skip
        n = LAYER + name
        A, B = (tenant.pools[f"{n}.{k}"].detach() for k in "AB")
        torch.testing.assert_close(turned(merged[f"{n}.weight"]), turned(host.weight(n)) + 2.0 * B @ A)


def test_the_default_is_queries_and_values_and_one_rotation():
    tenant = cw.Host(make("llama")[0]).add("t", "rolora", rank=2)
    assert {u.site.rpartition(".")[2] for u in tenant.plan.uses} == {"q_proj", "v_proj"}
    assert sum(n.startswith("rolora.") for n in tenant.pools) == 1
    sites = [cw.Site("q", 64, 32, "linear", "query")]
    assert cw.plan("rolora", sites, rank=2).count() == 2 * 96


@pytest.mark.parametrize("centred", [False, True])
def test_embeddings_are_not_centred(centred):
    """A model whose weights are all turned answers as before. The released code also takes the mean off each embedding,
    which only layer norms forgive: a model of RMS norms then answers otherwise."""
    model, batch = make("llama")
    turned = copy.deepcopy(model)
    width = model.config.hidden_size
    Q = torch.diag(1.0 - 2 * (torch.arange(width) % 3 == 1)) @ hadamard(width)
    torch.testing.assert_close(Q @ Q.T, torch.eye(width))

    def into(layer, norm):
        layer.weight.mul_(norm.weight).copy_(layer.weight @ Q)

    with torch.no_grad():
        table = turned.model.embed_tokens.weight
        if centred:
            table.sub_(table.mean(-1, keepdim=True))
        turned.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * turned.model.norm.weight @ Q)
        table.copy_(table @ Q)
        for block in turned.model.layers:
            for layer in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                into(layer, block.input_layernorm)
            for layer in (block.mlp.up_proj, block.mlp.gate_proj):
                into(layer, block.post_attention_layernorm)
            for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                layer.weight.copy_(Q.T @ layer.weight)
        for n, p in turned.named_parameters():
            if "norm" in n:
                p.fill_(1.0)
        got, want = turned(**batch).logits, model(**batch).logits
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-4) != centred
