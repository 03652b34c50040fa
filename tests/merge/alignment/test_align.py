"""Alignment, PLeaS and experts: permutations change no answer, are found again, and what is merged after fits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.merge.alignment import align, experts

from ..sample import gap


def mlp(seed=0, width=12, bias=True):
    torch.manual_seed(seed)
    sizes = [5, width, width, 3]
    return nn.Sequential(*(m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b, bias=bias), nn.ReLU())))[
        :-1
    ]


LAYERS = ["0", "2", "4"]
X = torch.randn(300, 5, generator=torch.Generator().manual_seed(3))


def state(net):
    return {k: t.detach().clone() for k, t in net.state_dict().items()}


def run(weights, x=X):
    for i, name in enumerate(LAYERS):
        x = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)
        x = x.relu() if i < len(LAYERS) - 1 else x
    return x


def shapes(weights):
    return {k: tuple(t.shape) for k, t in weights.items()}


def shuffled(groups, weights, seed):
    g = torch.Generator().manual_seed(seed)
    order = {x.name: torch.randperm(x.units, generator=g) for x in groups}
    return align.permute(groups, order, weights), order


@pytest.mark.parametrize("seed", range(3))
def test_a_permuted_network_answers_the_same_and_is_put_back(seed):
    one = state(mlp(seed))
    groups = align.chain(LAYERS, shapes(one))
    other, order = shuffled(groups, one, seed)
    assert torch.allclose(run(one), run(other), atol=1e-5) and gap(one, other) > 0.1
    found = align.match(groups, one, other)
    for g in groups:
        assert torch.equal(order[g.name][found[g.name]], torch.arange(g.units))
    assert gap(align.align(groups, [one, other])[1], one) == 0
    merged = cw.merge.linear(align.align(groups, [one, other]))
    assert torch.allclose(run(merged), run(one), atol=1e-5)
    noisy = {k: t + 0.02 * torch.randn(t.shape) for k, t in other.items()}
    assert gap(align.align(groups, [one, noisy])[1], one) < 0.15


def test_matching_is_the_best_assignment():
    """One group: the descent's step is exact, as trying all permutations shows."""
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    group = align.Group("u", 5, (align.Place("w", 0),))
    found = align.match([group], {"w": a}, {"w": b})["u"]
    best = max(itertools.permutations(range(5)), key=lambda p: (a * b[list(p)]).sum())
    assert found.tolist() == list(best)


def test_heads_and_parts_of_fused_tensors_move_as_blocks():
    names = {f"attn.{n}.weight": torch.randn(6, 6) for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
    group = align.heads("attn.", 3, shapes(names))
    moved = align.permute([group], {group.name: torch.tensor([2, 0, 1])}, names)
    q, k, v, o = (t for t in names.values())
    assert torch.equal(moved["attn.q_proj.weight"], q[[4, 5, 0, 1, 2, 3]])
    assert torch.equal(moved["attn.o_proj.weight"], o[:, [4, 5, 0, 1, 2, 3]])
    assert gap(align.align([group], [names, moved])[1], names) == 0
    fused = {"qkv": torch.cat([q, k, v]), "o": o}
    group = align.Group("h", 3, (*(align.Place("qkv", 0, 6 * i) for i in range(3)), align.Place("o", 1)), 2)
    moved_too = align.permute([group], {"h": torch.tensor([2, 0, 1])}, fused)
    assert torch.equal(moved_too["qkv"][6:12], moved["attn.k_proj.weight"])


def test_feed_forwards_of_transformers_are_found_by_name():
    import transformers as tf

    torch.manual_seed(0)
    size = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
    for model in (tf.LlamaModel(tf.LlamaConfig(**size)), tf.BertModel(tf.BertConfig(**size))):
        model.eval()
        weights = state(model)
        groups = align.feed_forwards(shapes(weights))
        assert [g.units for g in groups] == [24, 24] and len(groups[0].places) == 3
        other, _ = shuffled(groups, weights, 1)
        ids = torch.arange(8)[None]
        before = model(ids).last_hidden_state
        model.load_state_dict(other)
        assert torch.allclose(model(ids).last_hidden_state, before, atol=1e-5)
        assert gap(align.align(groups, [weights, other])[1], weights) == 0


def grouped_llama(seed=0):
    """Eight query heads of width 4 for two of keys and values; biases too."""
    import transformers as tf

    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=20, attention_bias=True,
    )  # fmt: skip
    model = tf.LlamaModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return model


