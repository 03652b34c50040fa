"""Depth per token: formulas written out once more, nested and causal choices, caches, and what is not computed."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from commonweight import CommonweightError, share
from commonweight.adapt.tasks.beside import Beside, of_exits
from tests.share.deep import IDS, answer, far, gpt2, llama, qwen
from tests.share.prose import healed

HOW = dict(max_new_tokens=9, do_sample=False, pad_token_id=0)
WAYS = {
    "expert": ("mor", {"loops": 3}),
    "token": ("mor", {"loops": 3, "choice": "token"}),
    "exit": ("exit", {"loops": 3}),
}


def made(way, model=None, size=1.0, **more):
    """A shared model whose routers are decided."""
    method, options = WAYS[way]
    small = share.share(model or llama(8), method, **options, **more)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in small.named_parameters():
            if name.endswith("router"):
                p.normal_(0, size)
            elif name.endswith(".bias") and p.shape == (1,):
                p.fill_(2.0)
    return small


def walk(small):
    return next(m.walk for m in small.modules() if hasattr(m, "walk"))


def inside(small):
    """(embedded, a function that runs block d on (1, k, d) states at places, what follows the blocks)."""
    x = small.model.embed_tokens(IDS[:1])

    def run(block, h, places):
        rotary = small.model.rotary_emb(h, places[None])
        mask = torch.full((len(places),) * 2, float("-inf")).triu(1)[None, None]
        return block(h, position_embeddings=rotary, attention_mask=mask)

    return x, run, lambda h: small.lm_head(small.model.norm(h))


@pytest.mark.parametrize("way", WAYS)
def test_undecided_routers_are_the_tied_model(way):
    """A gate is 1 there, and with every loop for every token nothing is left of the choice."""
    small = share.share(llama(8), *WAYS[way][:1], **WAYS[way][1])
    for name, p in small.named_parameters():
        if name.endswith("router"):
            p.data.zero_()
    walk(small).everywhere = True
    order = "cycle" if way == "exit" else "middle_cycle"
    assert far(answer(small), answer(share.share(llama(8), "recursive", loops=3, order=order))) < 1e-6


@pytest.mark.parametrize("whole", [False, True])
def test_expert_choice_by_hand(whole):
    """As the authors' code has it: top-k of the survivors, in order, and a gated sum."""
    small = made("expert", whole=whole).train()
    tied = share.share(llama(8), "recursive", loops=3, order="middle_cycle")
    x, run, out = inside(tied)
    alpha, every, lost = 0.1 if whole else 2.0, torch.arange(7), []
    x, alive = run(tied.model.layers[0], x, every), every
    for r, capacity in enumerate((1, 2 / 3, 1 / 3)):
        score = (x @ small.model.layers[1 + 2 * r].router.T)[0, :, 0]
        chosen = alive[score[alive].topk(max(1, int(capacity * 7))).indices].sort().values
        member = torch.isin(every, chosen).float()
        if r:
            lost.append(F.binary_cross_entropy_with_logits(score[alive], member[alive]))
        h = x[:, chosen]
        for block in tied.model.layers[1 + 2 * r : 3 + 2 * r]:
            h = run(block, h, chosen)
        gate = alpha * score[chosen, None].sigmoid()
        x = x.index_add(1, chosen, gate * h if whole else gate * (h - x[:, chosen]))
        alive = chosen
    want = out(run(tied.model.layers[-1], x, every))
    assert far(small(IDS[:1]).logits.detach(), want.detach()) < 1e-5
    assert small.model.layers[1].beside().item() == pytest.approx(0.001 * torch.stack(lost).sum().item(), rel=1e-4)


def test_token_choice_by_hand():
    small = made("token")
    tied = share.share(llama(8), "recursive", loops=3, order="middle_cycle")
    x, run, out = inside(tied)
    x = run(tied.model.layers[0], x, torch.arange(7))
    p = (x @ small.model.layers[1].router.T).softmax(-1)[0]
    last, h, done = p.argmax(-1), x, x.clone()
    for r in range(3):
        at = (last >= r).nonzero()[:, 0]
        sub = h[:, at]
        for block in tied.model.layers[1 + 2 * r : 3 + 2 * r] if len(at) else ():
            sub = run(block, sub, at)
        h = h.index_copy(1, at, sub)
        over = last == r
        done[:, over] = (x + 3 * p.gather(1, last[:, None])[None] * (h - x))[:, over]
    assert len(set(last.tolist())) > 1
    assert far(answer(small)[:1], out(run(tied.model.layers[-1], done, torch.arange(7))).detach()) < 1e-5
    small.train()(IDS[:1])
    balance = 3 * (F.one_hot(last, 3).float().mean(0) * p.mean(0)).sum()
    assert small.model.layers[1].beside().item() == pytest.approx(0.1 * balance.item(), rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [llama, gpt2, qwen])
def test_choices_are_nested_causal_and_cached(way, make):
    model = make(8)
    model.get_input_embeddings().weight.data.mul_(20 if make is gpt2 else 1)
    small = made(way, model, 2.0)
    whole = answer(small)
    turns = [t.alive for t in walk(small).turns.values()]
    assert all(bool((b <= a).all()) for a, b in pairwise(turns))
    assert walk(small).ran.float().mean() < 3
    other = IDS.clone()
    other[:, -1] = 5
    with torch.no_grad():
        assert far(small(other).logits[:, :-1], whole[:, :-1]) < 1e-6
    assert torch.equal(small.generate(IDS, **HOW), small.generate(IDS, **HOW, use_cache=False))


