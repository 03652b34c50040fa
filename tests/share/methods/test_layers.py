"""Methods that tie, drop or repeat layers: identities of their definitions, and formulas written out once more."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from commonweight import CommonweightError, share
from commonweight.share import surveys
from commonweight.share.methods.crash import clusters
from tests.share.deep import IDS, KINDS, answer, bert, far, gpt2, llama
from tests.share.prose import healed

ROWS = [IDS[0].tolist(), IDS[1].tolist()[:5]] * 3
SAME = {  # options with which a method gives the model itself
    "crash": {"clusters": 6, "ends": 0}, "drop": {"keep": 6}, "foldgpt": {"keep": 6, "group": 1, "steps": 2},
    "ilr": {"loop_map": (1,) * 6}, "matching": {"units": 6}, "mobillama": {"groups": 6}, "recursive": {"loops": 1},
    "subformer": {"ends": 2, "relax": 64},
}  # fmt: skip


def owners(small, name="mlp.up_proj.weight"):
    return small.config.sharing["tied"].get(name, list(range(small.config.num_hidden_layers)))


@pytest.mark.parametrize("method", SAME)
def test_nothing_shared_is_the_model_itself(method):
    model = llama()
    assert far(answer(share.share(model, method, rows=ROWS, **SAME[method])), answer(model)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [m for m in share.available() if m != "recursive"])
def test_sizes_are_those_of_the_plan(method, kind, tmp_path):
    """And a saved folder holds each tensor once, and loads to the same."""
    model = KINDS[kind]()
    without_bert = ("widenet", "foldgpt", "product_keys", "sret", "parscale")
    if (kind == "bert" and method in without_bert) or (kind in ("bert", "gpt2") and method in ("sut", "shared_diff")):
        with pytest.raises(
            CommonweightError,
            match=r"one module without norms|foldgpt learns gates by a language|sut reads|sret scales|no norm behind|"
            r"wanted a self_a",
        ):
            share.share(model, method, rows=ROWS)
        return
    options = {"crash": {"clusters": 1}, "foldgpt": {"steps": 1}, "zamba": {"rank": 4, "output": True}}.get(method, {})
    small = share.share(model, method, rows=ROWS, **options)
    layout = share.layout(model, method, rows=ROWS, **options)
    blocks = small.get_submodule(share.anatomy(model).path)
    assert sum(p.numel() for p in blocks.parameters()) == layout.within().count()
    share.save(small, tmp_path / "s")
    assert far(answer(share.load(tmp_path / "s")), answer(small)) < 1e-6


def test_drop():
    model = llama()
    small = share.share(model, "drop", layers=(4, 0))
    assert torch.equal(small.model.layers[0].mlp.up_proj.weight, model.model.layers[4].mlp.up_proj.weight)
    assert [b.self_attn.layer_idx for b in small.model.layers] == [0, 1]
    states = surveys.states(model, ROWS)
    bi = [float(1 - F.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(states)]
    want = sorted(sorted(range(6), key=lambda i: -bi[i])[:3])
    kept = share.layout(model, "drop", keep=3, which="influence", rows=ROWS).like
    assert list(kept) == want
    with pytest.raises(CommonweightError, match="drop chooses by what the model does with text; give it some"):
        share.share(model, "drop", keep=3, which="influence")


def test_hidden_states_are_transformers_own():
    model = llama()
    ours = surveys.states(model, [IDS[0].tolist()])
    theirs = model(IDS[:1], output_hidden_states=True).hidden_states  # the last one is after the norm
    assert all(torch.allclose(a, b[0], atol=1e-6) for a, b in zip(ours[:-1], theirs[:-1]))


def test_cka():
    g = torch.Generator().manual_seed(0)
    x, q = torch.randn(50, 8, generator=g), torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    assert surveys.cka(x, 3 * x @ q) == pytest.approx(1, abs=1e-5)
    k = lambda a: (a - a.mean(0)) @ (a - a.mean(0)).T  # noqa: E731  by kernels, as the paper writes HSIC
    y = torch.randn(50, 8, generator=g)
    want = (k(x) * k(y)).sum() / ((k(x) * k(x)).sum() * (k(y) * k(y)).sum()).sqrt()
    assert surveys.cka(x, y) == pytest.approx(float(want), abs=1e-5)


def test_crash_merges_the_most_alike_neighbours_first():
    alike = [0.1, 0.9, 0.2, 0.8, 0.3, 0.4]
    assert clusters(alike, range(7), 5) == [[0], [1, 2], [3, 4], [5], [6]]
    assert clusters(alike, range(7), 3) == [[0], [1, 2], [3, 4, 5, 6]]
    small = share.share(llama(), "crash", clusters=1, ends=1, rows=ROWS)
    assert owners(small) == [0, 1, 1, 1, 1, 5]
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, llama().model.layers[3].mlp.up_proj.weight)


def test_ilr_repeats_in_place():
    model = llama()
    small = share.share(model, "ilr", loop_map=(4, 1, 1), loop_embedding=True)
    assert owners(small) == [0, 0, 0, 0, 4, 5]
    with torch.no_grad():
        for d, block in enumerate(small.model.layers):
            block.e.fill_(0.01 * d)
    x = small.model.embed_tokens(IDS)
    rotary = small.model.rotary_emb(x, torch.arange(7)[None])
    plain = share.share(model, "ilr", loop_map=(4, 1, 1))
    mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    for d in range(6):
        x = plain.model.layers[d](x + 0.01 * d, position_embeddings=rotary, attention_mask=mask)
    want = small.lm_head(small.model.norm(x))
    assert far(answer(small), want.detach()) < 1e-5


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_one_step_each_is_the_tied_model(make):
    small = share.share(make(), "steps", steps=6)
    tied = share.share(make(), "recursive", loops=6, init="average")
    assert far(answer(small), answer(tied)) < 1e-5


def test_fewer_longer_steps():
    """h + (N / M) f(h), M times; longer steps come nearer to all of them than as many plain ones."""
    model = llama()
    small, plain = share.share(model, "steps", steps=3), share.share(model, "steps", steps=3, scale=False)
    x = small.model.embed_tokens(IDS)
    rotary = small.model.rotary_emb(x, torch.arange(7)[None])
    mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    for block in plain.model.layers:
        x = x + 2.0 * (block(x, position_embeddings=rotary, attention_mask=mask) - x)
    assert far(answer(small), small.lm_head(small.model.norm(x)).detach()) < 1e-5
    whole = answer(share.share(model, "steps", steps=6))
    assert far(answer(small), whole) < 0.5 * far(answer(plain), whole)
    assert len(share.share(bert(), "steps", steps=3, train=True).config.sharing["forms"]) == 2  # both sublayers


def test_mobillama_has_one_ffn_and_attentions_of_their_own():
    small = share.share(llama(), "mobillama")
    assert owners(small) == [0] * 6 and owners(small, "self_attn.q_proj.weight") == list(range(6))
    mean = sum(b.mlp.up_proj.weight for b in llama().model.layers) / 6
    assert torch.allclose(small.model.layers[2].mlp.up_proj.weight, mean, atol=1e-7)
    size = 3 * 32 * 64 + 6 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 32)
    assert share.layout(llama(), "mobillama").count() == size


def test_subformer_keeps_both_ends_and_all_norms():
    small = share.share(llama(), "subformer", init="first")
    assert owners(small) == [0, 1, 1, 1, 1, 5]
    assert len({id(b.input_layernorm.weight) for b in small.model.layers}) == 6
    assert torch.equal(small.model.layers[4].mlp.up_proj.weight, llama().model.layers[1].mlp.up_proj.weight)


def test_widenet_of_one_expert_is_the_tied_layer():
    small = share.share(llama(), "widenet", experts=1, k=1, capacity=1.0)
    tied = share.share(llama(), "recursive", loops=6, init="average", share_norms=False)
    assert far(answer(small), answer(tied)) < 1e-6


def test_widenet_by_hand():
    """Each token takes k experts by a softmax over all; what is over an expert's room is dropped."""
    small = share.share(llama(), "widenet", experts=3, k=2, capacity=0.8)
    mixture = small.train().model.layers[0].mlp
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    flat, room = x.reshape(10, 32), int(10 * 0.8 * 2 / 3)
    p = (flat @ mixture.router.T).softmax(-1)
    want, taken = torch.zeros_like(flat), [0, 0, 0]
    for t in range(10):
        for e in p[t].argsort(descending=True)[:2].tolist():
            if taken[e] < room:
                want[t] += p[t, e] * mixture.experts[e](flat[t])
                taken[e] += 1
    assert torch.allclose(mixture(x), want.view_as(x), atol=1e-6)
    each = torch.cat([mixture.eval()(x[:, t : t + 1]) for t in range(5)], 1)
    assert torch.allclose(mixture(x), each, atol=1e-6)  # what generates takes a token alone as among others