def shuffled_heads(groups, seed):
    """Orders of query heads that keep the heads of a group together."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for x in groups:
        blocks = torch.randperm(x.units // x.per, generator=g)
        inside = torch.stack([torch.randperm(x.per, generator=g) for _ in blocks])
        out[x.name] = (blocks[:, None] * x.per + inside).flatten()
    return out


@pytest.mark.parametrize("seed", range(3))
def test_heads_that_share_keys_and_values(seed):
    """A Llama of permuted groups and query heads answers the same, and is put back exactly."""
    model = grouped_llama()
    one = state(model)
    groups = [align.heads(f"layers.{i}.self_attn.", 8, shapes(one)) for i in range(2)]
    assert [(g.units, g.per, g.block, len(g.places), len(g.shared)) for g in groups] == [(8, 4, 4, 3, 4)] * 2
    order = shuffled_heads(groups, seed)
    other, ids = align.permute(groups, order, one), torch.arange(12)[None]
    before = model(ids).last_hidden_state
    model.load_state_dict(other)
    assert gap(one, other) > 0.1 and torch.allclose(model(ids).last_hidden_state, before, atol=1e-5)
    found = align.match(groups, one, other)
    for g in groups:
        assert torch.equal(order[g.name][found[g.name]], torch.arange(8))
    assert gap(align.align(groups, [one, other])[1], one) == 0
    both = groups + align.feed_forwards(shapes(one))
    noisy = {k: t + 0.03 * torch.randn(t.shape) for k, t in shuffled(both[2:], other, seed)[0].items()}
    assert gap(align.align(both, [one, noisy])[1], one) < 0.3
    fit = align.fits(groups, found, one, other)
    whole = sum(one[p.tensor].double().square().sum() for p, _ in groups[0].lies)
    assert fit[groups[0].name].shape == (8,) and torch.allclose(fit[groups[0].name].sum(), whole)


def test_matching_of_shared_heads_is_the_best_there_is():
    a, b = ({"q": torch.randn(6, 5), "k": torch.randn(2, 5)} for _ in range(2))
    group = align.Group("h", 6, (align.Place("q", 0),), 1, 3, (align.Place("k", 0),))
    found = align.match([group], a, b)["h"]

    def worth(p):
        moved = align.permute([group], {"h": torch.tensor(p)}, b)
        return sum((a[k] * moved[k]).sum() for k in a).item()

    inner = list(itertools.permutations(range(3)))
    every = [
        [3 * x + i for i in left] + [3 * (1 - x) + i for i in right]
        for x in (0, 1)
        for left in inner
        for right in inner
    ]
    assert worth(found.tolist()) == pytest.approx(max(map(worth, every)))


def collected(net):
    return cw.merge.collect(net, [{"input": X}], ["activations"], header={"rows": "the same"})


@pytest.mark.parametrize("bias", [True, False])
def test_pleas_from_the_ensemble_to_one_network(bias):
    """share=0 is the mean of both outputs; share=1 of a permuted copy is that network."""
    a, b = mlp(0, bias=bias), mlp(1, bias=bias)
    wide = cw.merge.pleas(LAYERS, state(a), state(b), share=0.0)
    assert shapes(wide)["2.weight"] == (24, 24)
    assert torch.allclose(run(wide), (a(X) + b(X)).detach() / 2, atol=1e-5)
    groups = align.chain(LAYERS, shapes(state(a)))
    copy, _ = shuffled(groups, state(a), 5)
    same = cw.merge.pleas(LAYERS, state(a), copy, share=1.0)
    assert torch.allclose(run(same), a(X).detach(), atol=1e-5)
    half = cw.merge.pleas(LAYERS, state(a), state(b), share=[0.5, 0.75])
    assert shapes(half)["2.weight"] == (15, 18) and shapes(half)["4.weight"] == (3, 15)


@pytest.mark.parametrize("matching", [None, "weights"])
def test_pleas_is_a_least_squares_answer_block_by_block(matching):
    """The authors' features and blocks, by pseudo-inverses; zeros between what only one and only the other has."""
    a, b = state(mlp(0)), state(mlp(1))
    files = collected(mlp(0)), collected(mlp(1))
    out = cw.merge.pleas(LAYERS, a, b, share=0.5, activations=files, matching=matching, ridge=1e-12)
    inputs = [[f.whole("activations", f"{n}.weight").double() for f in files] for n in LAYERS]
    groups = align.chain(LAYERS, shapes(a))
    by_weights = align.match(groups, a, b)
    here = align.permute(groups, by_weights, b)
    both, alone = [torch.arange(5)] * 2, [torch.arange(0)] * 2
    for i, name in enumerate(LAYERS):
        if i < 2:
            reader = LAYERS[i + 1]
            x, y = inputs[i + 1]
            near = -(x.T[:, None] - y.T[None]).norm(dim=-1)
            if matching == "weights":
                order = by_weights[name]
                fit = sum(
                    (a[k] * here[k]).movedim(d, 0).flatten(1).sum(1) if a[k].dim() > 1 else a[k] * here[k]
                    for k, d in ((f"{name}.weight", 0), (f"{name}.bias", 0), (f"{reader}.weight", 1))
                )
            else:
                order = align.assign(near)
                fit = near[torch.arange(12), order]
            best = fit.argsort(descending=True)
            now = [best[:6], order[best[:6]]]
            left = best[6:].sort().values
            rest = [left, order[left]]
        else:
            now, rest = [torch.arange(3)] * 2, [torch.arange(0)] * 2
        x = [inputs[i][k] for k in (0, 1)]
        z = [x[k] @ s[f"{name}.weight"].double().T + s[f"{name}.bias"].double() for k, s in enumerate((a, b))]
        one = torch.ones(len(X), 1, dtype=torch.float64)
        read = [(x[0][:, both[0]] + x[1][:, both[1]]) / 2, x[0][:, alone[0]], x[1][:, alone[1]]]
        goal = [(z[0][:, now[0]] + z[1][:, now[1]]) / 2, z[0][:, rest[0]], z[1][:, rest[1]]]
        rows = []
        for kind, wanted in enumerate(goal):
            seen = [r if kind == 0 or j in (0, kind) else 0 * r for j, r in enumerate(read)]
            rows.append((torch.linalg.pinv(torch.cat([*seen, one], 1)) @ wanted).T)
        want = torch.cat(rows)
        features = torch.cat([*read, one], 1)
        got = torch.cat([out[f"{name}.weight"], out[f"{name}.bias"][:, None]], 1).double()
        torch.testing.assert_close(features @ got.T, features @ want.T, rtol=1e-3, atol=1e-4)
        if i == 1:
            assert not out["2.weight"][6:12, 12:].any() and not out["2.weight"][12:, 6:12].any()
        both, alone = now, rest