def test_the_top_k_sees_the_future():
    """Which is why eval mode, and so every measure, has the gate."""
    small = made("expert").train()
    others = torch.randint(3, 61, (20,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = small(IDS).logits[:, :-1]
        moved = [far(small(torch.cat([IDS[:, :-1], t.expand(2, 1)], 1)).logits[:, :-1], before) for t in others]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_padded_row_says_what_it_says_alone(way, attention):
    small = made(way)
    small.set_attn_implementation(attention)
    ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:1, :4]], 1)
    ids, mask = torch.cat([ids, IDS[1:]]), torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    both = small.generate(ids, attention_mask=mask, **HOW)
    assert torch.equal(both[0, 3:], small.generate(IDS[:1, :4], **HOW)[0])
    assert torch.equal(both[1], small.generate(IDS[1:], **HOW)[0])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_skipped_is_not_computed_nor_cached(way):
    small = made(way)
    seen = []
    for block in small.model.layers:
        block.mlp.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[1]))
    cache = small(IDS[:1], use_cache=True).past_key_values
    ends = 0 if way == "exit" else 2
    assert sum(seen) == int(walk(small).ran.sum()) * 2 + ends * 7 < 8 * 7
    held = [layer.get_seq_length() for layer in cache.layers[:8]]
    runs = [int(t.alive.sum()) for t in walk(small).turns.values()]
    inner = held if way == "exit" else held[1:-1]
    assert inner[: 2 * len(runs)] == [n for n in runs for _ in range(2)]


def test_who_would_leave_is_hidden_in_training():
    """So the states of those that stay are in training what they are later."""
    small = made("exit")
    late = answer(small)
    stayed = walk(small).turns[2].alive
    assert 0 < stayed.sum() < stayed.numel()
    small.train()
    with torch.no_grad():
        assert far(small(IDS).logits[stayed], late[stayed]) < 1e-5


def test_losses_of_exits_by_hand():
    small = made("exit").train()
    labels = IDS.clone()
    labels[0, 3] = -100
    final = small(IDS).logits
    block = small.model.layers[0]
    got = of_exits(small, block, labels, final)
    want, mask, what = torch.zeros(()), labels[:, 1:] != -100, labels[:, 1:]
    for x, score in walk(small).scores.values():
        early, last = small.lm_head(small.model.norm(x))[:, :-1][mask], final[:, :-1][mask].detach()
        kl = (last.softmax(-1) * (last.log_softmax(-1) - early.log_softmax(-1))).sum(-1).mean()
        same = (early.argmax(-1) == last.argmax(-1)).float()
        p = score[:, :-1][mask].sigmoid()
        want = want + 0.1 * (F.cross_entropy(early, what[mask]) + kl)
        want = want - (same * p.log() + (1 - same) * (1 - p).log()).mean()
    assert got.item() == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_healing_teaches_the_routers_too(way):
    small = made(way, size=0.02)
    routers = {n: p.clone() for n, p in small.named_parameters() if n.endswith("router")}
    losses = healed(small)
    assert losses[-1] < 0.8 * losses[0]
    assert all(not torch.equal(p, dict(small.named_parameters())[n]) for n, p in routers.items() if "1.router" not in n)
    assert not small.training and deepcopy(small) is not None


def test_recomputed_activations_change_nothing():
    for way in WAYS:
        a, b = made(way).train(), made(way).train()
        b.activation_checkpointing_enable({"use_reentrant": False})
        for m in (a, b):
            m(IDS, labels=IDS).loss.backward()
        for p, q in zip(a.parameters(), b.parameters()):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-5)


def test_what_it_does_not_read():
    from transformers import StaticCache

    small = made("expert")
    with pytest.raises(ValueError, match="depth per token needs a DynamicCache without windows, not StaticCache"):
        small(IDS, past_key_values=StaticCache(config=small.config, max_cache_len=16))
    with pytest.raises(ValueError, match="not supported with stateful models"):
        small.generate(IDS[:1], **HOW, prompt_lookup_num_tokens=2)
    with pytest.raises(CommonweightError, match="capacity has 2 numbers for 3 loops"):
        share.share(llama(8), "mor", capacity=(1.0, 0.5))
    with pytest.raises(CommonweightError, match="capacity is of choice=expert"):
        share.share(llama(8), "mor", capacity=(1.0, 0.5, 0.5), choice="token")
    assert isinstance(Beside(HOW).task, dict)


@pytest.mark.parametrize("way", WAYS)
def test_tenants_of_a_mixed_batch_answer_as_alone(way):
    """Each depth is a site of its own, and rows stay rows where tokens are picked."""
    from commonweight import Host

    host = Host(made(way))
    torch.manual_seed(1)
    for name in "ab":
        with torch.no_grad():
            for p in host.add(name, "lora", rank=2).parameters():
                p.normal_(0, 0.1)
    with torch.no_grad():
        with host.route(["a", "b"]):
            both = host.model(IDS).logits
        for row, name in enumerate("ab"):
            with host.route(name):
                assert far(host.model(IDS[row : row + 1]).logits, both[row : row + 1]) < 1e-5
