"""LST against its formula, with torch's own layers in place of ours."""

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.methods import Shown
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"reduction": 4, "heads": 2}
VARIANTS = [{"drop": (0,), "expansion": 2.0}]
SLOTS = ("W", "b", "alpha", "norms", "qkv", "O", "U", "D", "norm", "W_up", "b_up")


def rms(x, gain):
    return nn.functional.rms_norm(x, x.shape[-1:], gain, 1e-6)


def ladder(xs, p, kept, heads, causal, mask):
    """nn.MultiheadAttention row by row, on the tokens that are there alone."""
    out = torch.zeros_like(xs[0])
    for i in range(len(out)):
        there = mask[i].bool()
        x, n = [s[i : i + 1, there] for s in xs], int(there.sum())
        h = x[0] @ p["W"][0].T + p["b"][0]
        hidden = torch.ones(n, n).triu(1).bool() if causal else None
        for k, at in enumerate(kept):
            mu = torch.sigmoid(p["alpha"][k] / 0.1)
            h = mu * h + (1 - mu) * (x[at + 1] @ p["W"][k + 1].T + p["b"][k + 1])
            att = nn.MultiheadAttention(h.shape[-1], heads, bias=False, batch_first=True)
            att.in_proj_weight, att.out_proj.weight = nn.Parameter(p["qkv"][k]), nn.Parameter(p["O"][k])
            t = rms(h, p["norms"][k, 0])
            h = h + att(t, t, t, attn_mask=hidden)[0]
            h = h + nn.functional.gelu(rms(h, p["norms"][k, 1]) @ p["U"][k].T) @ p["D"][k].T
        out[i, there] = rms(h, p["norm"]) @ p["W_up"].T + p["b_up"]
    return out


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("drop", [(), (0,)])
def test_formula(kind, drop):
    model, batch = make(kind)
    host = cw.Host(model)
    inner, home = (model, "encoder.layer") if kind == "bert" else (model.model, "model.layers")
    tenant = stir(host.add("t", "lst", reduction=4, heads=2, drop=drop), std=0.2)
    p = {k: tenant.pools[f"{home}.trunk.{k}"].detach() for k in SLOTS}
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[0, :2] = mask[1, 5:] = 0
    with torch.no_grad():
        states = [*model(**batch, attention_mask=mask, output_hidden_states=True).hidden_states]
        if kind == "llama":  # the last of these is behind the norm, and the ladder reads the one before it
            last = []
            handle = model.model.layers[-1].register_forward_hook(lambda m, a, y: last.append(y))
            model(**batch, attention_mask=mask)
            handle.remove()
            states[-1] = last[0]
        want = ladder(states, p, [i for i in (0, 1) if i not in drop], 2, kind == "llama", mask)
        want = want if kind == "bert" else model.lm_head(inner.norm(want))
        with host.route("t"):
            found = answer(model, {**batch, "attention_mask": mask})
    torch.testing.assert_close(found[mask.bool()], want[mask.bool()], rtol=1e-4, atol=1e-5)


def test_count():
    """d = 768, four heads, c = 96, f = 384, with nine of twelve rungs."""
    site = cw.Site("layers.trunk", 768, 13 * 768 + 1, "trunk")
    block = 1 + 2 * 96 + 4 * 96 * 96 + 2 * 96 * 384
    assert cw.plan("lst", [site], drop=(0, 4, 8)).count() == 10 * (96 * 768 + 96) + 9 * block + 96 + 96 * 768 + 768


def test_a_block_to_drop_that_is_not_there():
    with pytest.raises(cw.CommonweightError, match=r"lst: drop names block 2, and layers.trunk has 2, counted from 0"):
        cw.plan("lst", [cw.Site("layers.trunk", 8, 25, "trunk")], drop=(2,))


def test_the_width_is_a_multiple_of_the_heads():
    plan = cw.plan("lst", [cw.Site("layers.trunk", 100, 301, "trunk")], reduction=8, heads=4)
    assert plan.pools["layers.trunk.norm"].shape == (16,)


def best(importance, n):
    return sorted(sorted(range(len(importance)), key=lambda i: -float(importance[i].abs().sum()))[:n])