def test_least_squares_come_nearer_to_the_mean_of_both():
    a, b = mlp(0), mlp(1)
    files = collected(a), collected(b)
    goal = (a(X) + b(X)).detach() / 2
    for share in (0.5, 1.0):
        plain = cw.merge.pleas(LAYERS, state(a), state(b), share=share)
        fitted = cw.merge.pleas(LAYERS, state(a), state(b), share=share, activations=files)
        assert shapes(plain) == shapes(fitted)
        errors = [(run(w) - goal).square().mean().item() for w in (plain, fitted)]
        assert errors[1] < 0.8 * errors[0], errors
    wide = cw.merge.pleas(LAYERS, state(a), state(b), share=0.0, activations=files)
    assert torch.allclose(run(wide), goal, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: align.chain(["0", "4"], shapes(a)), "4.weight: 10 entries along axis 1; 0 has 12 units"),
        (lambda a, b: align.feed_forwards(shapes(a)), "no feed-forward block is called as usual"),
        (lambda a, b: cw.merge.pleas(LAYERS, a, b, share=1.5), "share is 1.5; wanted a number from 0 to 1"),
        (
            lambda a, b: cw.merge.pleas(LAYERS, a, b, activations=({"gram/x": X}, {"gram/x": X})),
            "activations of model a holds gram; wanted activations",
        ),
        (
            lambda a, b: cw.merge.pleas(LAYERS, a, b, matching="activations"),
            "matching by activations wants them; give activations=, or matching='weights'",
        ),
        (
            lambda a, b: cw.merge.pleas(LAYERS, a, b, activations=(collected(mlp(0)), collected(mlp(1, 9)))),
            "2: the activations of model b have width 9, its layer 12",
        ),
        (lambda a, b: cw.merge.pleas(["0", "22"], a, b), "unknown linear layer '22'"),
        (lambda a, b: cw.merge.pleas([], a, b), "no layers given"),
        (
            lambda a, b: cw.merge.pleas(LAYERS, a, state(mlp(1, 9))),
            r"0.weight: shape \(12, \d+\) in model a, \(9, \d+\) in b; wanted the same",
        ),
        (lambda a, b: align.heads("x.", 2, {}), "unknown linear layer 'x.q_proj'; known: none"),
        (
            lambda a, b: align.heads("", 3, {f"{n}_proj.weight": (8, 8) for n in "qkvo"}),
            "3 heads do not fit 8 rows of q_proj and 8 of k_proj",
        ),
        (
            lambda a, b: align.heads("", 4, {f"{n}_proj.weight": (6 if n in "kv" else 8, 8) for n in "qkvo"}),
            "4 heads do not fit 8 rows of q_proj and 6 of k_proj; wanted equal heads, and a whole number",
        ),
        (
            lambda a, b: align.match([align.Group("u", 3, (align.Place("no", 0),))], a, b),
            "no: no such tensor, but the units of u lie in it",
        ),
    ],
)
def test_bad_input(call, message):
    a, b = state(mlp(0, 12)), state(mlp(1, 12))
    if "10 entries" in message:
        a["4.weight"] = torch.ones(3, 10)
    with pytest.raises(cw.CommonweightError, match=message):
        call(a, b)


