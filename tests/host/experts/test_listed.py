"""Experts that are modules in a list, as in models of remote code and of transformers 4: a mixed batch is one pass."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

import commonweight as cw
from tests.host.test_layouts import same
from tests.laws.subjects import small, stir

D, E, K = 16, 4, 2


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(D, 24), nn.Linear(D, 24), nn.Linear(24, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Mixture(nn.Module):
    """way: how rows are given to the experts."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = nn.ModuleList(MLP() for _ in range(E))
        self.shared_experts = MLP()

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape, same = hidden_states.shape, hidden_states
        hidden_states = hidden_states.view(-1, D)
        weight, chosen = self.gate(hidden_states).softmax(-1).topk(K)
        return getattr(self, self.way)(hidden_states, weight, chosen).view(shape) + self.shared_experts(same)

    def mixtral(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """transformers 4: hidden_states[None, top_x].reshape(-1, d), then index_add_."""
        out = torch.zeros_like(x)
        for e, mask in enumerate(F.one_hot(chosen, E).permute(2, 1, 0)):
            at, token = torch.where(mask)
            given = x[None, token].reshape(-1, D)
            out.index_add_(0, token, self.experts[e](given) * weight[token, at, None])
        return out

    def repeated(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """DeepSeek's code in training: each token as often as it has experts, picked by a mask."""
        x, chosen = x.repeat_interleave(K, dim=0), chosen.view(-1)
        y = torch.empty_like(x)
        for e, expert in enumerate(self.experts):
            y[chosen == e] = expert(x[chosen == e])
        return (y.view(-1, K, D) * weight[..., None]).sum(1)

    @torch.no_grad()
    def sorted(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """DeepSeek's code without gradients: tokens sorted by expert, cut into pieces."""
        sizes = torch.bincount(chosen.view(-1), minlength=E).cpu().numpy()
        order = chosen.view(-1).argsort()
        tokens, out, start = x[order // K], [], 0
        for e, size in enumerate(sizes):
            if size:
                out.append(self.experts[e](tokens[start : start + size]))
                start += size
        y = torch.empty_like(tokens)
        y[order] = torch.cat(out)
        return (y.view(-1, K, D) * weight[..., None]).sum(1)

    def jittered(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """The tokens are multiplied in place, and cast, before they are picked."""
        x = x.clone()
        x *= 1.5
        return self.mixtral(x.to(torch.float64), weight, chosen)

    def lost(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """By a product with a matrix of places: nobody can say whose row is whose."""
        out = torch.zeros_like(x)
        for e, mask in enumerate(F.one_hot(chosen, E).sum(1).mT):
            place = torch.eye(len(x), dtype=x.dtype)[mask.bool()]
            out += place.mT @ (self.experts[e](place @ x) * (weight * (chosen == e)).sum(1)[mask.bool(), None])
        return out


class Model(nn.Module):
    def __init__(self, way: str):
        super().__init__()
        self.embed = nn.Embedding(50, D)
        self.layers = nn.ModuleList(Mixture(way) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return x


def made(way: str) -> nn.Module:
    torch.manual_seed(0)
    return Model(way).double().eval()


IDS = torch.randint(0, 50, (4, 5), generator=torch.Generator().manual_seed(1))
IDS[1] = IDS[0]  # rows that are alike to the bit, of other tenants
WAYS = ["mixtral", "repeated", "sorted", "jittered"]


def hosted(way, methods=("lora", "dora", "ia3")):
    host = cw.Host(made(way))
    for i, m in enumerate(methods):
        stir(host.add(m, m, **small(m)), i, std=0.2)
    return host


@pytest.mark.parametrize("way", [*WAYS, "lost"])
def test_each_token_keeps_its_reader(way):
    host = hosted(way)
    for names in (["lora", "dora", None, "lora"], ["ia3", "lora", "dora", "ia3"]):
        alone = same(host, lambda m: m(IDS), names, lambda: made(way))
        assert (alone["lora"][0] - alone["dora"][0]).abs().max() > 1e-3
    assert bool(host.model.forward.apart) == (way == "lost")


@pytest.mark.parametrize("way", WAYS)
def test_tokens_of_one_row_have_readers_of_their_own(way):
    host = hosted(way)
    numbers = torch.full((4, 5), -1)
    numbers[:, :2], numbers[2] = host["lora"].number, host["dora"].number
    with torch.no_grad():
        alone = {}
        for n in ("lora", "dora", None):
            with host.route(n):
                alone[n] = host.model(IDS)
        with host.route(numbers):
            mixed = host.model(IDS)
    names = {host[n].number: n for n in ("lora", "dora")} | {-1: None}
    for i in range(4):
        for j in range(5):  # nothing but its own experts stands between a token and its answer here
            torch.testing.assert_close(mixed[i, j], alone[names[int(numbers[i, j])]][i, j])


@pytest.mark.parametrize("way", ["mixtral", "repeated"])
def test_gradients_of_a_mixed_batch_are_those_of_its_rows(way):
    found = []
    for names in ([["lora", None, "dora", "lora"]], ["lora", None, "dora"]):
        host = hosted(way, ("lora", "dora"))
        if len(names) == 1:
            with host.route(names[0]):
                host.model(IDS).square().sum().backward()
        else:
            for n, rows in zip(names, ([0, 3], [1], [2])):
                if n is not None:
                    with host.route(n):
                        host.model(IDS[rows]).square().sum().backward()
        found.append([p.grad for n in ("lora", "dora") for p in host[n].parameters()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


def test_nllb_is_one_pass():
    torch.manual_seed(0)
    config = tf.NllbMoeConfig(
        vocab_size=61, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, num_experts=4,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_sparse_step=2, decoder_sparse_step=2,
        max_position_embeddings=32, pad_token_id=1, router_jitter_noise=0.0,
    )  # fmt: skip
    host = cw.Host(tf.NllbMoeForConditionalGeneration(config).eval())
    for i, n in enumerate(("lora", "dora")):
        stir(host.add(n, n, rank=2), i)
    assert any(s.kind == "expert" for s in host["lora"].sites)
    ids = torch.randint(3, 60, (3, 6), generator=torch.Generator().manual_seed(1))
    same(host, lambda m: m(input_ids=ids, decoder_input_ids=ids.flip(1)).logits, ["lora", None, "dora"])
    assert not host.model.forward.apart
