"""SUT: stick breaking written out once more; what has halted is seen as it is expected to be, and is not computed."""

import pytest
import torch
from torch.nn import functional as F

from commonweight import CommonweightError, share
from commonweight.builder.forms import Mixture
from tests.share.deep import IDS, answer, bert, far, llama, qwen
from tests.share.prose import healed

HOW = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)


def made(make=llama, **options):
    small = share.share(make(), "sut", **{"halts": 0.5, "done": 0.9, **options})
    torch.manual_seed(0)
    with torch.no_grad():
        small.model.layers[1].halt_out.normal_(0, 3)
    return small


def test_who_never_halts_is_the_tied_model():
    tied = share.share(llama(), "recursive", loops=6, init="average")
    assert far(answer(share.share(llama(), "sut", halts=1e-9)), answer(tied)) < 1e-6


def test_stick_breaking_by_hand():
    """Attention written out, with keys and values of the expected states; nothing is skipped."""
    small = made(done=0.999999)
    block, net = small.model.layers[0], small.model.layers[1]
    attention, x = block.self_attn, small.model.embed_tokens(IDS)
    cos, sin = small.model.rotary_emb(x, torch.arange(7)[None])
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turn

    norm = lambda h, w: h * (h.square().mean(-1, True) + 1e-6).rsqrt() * w  # noqa: E731
    heads = lambda h, n: h.view(2, 7, n, 8).transpose(1, 2)  # noqa: E731
    acc, never, shares = torch.zeros_like(x), torch.ones(2, 7), []
    for step in range(6):
        if step:
            scores = F.relu(x @ net.halt_in.T) @ net.halt_out.T + torch.cat([torch.zeros(1), net.halt_bias])
            halt = scores.softmax(-1)[..., 1]
            shares.append(never * halt)
            acc, never = acc + shares[-1][..., None] * x, never * (1 - halt)
        q = norm(x, block.input_layernorm.weight) @ attention.q_proj.weight.T
        seen = norm(acc + never[..., None] * x, block.input_layernorm.weight)
        k, v = seen @ attention.k_proj.weight.T, heads(seen @ attention.v_proj.weight.T, 2)
        q, k = turn(heads(q, 4), heads(k, 2), cos, sin)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        a = (q @ k.mT / 8**0.5 + torch.full((7, 7), -torch.inf).triu(1)).softmax(-1) @ v
        x = x + a.transpose(1, 2).reshape(2, 7, 32) @ attention.o_proj.weight.T
        x = x + block.mlp(norm(x, block.post_attention_layernorm.weight))
    assert torch.allclose(sum(shares) + never, torch.ones(2, 7), atol=1e-5)
    out = small.lm_head(small.model.norm(acc + never[..., None] * x))
    assert far(answer(small), out.detach()) < 1e-4


@pytest.mark.parametrize("make", [llama, qwen])
def test_cached_causal_padded(make):
    small = made(make)
    whole = answer(small)
    assert small.model.layers[0].walk.ran.float().mean() < 5.9
    other = IDS.clone()
    other[:, -1] = 5
    with torch.no_grad():
        assert far(small(other).logits[:, :-1], whole[:, :-1]) < 1e-5
    assert torch.equal(small.generate(IDS, **HOW), small.generate(IDS, **HOW, use_cache=False))
    ids = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:1, :4]], 1), IDS[1:]])
    both = small.generate(ids, attention_mask=torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7]), **HOW)
    assert torch.equal(both[0, 3:], small.generate(IDS[:1, :4], **HOW)[0])


def test_what_halts_is_not_computed_and_its_keys_stay():
    small = made()
    seen = []
    for block in small.model.layers:
        block.mlp.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[1]))
    small(IDS[:1])
    assert sum(seen) == int(small.model.layers[0].walk.ran.sum()) < 42
    held = small(IDS, use_cache=True).past_key_values
    assert [layer.get_seq_length() for layer in held.layers[:6]] == [7] * 6


def test_losses():
    small = made(experts=3, k=2, weight=0.1).train()
    small(IDS)
    walk, mixture = small.model.layers[0].walk, small.model.layers[2].mlp
    never = walk.never[5].exp()
    before = [torch.ones(2, 7), *(walk.never[i].exp() for i in range(1, 6))]
    steps = sum(i * (before[i - 1] - before[i]) for i in range(1, 6)) + 6 * never
    assert small.model.layers[0].beside().item() == pytest.approx(0.1 * steps.mean().item(), rel=1e-4)
    assert mixture.beside() is not None and mixture.beside() is None  # once for each pass
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    h = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    want = -(h(p.mean(0)) - h(p).mean())
    assert mixture.information(p).item() == pytest.approx(mixture.weight * want.item(), rel=1e-5)


def test_the_router_s_loss_is_there_while_it_heals(monkeypatch):
    """Only blocks, and what has a loss of its own, are told that they are in training."""
    seen = []
    old = Mixture.information
    monkeypatch.setattr(Mixture, "information", lambda self, p: seen.append(self.training) or old(self, p))
    healed(share.share(llama(), "sut", experts=2), tokens=100)
    assert len(seen) >= 6 and all(seen)


def test_healing():
    small = share.share(llama(), "sut", experts=2, weight=0.01)
    losses = healed(small)
    assert losses[-1] < 0.8 * losses[0]
    again = made().train()
    plain, recomputed = made().train(), again
    again.activation_checkpointing_enable({"use_reentrant": False})
    for m in (plain, recomputed):
        m(IDS, labels=IDS).loss.backward()
    assert all(
        (p.grad is None) == (q.grad is None) and (p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-4))
        for p, q in zip(plain.parameters(), recomputed.parameters())
    )


def test_refusals():
    with pytest.raises(CommonweightError, match=r"sut reads blocks with input_layernorm, self_attn.k_proj"):
        share.share(bert(), "sut")
    with pytest.raises(CommonweightError, match="sut: 7 steps; the model has 6 layers"):
        share.share(llama(), "sut", steps=7)
    with pytest.raises(CommonweightError, match="halts and done are probabilities below 1"):
        share.share(llama(), "sut", halts=1.0)
    with pytest.raises(CommonweightError, match="init is 'mean'; wanted one of"):
        share.share(llama(), "sut", init="mean")