def test_activations_of_other_rows():
    a, b = mlp(0), mlp(1)
    other = cw.merge.collect(b, [{"input": X}], ["activations"], header={"rows": "others"})
    with pytest.raises(cw.CommonweightError, match="the activations are of other rows"):
        cw.merge.pleas(LAYERS, state(a), state(b), activations=(collected(a), other))
    short = cw.merge.collect(b, [{"input": X[:9]}], ["activations"], header={"rows": "the same"})
    with pytest.raises(cw.CommonweightError, match="0: 300 activations of model a, 9 of b"):
        cw.merge.pleas(LAYERS, state(a), state(b), activations=(collected(a), short))


def moe(layers=2, count=4):
    g = torch.Generator().manual_seed(0)
    sizes = {"w1.weight": (6, 4), "w3.weight": (6, 4), "w2.weight": (4, 6)}
    out = {
        f"model.layers.{i}.moe.experts.{e}.{k}": torch.randn(s, generator=g)
        for i in range(layers)
        for e in range(count)
        for k, s in sizes.items()
    }
    return {**out, "model.norm.weight": torch.ones(4)}


def expert(weights, layer, e, x):
    w1, w3, w2 = (weights[f"model.layers.{layer}.moe.experts.{e}.{k}.weight"] for k in ("w1", "w3", "w2"))
    return (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T


LIKE = torch.tensor(
    [[1, 0.9, 0.1, 0.2], [0.9, 1, 0.3, 0.1], [0.1, 0.3, 1, 0.8], [0.2, 0.1, 0.8, 1]], dtype=torch.float64
)


def test_experts_are_grouped_around_the_most_used_and_averaged_by_use():
    weights = moe()
    layers = [
        experts.Routing(torch.tensor([0.4, 0.1, 0.3, 0.2]), LIKE),
        experts.Routing(torch.tensor([0.1, 0.7, 0.1, 0.1]), LIKE),
    ]
    assert [x.tolist() for x in experts.dominant(layers, 0.5)] == [[0, 2, 3], [1]]
    merged = experts.merge_experts(weights, layers, keep=0.5, align=False)
    assert [g.tolist() for g in merged.groups.values()] == [[0, 0, 1, 2], [0, 0, 0, 0]]
    name = "model.layers.{}.moe.experts.{}.w1.weight"
    w = [weights[name.format(0, e)] for e in range(4)]
    assert torch.allclose(merged.state[name.format(0, 0)], 0.8 * w[0] + 0.2 * w[1])
    assert torch.allclose(merged.state[name.format(0, 1)], w[2]) and name.format(1, 1) not in merged.state
    w = [weights[name.format(1, e)] for e in range(4)]
    wanted = sum(u * x for u, x in zip((0.1, 0.7, 0.1, 0.1), w))
    assert torch.allclose(merged.state[name.format(1, 0)], wanted, atol=1e-6)
    whole = merged.expanded()
    assert whole.keys() == weights.keys() and whole[name.format(1, 3)] is whole[name.format(1, 0)]


def test_experts_that_are_one_in_another_order_become_that_one():
    weights, x = moe(1), torch.randn(10, 4)
    g = torch.Generator().manual_seed(1)
    for e in range(1, 4):
        p = torch.randperm(6, generator=g)
        for k in ("w1", "w3", "w2"):
            t = weights[f"model.layers.0.moe.experts.0.{k}.weight"]
            weights[f"model.layers.0.moe.experts.{e}.{k}.weight"] = t[:, p] if k == "w2" else t[p]
    layers = [experts.Routing(torch.full((4,), 0.25), LIKE)]
    merged = experts.merge_experts(weights, layers, keep=0.25)
    assert torch.allclose(expert(merged.state, 0, 0, x), expert(weights, 0, 3, x), atol=1e-5)
    plain = experts.merge_experts(weights, layers, keep=0.25, align=False)
    assert not torch.allclose(expert(plain.state, 0, 0, x), expert(weights, 0, 3, x), atol=0.1)


def mixtures():
    import transformers as tf

    size = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=20)
    yield tf.MixtralForCausalLM(tf.MixtralConfig(**size, intermediate_size=24, num_local_experts=4))
    yield tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**size, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    )


