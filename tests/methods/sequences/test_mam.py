"""Mix and match against BERT's layer written out on the model's own weights."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"tokens": 3, "size": 5}
VARIANTS = [{"projection": 6}]


def test_formula_in_one_layer():
    """softmax(q [P_K; K]^T / sqrt(d)) [P_V; V], and 2 (W_up relu(W_down x + b_down) + b_up) before the ffn's norm."""
    model, batch = make("bert")
    host = cw.Host(model)
    t = stir(host.add("t", "mam", **SMALL, scale=2.0), std=0.3)
    block = model.encoder.layer[0]
    at, name = block.attention.self, "encoder.layer.0"
    P = t.pools[f"{name}.attention.self.prefix.P"]
    down, down_bias, up, up_bias = (t.pools[f"{name}.ffn.{k}"] for k in ("down", "down_bias", "up", "up_bias"))
    got = []
    handle = block.register_forward_hook(lambda m, args, y: got.append((args[0], y[0] if isinstance(y, tuple) else y)))
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
    handle.remove()
    x, y = got[0]
    with torch.no_grad():
        q, k, v = at.query(x), at.key(x), at.value(x)
        k, v = (torch.cat([p.expand(4, -1, -1), z], 1) for p, z in zip(P, (k, v)))
        q, k, v = (z.view(4, -1, 4, 8).transpose(1, 2) for z in (q, k, v))
        a = (torch.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(1, 2).reshape(4, 6, 32)
        h = block.attention.output.LayerNorm(block.attention.output.dense(a) + x)
        more = 2.0 * (torch.relu(h @ down.T + down_bias) @ up.T + up_bias)
        want = block.output.LayerNorm(block.output.dense(block.intermediate(h)) + more + h)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


def test_it_is_a_prefix_and_a_parallel_adapter():
    """The same numbers in a tenant of each: what the two read and hold is what it reads and holds."""
    host = cw.Host(make("llama")[0])
    both, prefix, parallel = (
        host.add("b", "mam", **SMALL), host.add("p", "prefix-tuning", tokens=3), host.add("a", "parallel", size=5),
    )  # fmt: skip
    assert both.plan.pools == {**prefix.plan.pools, **parallel.plan.pools}
    assert both.plan.uses == (*prefix.plan.uses, *parallel.plan.uses)


def test_generation_in_a_mixed_batch_padded_on_the_left():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("m", "mam", **SMALL))
    host.add("p", "prefix-tuning", tokens=5)
    ids, route, pad = batch["input_ids"], ["m", None, "p", "m"], [2, 0, 0, 3]
    mask = torch.stack([(torch.arange(ids.shape[1]) >= n).long() for n in pad])

    def generate(route, ids, mask):
        with host.route(route):
            return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)[
                :, -4:
            ].tolist()

    alone = [generate(r, ids[i : i + 1, n:], mask[i : i + 1, n:])[0] for i, (r, n) in enumerate(zip(route, pad))]
    assert generate(route, ids, mask) == alone


def test_the_network_goes_when_it_is_trained():
    model, batch = make("gpt2")
    host = cw.Host(model)
    stir(host.add("t", "mam", **SMALL, projection=6))
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    small = host.compact("t")
    assert small.config == cw.methods.MAM(**SMALL)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), want)


def test_count_is_the_papers():
    """RoBERTa-base with l = 16 and r = 16: 2 L l d + L (2 d r + r + d)."""
    kinds = ("self.prefix", "prefix"), ("ffn", "ffn")
    sites = [cw.Site(f"layer.{i}.{n}", 768, 768, k) for i in range(12) for n, k in kinds]
    assert cw.plan("mam", sites).count() == 2 * 12 * 16 * 768 + 12 * (2 * 768 * 16 + 16 + 768)


def test_one_kind_of_site_alone():
    with pytest.raises(cw.CommonweightError, match=r"all of the 1 site are of kind ffn; choose .* or take parallel"):
        cw.plan("mam", [cw.Site("a", 8, 8, "ffn")])