def chained(model, importance, c, f, repeat=1):
    """The official loop over layers of BERT's or Llama's names, with the product of the code for T5."""
    bert = hasattr(model, "encoder")
    at = best(importance["table"].T, c)
    out = []
    for block in model.encoder.layer if bert else model.model.layers:
        a = block.attention if bert else block.self_attn
        q, k, v = (a.self.query, a.self.key, a.self.value) if bert else (a.q_proj, a.k_proj, a.v_proj)
        o = a.output.dense if bert else a.o_proj
        up, down = (block.intermediate.dense, block.output.dense) if bert else (block.mlp.up_proj, block.mlp.down_proj)
        wide = [importance[q], *(grouped(importance[p], repeat) for p in (k, v))]
        rows = best((wide[0].double() * wide[1] * wide[2])[:, at], c)
        qkv = [w[rows][:, at] for w in (q.weight, grouped(k.weight, repeat), grouped(v.weight, repeat))]
        after = best(importance[o][:, rows], c)
        hidden = best(importance[up][:, after], f)
        at = best(importance[down][:, hidden], c)
        out.append((torch.cat(qkv), o.weight[after][:, rows], up.weight[hidden][:, after], down.weight[at][:, hidden]))
    return [torch.stack(s) for s in zip(*out)]


def grouped(w, repeat, head=8):
    """As many rows as the queries have: keys and values of `head` numbers, each `repeat` times."""
    return torch.cat([h for h in w.split(head) for _ in range(repeat)]) if repeat > 1 else w


@pytest.mark.parametrize("start", ["rows", "weights"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_begins_as_what_matters_most(kind, start):
    model, batch = make(kind)
    host = cw.Host(model)
    ids = batch["input_ids"][:3]
    given = {"rows": Shown([{"input_ids": ids}], lambda m, b: m(**b)[0].square().mean())} if start == "rows" else {}
    tenant = host.add("t", "lst", reduction=4, heads=2, expansion=1.5, start=start, **given)
    assert tenant.config.start == "given"
    parts = {m: m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    parts["table"] = model.get_input_embeddings().weight
    importance = {n: w.detach().clone() for n, w in parts.items()}
    if start == "rows":
        importance = {n: torch.zeros_like(w) for n, w in parts.items()}
        model.requires_grad_(True)
        for row in ids:
            found = torch.autograd.grad(model(row[None])[0].square().mean(), list(parts.values()), allow_unused=True)
            for total, g in zip(importance.values(), found):
                total += 0 if g is None else g**2
    home = "encoder.layer.trunk" if kind == "bert" else "model.layers.trunk"
    c = tenant.pools[f"{home}.norm"].shape[0]
    repeat = 1 if kind == "bert" else model.config.num_attention_heads // model.config.num_key_value_heads
    for slot, want in zip(("qkv", "O", "U", "D"), chained(model, importance, c, round(1.5 * c), repeat)):
        torch.testing.assert_close(tenant.pools[f"{home}.{slot}"], want, msg=slot)


def test_a_sum_of_logarithms_keeps_what_matters_least():
    """The released code for BERT ranks rows by |log a + log b + log c|."""
    found = torch.tensor([[1e-2, 1e-2], [1e-4, 1e-4]])
    assert best(found * found * found, 1) == [0] and best(3 * found.log(), 1) == [1]


def test_a_start_that_cannot_be():
    host = cw.Host(make("gpt2")[0])
    with pytest.raises(cw.CommonweightError, match=r"h\.0: no single layer is its query .* take start='random'"):
        host.add("t", "lst", reduction=4, heads=2, start="weights")
    host = cw.Host(make("bert")[0])
    with pytest.raises(cw.CommonweightError, match=r"lst with start='rows' begins from data: .* give rows="):
        host.add("t", "lst", reduction=4, heads=2, start="rows")
    with pytest.raises(cw.CommonweightError, match=r"trunk\[0\].up: \d+ rows, of which \d+ were to be left"):
        host.add("t", "lst", reduction=1, heads=2, expansion=9.0, start="weights")