@pytest.mark.parametrize("which", [0, 1])
def test_experts_of_a_models_own_state_dict(which):
    """transformers holds a layer's experts as one tensor: the same merge as of experts apart, and the model runs it."""
    torch.manual_seed(0)
    model = list(mixtures())[which].eval()
    weights, apart = state(model), {}
    g = torch.Generator().manual_seed(1)
    for i in range(2):  # every expert is the first one in another order
        up, down = (weights[f"model.layers.{i}.mlp.experts.{n}"] for n in ("gate_up_proj", "down_proj"))
        up[0], down[0] = torch.randn(up[0].shape, generator=g), torch.randn(down[0].shape, generator=g)
        for e in range(1, 4):
            p = torch.randperm(24, generator=g)
            up[e], down[e] = torch.cat([up[0, :24][p], up[0, 24:][p]]), down[0][:, p]
    model.load_state_dict(weights)
    layers = experts.routing(model, [{"input_ids": torch.arange(12).view(2, 6)}])
    for name, t in weights.items():
        if ".experts." not in name:
            apart[name] = t
        for e in range(4) if ".experts." in name else ():
            at = name.rpartition(".")[0] + f".{e}."
            new = {"gate_proj": t[e, :24], "up_proj": t[e, 24:]} if "gate_up" in name else {"down_proj": t[e]}
            apart.update({f"{at}{k}.weight": x for k, x in new.items()})
    ids = torch.arange(6)[None]
    before = model(ids).logits
    merged, other = (experts.merge_experts(s, layers, keep=0.25) for s in (weights, apart))
    assert merged.groups.keys() == other.groups.keys() and merged.expanded().keys() == weights.keys()
    for i in range(2):
        at = f"model.layers.{i}.mlp.experts"
        assert merged.state[f"{at}.gate_up_proj"].shape == (1, 48, 16)
        gate, up = (other.state[f"{at}.0.{n}_proj.weight"] for n in ("gate", "up"))
        assert torch.allclose(merged.state[f"{at}.gate_up_proj"][0], torch.cat([gate, up]))
        assert torch.allclose(merged.state[f"{at}.down_proj"][0], other.state[f"{at}.0.down_proj.weight"])
    model.load_state_dict(merged.expanded())
    assert torch.allclose(model(ids).logits, before, atol=1e-5)
    plain = experts.merge_experts(weights, layers, keep=0.25, align=False)
    model.load_state_dict(plain.expanded())
    assert not torch.allclose(model(ids).logits, before, atol=1e-2)