def test_zamba_uses_blocks_in_turn():
    small = share.share(llama(), "zamba", blocks=2, rank=64, output=True)
    assert owners(small) == [0, 1, 0, 1, 0, 1]
    at = [f["at"] for f in small.config.sharing["forms"]]
    assert sorted(at) == ["", "mlp.gate_proj", "mlp.up_proj"]
    same = share.share(llama(), "zamba", blocks=2, rank=64)
    assert far(answer(small), answer(same)) < 1e-6  # the maps begin as the identity
    layer, original = same.model.layers[3].mlp.up_proj, llama().model.layers[3].mlp.up_proj.weight
    assert torch.allclose(layer.weight + layer.update(), original, atol=1e-6)
    with pytest.raises(CommonweightError, match="3 blocks for 3 uses share nothing; lower blocks or every"):
        share.share(llama(), "zamba", blocks=3, every=2)


def test_foldgpt_removes_by_gates_and_folds_neighbours():
    about = share.anatomy(llama())
    plan, config = share.available()["foldgpt"].plan, share.methods.FoldGPT(keep=4, group=2)
    layout = plan(about, config, {"gates": (0.9, 0.1, 0.8, 0.7, 0.2, 1.0)})
    assert layout.like == (0, 2, 3, 5)
    reads = {u.site: u.reads["weight"].pools[0] for u in layout.plan.uses}
    assert reads["1.mlp.up_proj.weight"] == reads["0.mlp.up_proj.weight"] != reads["2.mlp.up_proj.weight"]
    assert reads["1.input_layernorm.weight"] != reads["0.input_layernorm.weight"]


