"""FuseGPT: which blocks go, the formula, the plain removal it begins with, and what is left after healing."""

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, share
from commonweight.builder.settle import settle
from commonweight.share import surveys
from commonweight.share.methods.fusegpt import near
from tests.adapt import tiny
from tests.share.deep import IDS, answer, far, gpt2, llama

ROWS = [IDS[0].tolist(), IDS[1].tolist()]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_fresh_one_is_the_plain_removal(make):
    model = make()
    fused = share.share(model, "fusegpt", layers=(4, 1), group=3, rank=4, fused=2)
    assert far(answer(fused), answer(share.share(model, "drop", layers=(0, 2, 3, 5)))) < 1e-6


def test_groups():
    assert near(range(10), 5, 4) == [3, 4, 6]
    assert near(range(10), 0, 4) == [1, 2, 3] and near(range(10), 9, 4) == [6, 7, 8]
    assert near([0, 2], 2, 8) == [0]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_formula(make):
    """Every number by itself; block 3 takes part in both fusions."""
    model = make()
    fused = share.share(model, "fusegpt", layers=(4, 2), group=3, rank=3, fused=2)
    before = model.get_submodule(share.anatomy(model).path)
    blocks = fused.get_submodule(share.anatomy(model).path)
    name = "mlp.up_proj" if make is llama else "mlp.c_fc"
    layer = blocks[2].get_submodule(name)  # it was block 3
    w, v4, v2 = (before[i].get_submodule(name).weight.detach() for i in (3, 4, 2))
    with torch.no_grad():
        for n, p in layer.named_parameters():
            if p.requires_grad:
                p.normal_(generator=torch.Generator().manual_seed(len(n)))
    p = {n.removeprefix("weight_"): q.detach() for n, q in layer.named_parameters()}
    assert not any(layer.get_parameter(f"weight_{n}").requires_grad for n in ("base", "more2", "more5"))
    got = layer.weight.detach()
    for i, j in ((0, 0), (5, 7), (31, 20)):
        o, k = (i, j) if make is llama else (j, i)
        want = w[i, j] + sum(p["b"][o, r] * p["a"][r, k] for r in range(3))
        for v, c, d in ((v4, "more0", "more1"), (v2, "more3", "more4")):
            want = want + sum(p[c][o, r] * p[d][r, k] for r in range(2)) * v[i, j]
        assert float(got[i, j]) == pytest.approx(float(want), abs=1e-5)


def test_the_full_rank_reaches_every_change():
    """C D = dW / V, entry by entry."""
    model = llama()
    fused = share.share(model, "fusegpt", layers=(2,), group=3, fused=32)
    layer = fused.model.layers[1].self_attn.q_proj
    v, want = model.model.layers[2].self_attn.q_proj.weight.detach(), torch.randn(32, 32)
    with torch.no_grad():
        layer.weight_more0.copy_((want - layer.weight_base) / v)
        layer.weight_more1.copy_(torch.eye(32))
    assert torch.allclose(layer.weight, want, atol=1e-4)


def test_the_blocks_that_go():
    """By the cosine of the last states with and without a block, worked out with models that lack it."""
    model = llama()

    def last(layers):
        with torch.no_grad():
            out = share.share(model, "drop", layers=layers)(IDS, output_hidden_states=True).hidden_states[-1]
        return out.flatten(0, 1)

    left, want = tuple(range(6)), []
    for _ in range(2):
        full = last(left)
        cos = {
            i: float(torch.cosine_similarity(full, last(tuple(x for x in left if x != i)), dim=-1).mean()) for i in left
        }
        want.append(max(cos, key=cos.__getitem__))
        left = tuple(x for x in left if x != want[-1])
    assert list(surveys.needless(model, ROWS, 2)) == want
    fused = share.share(model, "fusegpt", remove=2, rows=ROWS, rank=4, fused=4)
    assert far(answer(fused), answer(share.share(model, "drop", layers=left))) < 1e-6
    assert far(answer(model), answer(llama())) == 0


def test_what_is_left_is_plain(tmp_path):
    fused = share.share(llama(), "fusegpt", layers=(4, 1), group=4, rank=3, fused=2)
    with torch.no_grad():
        for p in fused.parameters():
            if p.requires_grad and p.dim() == 2:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    share.save(fused, tmp_path / "training")
    want = answer(fused)
    assert far(answer(share.load(tmp_path / "training")), want) == 0
    settle(fused)
    assert far(answer(fused), want) < 1e-6
    dropped = share.share(llama(), "drop", layers=(0, 2, 3, 5))
    assert [(n, p.shape) for n, p in fused.named_parameters()] == [(n, p.shape) for n, p in dropped.named_parameters()]
    assert fused.config.sharing["forms"] == [] and all(p.requires_grad for p in fused.parameters())
    share.save(fused, tmp_path / "s", "unrolled")
    assert far(answer(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "s").eval()), answer(fused)) < 1e-6


def test_healing_ends_in_plain_weights(request):
    teacher = tf.AutoModelForCausalLM.from_pretrained(request.getfixturevalue("llama"))
    fused = share.share(teacher, "fusegpt", layers=(1,), rank=4, fused=4)
    how = {"tokens": 2500, "lr": 3e-3, "batch_size": 4, "max_length": 32, "distillation": {"share": 1.0}}
    done = share.heal(fused, teacher=teacher, rows=[{"text": r["text"]} for r in tiny.rows(60)], **how)
    losses = [c["loss"] for c in done.curve]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert not any("weight_" in n for n, _ in done.model.named_parameters())


def test_bytes_and_refusals():
    layout = share.layout(llama(), "fusegpt", layers=(4,), group=3, rank=2, fused=3)
    shapes = [(32, 32)] * 2 + [(16, 32)] * 2 + [(64, 32)] * 2 + [(32, 64)]
    own = sum(a * b for a, b in shapes)
    factors = 2 * sum(5 * (a + b) for a, b in shapes)
    assert layout.count() == 6 * own + 5 * 2 * 32 + factors
    for options, told in (
        ({"layers": (9,)}, "block 9; the model has blocks 0 to 5"), ({"remove": 6}, "6 of 6 blocks would go"),
        ({"layers": (1, 1)}, "names a block twice"), ({}, "give it some: rows="),
    ):  # fmt: skip
        with pytest.raises(CommonweightError, match=told):
            share.share(llama(), "fusegpt", **({"rows": ROWS} if "remove" in options else {}), **options)
    (_, plain), (_, cost) = (
        share.plan(llama(), {n: [o]}) for n, o in (("drop", {"keep": 4}), ("fusegpt", {"remove": 2}))
    )
    assert cost[1:] == plain[1:]