def test_experts_that_are_not_understood():
    layers = [experts.Routing(torch.full((2,), 0.5), LIKE[:2, :2])]
    turned = {"m.experts.gate_up_proj": torch.randn(2, 8, 12), "m.experts.down_proj": torch.randn(2, 6, 8)}
    with pytest.raises(
        cw.CommonweightError, match=r"experts.gate_up_proj is \(8, 12\) beside down_proj \(6, 8\).*align=F"
    ):
        experts.merge_experts(turned, layers)
    assert experts.merge_experts(turned, layers, align=False).state["m.experts.down_proj"].shape == (1, 6, 8)
    with pytest.raises(
        cw.CommonweightError, match=r"have \[\] experts, the routing \[2\].*all of a layer in one tensor"
    ):
        experts.merge_experts({"w": torch.ones(2, 2)}, layers)
    odd = {"m.experts.0.w1.weight": torch.ones(2, 2), "m.experts.1.w2.weight": torch.ones(2, 2)}
    with pytest.raises(
        cw.CommonweightError, match=r"m.experts: expert 1 has \['w2.weight'\], expert 0 \['w1.weight'\]"
    ):
        experts.merge_experts(odd, layers)


def test_routing_of_a_real_mixture():
    import transformers as tf

    torch.manual_seed(0)
    config = tf.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=20, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = tf.MixtralForCausalLM(config).eval()
    batch = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    found = experts.routing(model, [batch])
    assert len(found) == 2
    for of, logits in zip(found, model(**batch, output_router_logits=True).router_logits):
        seen = logits.view(2, 6, 4)[batch["attention_mask"].bool()]
        counts = torch.bincount(seen.topk(2).indices.flatten(), minlength=4)
        assert torch.allclose(of.usage.float(), counts / counts.sum()) and counts.sum() == 20
        assert abs(of.likeness[0, 0] - 1) < 1e-6
        assert abs(of.likeness[0, 1] - torch.cosine_similarity(seen[:, 0], seen[:, 1], 0)) < 1e-5
    with pytest.raises(cw.CommonweightError, match="not a mixture of experts"):
        experts.routing(tf.LlamaForCausalLM(tf.LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                        num_attention_heads=2, vocab_size=20)), [batch], top_k=1)  # fmt: skip


def test_compressed_experts():
    w = torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
    whole = experts.compress(w, rank=8, columns=0)
    assert torch.allclose(whole.weight(), w, atol=1e-5)
    low, mixed = experts.compress(w, 3, 0), experts.compress(w, 3, 4)
    assert (mixed.weight() - w).norm() < (low.weight() - w).norm() and mixed.s.shape == (8, 4)
    assert torch.allclose(mixed.weight()[:, mixed.columns], w[:, mixed.columns], atol=1e-5)


@pytest.mark.parametrize(
    ("keep", "layers", "message"),
    [
        (0.0, 2, "keep is 0.0; wanted a share above 0"),
        (0.5, 1, r"the model's layers have \[4, 4\] experts, the routing \[4\]"),
    ],
)
def test_bad_experts(keep, layers, message):
    routing = [experts.Routing(torch.full((4,), 0.25), LIKE)] * layers
    with pytest.raises(cw.CommonweightError, match=message):
        experts.merge_experts(moe(), routing, keep=keep)