def test_a_gate_of_zero_is_the_model_without_the_block():
    from commonweight.address import WHOLE
    from commonweight.bind import Step
    from commonweight.builder import build, tied
    from commonweight.core import Constant, Pool, Read, Use

    model = llama()
    about = share.anatomy(model)
    layout = tied(about, range(6), lambda at, w: None)
    gates = {f"gate{i}": Pool((1,), Constant(float(i != 2))) for i in range(6)}
    gated = build(model, layout.plus(gates, [Use(str(i), Step(), {"g": Read(WHOLE, (f"gate{i}",))}) for i in range(6)]))
    assert far(answer(gated), answer(share.share(model, "drop", layers=(0, 1, 3, 4, 5)))) < 1e-6


def test_plans_of_all_methods_on_the_meta_device():
    import transformers as tf

    with torch.device("meta"):
        model = tf.LlamaForCausalLM(llama().config)
    rows = share.plan(model)
    assert rows[0].method == "original" and rows[0].parameters == sum(p.numel() for p in llama().parameters())
    half = next(r for r in rows if r.method == "recursive loops=2")
    assert (
        half.blocks * 2 == rows[0].blocks
        and half.flops == rows[0].flops
        and half.cache == rows[0].cache == 6 * 2 * 2 * 8 * 4
    )
    dropped = next(r for r in rows if r.method == "drop keep=3")
    assert dropped.cache * 2 == rows[0].cache and dropped.flops < rows[0].flops
    assert len({r.method for r in rows}) == len(rows)
    for r in rows:  # wherever a weight is read from, a token meets all of it
        if r.method.split()[0] in ("masa", "mip", "supernet", "hashed", "igpg", "mixturegrowth", "qfa", "efficientdm"):
            assert r.flops == rows[0].flops, r
    assert next(r for r in rows if r.method.startswith("shared_diff")).cache == 2 * rows[0].cache


def test_of_a_table_of_values_a_token_meets_the_rows_that_it_reads():
    import transformers as tf

    with torch.device("meta"):
        model = tf.LlamaForCausalLM(llama().config)
    options = {"layers": (1,), "heads": 2, "width": 8, "n": 16, "k": 3}
    plain, memory = share.plan(model, {"product_keys": [{**options, "beside": True}]})
    d = model.config.hidden_size
    assert memory.flops - plain.flops == 2 * (2 * 8 * d + 2 * 16 * 8 + 2 * 3 * d)


def test_sret_begins_as_the_tied_model_and_by_hand():
    """The four factors of the official code, as three and a factor of the whole."""
    tied = share.share(llama(), "recursive", loops=2, order="sequence", init="average")
    small = share.share(llama(), "sret")
    assert far(answer(small), answer(tied)) < 1e-6
    a1, a2, a3, a4, b1, b2 = 0.9, 1.2, 1.1, 0.7, 0.8, 0.5
    torch.manual_seed(0)
    with torch.no_grad():
        for block in small.model.layers:
            block.self_attn.o_proj.v.fill_(a2 / a1)
            block.mlp.down_proj.v.fill_(a4 / (a1 * a3))
            block.v.fill_(a1 * a3)
            block.mix.copy_(torch.tensor([b1, b2]))
            block.mix_out.normal_()
        x = small.model.embed_tokens(IDS)
        rotary = small.model.rotary_emb(x, torch.arange(7)[None])
        mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
        for block, own in zip(tied.model.layers, small.model.layers):
            h, _ = block.self_attn(block.input_layernorm(x), rotary, mask)
            x = a1 * x + a2 * h
            x = a3 * x + a4 * block.mlp(block.post_attention_layernorm(x))
            normed = F.layer_norm(x, (32,), own.mix_norm)
            x = b1 * x + b2 * F.gelu(normed @ own.mix_in.T) @ own.mix_out.T
        want = small.lm_head(small.model.norm(x))
    assert far(answer(small), want) < 1e-4
    assert small.model.layers[0].v is small.model.layers[1].v is not small.model.layers[2].v
    assert small.model.layers[0].mix_in is not small.model.layers[1].mix_in
    losses = healed(share.share(llama(), "sret"), 4000)
    assert losses[-1] < 0.8 * losses[0]


def test_mixturegrowth_with_a_template_for_each_block_is_the_model():
    model = llama()
    assert far(answer(share.share(model, "mixturegrowth", templates=24)), answer(model)) < 1e-5
    small = share.share(model, "mixturegrowth", templates=8)
    layer, first = (small.model.layers[i].mlp.up_proj for i in (3, 0))
    assert layer.weight_templates is first.weight_templates
    c, t = layer.weight_coefficients, layer.weight_templates
    rows = [torch.cat([sum(c[2 * r + k, n] * t[n] for n in range(8)) for k in (0, 1)], 1) for r in (0, 1)]
    assert torch.allclose(layer.weight, torch.cat(rows), atol=1e-6)
    blocks = torch.cat([b.mlp.up_proj.weight[r : r + 32, k : k + 16][None].flatten(1)
                        for b in model.model.layers for r in (0, 32) for k in (0, 16)])  # fmt: skip
    lost = sum((b.mlp.up_proj.weight - s.mlp.up_proj.weight).square().sum().item()
               for b, s in zip(model.model.layers, small.model.layers))  # fmt: skip
    assert lost == pytest.approx(torch.linalg.svdvals(blocks)[8:].square().sum().item(), rel=1e-3)
    with pytest.raises(CommonweightError, match=r"q_proj.weight is \[32, 32\], which grid=3 does not divide"):
        share.share(model, "mixturegrowth", grid=3)
    losses = healed(small, 4000)
    assert losses[-1] < 0.8 * losses[0]


def test_a_grown_layer_begins_as_two_side_by_side():
    from commonweight.address import Tiles, grown

    templates, c = torch.randn(6, 3, 2), torch.randn(2, 6)
    halves = [torch.einsum("t,toi->oi", one, templates) for one in c]
    assert torch.allclose(Tiles(2)(templates, grown(*c, noise=0.0)), torch.block_diag(*halves), atol=1e-6)
    fresh = grown(*c, noise=1.0)[1]
    assert float((c @ fresh).abs().max()) < 1e-5 and float(fresh.norm()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="2 templates have no direction that two mixtures lack"):
        grown(torch.ones(2), torch.ones(2))


def test_nanoflow_tells_a_shared_block_its_step():
    tied = share.share(llama(), "recursive", loops=6, init="average")
    small = share.share(llama(), "nanoflow")
    assert far(answer(small), answer(tied)) < 1e-6
    torch.manual_seed(0)
    with torch.no_grad():
        for block in small.model.layers:
            block.e.normal_(0, 0.1)
            block.g.uniform_(0.5, 1.5)
        x = small.model.embed_tokens(IDS)
        rotary = small.model.rotary_emb(x, torch.arange(7)[None])
        mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
        for plain, own in zip(tied.model.layers, small.model.layers):
            h = plain(x + own.e, position_embeddings=rotary, attention_mask=mask)
            x = x + own.g * (h - x)
        want = small.lm_head(small.model.norm(x))
    assert far(answer(small), want) < 1e-5
    assert owners(share.share(llama(), "nanoflow", units=2)) == [0, 0, 0, 3, 3, 3]
    losses = healed(share.share(llama(), "nanoflow"), 4000)
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(CommonweightError, match="nanoflow: 7 units of 6 layers"):
        share.share(llama(), "nanoflow", units=7)
