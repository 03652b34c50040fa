"""Light-PEFT: its forward pass, its three scores and its quantiles, each written out a second time."""

import numpy as np
import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.light_peft import above
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "heads": 4, "dropout": 0.0}
VARIANTS = [{"form": "stored"}]


def test_formula():
    model, _ = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "light-peft", rank=2, heads=4, alpha=3.0))
    merged, p = host.merged("t"), {n: v.detach() for n, v in tenant.pools.items()}
    for name, mask in (("attention.output.dense", "heads"), ("output.dense", "neurons"), ("attention.self.query", "")):
        s = f"encoder.layer.0.{name}"
        w = host.weight(s) + 1.5 * p[f"{s}.B"] @ p[f"{s}.A"]
        if mask:
            m = p[f"{s}.{mask}"]
            w = w * m.repeat_interleave(w.shape[1] // len(m))
        torch.testing.assert_close(merged[f"{s}.weight"], w)


def test_a_gauge_has_the_ratio_for_a_gradient():
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "light-peft", **SMALL))
    with torch.no_grad():
        for n, v in tenant.named_parameters():
            if n.endswith(".z"):
                v.zero_()
    site = "encoder.layer.1.attention.self.value"
    seen = []
    handle = model.get_submodule(site).register_forward_pre_hook(lambda m, a: seen.append(a[0].detach()))
    mask = torch.ones_like(batch["input_ids"])
    mask[0, 4:] = 0
    with host.listening() as heard, host.route("t"):
        model(**batch, attention_mask=mask)
        loss = heard.loss(tenant)
    handle.remove()
    assert loss.item() == 0
    loss.backward()
    x, p = seen[0], tenant.pools
    update = 2.0 * x @ p[f"{site}.A"].detach().T @ p[f"{site}.B"].detach().T
    layer = model.get_submodule(site)
    ratio = update.norm(dim=-1) / torch.nn.functional.linear(x, layer.weight, layer.bias).norm(dim=-1)
    want = 1e-3 * (ratio * mask).sum() / mask.sum()
    torch.testing.assert_close(p[f"{site}.z"].grad, want.detach()[None])


def test_the_cut():
    tenant = cw.Host(make("bert")[0]).add("t", "light-peft", rank=4, heads=4, estimate=0.5)
    way = tenant.method.schedule(tenant.config, tenant.plan)
    g = torch.Generator().manual_seed(0)
    pools = {n: torch.randn(p.shape, generator=g) for n, p in tenant.pools.items()}
    state, edit = way.begin(tenant.plan, pools, 8)
    assert {*edit.rates} == {f"{s}.z" for s in way.sites} and not any(edit.rates.values())
    grads = [{n: torch.randn(p.shape, generator=g) for n, p in pools.items()} for _ in range(4)]
    for step in range(1, 5):
        state, edit = way.after(Moment(step, 8, pools, grads[step - 1], {}), state)
        assert (edit.config is None) == (step < 4) and not way.settled(step, 8)
    seen = grads[1:]
    size = {s: sum(float(t[f"{s}.z"]) for t in seen) for s in way.sites}
    kept = [s for s in way.sites if size[s] > np.quantile([*size.values()], 0.75)]

    def score(s, i):
        A, B = pools[f"{s}.A"], pools[f"{s}.B"]
        each = (abs((A * t[f"{s}.A"])[i].mean()) + abs((B * t[f"{s}.B"])[:, i].mean()) for t in seen)
        return float(sum(each))

    edge = np.quantile([score(s, i) for s in kept for i in range(4)], 0.5)
    for s in way.sites:
        want = [i for i in range(4) if s in kept and score(s, i) > edge]
        assert dict(edit.config.ranks)[s] == len(want)
        for k, places in {k: edit.places.get(f"{s}.{k}") for k in "ABd"}.items():
            told = None if places is None else [t if t is None else t.tolist() for t in places]
            assert told == ({"A": [want, None], "B": [None, want], "d": [want]}[k] if want else None)
    for n in way.heads:
        m = pools[n].abs().double().numpy()
        assert edit.values[n].bool().tolist() == (m > np.quantile(m, 0.3333)).tolist()
    every = np.concatenate([pools[n].abs().double().numpy() for n in way.neurons])
    for n in way.neurons:
        assert edit.values[n].bool().tolist() == (pools[n].abs().double().numpy() > np.quantile(every, 0.3333)).tolist()
    assert way.settled(5, 8) and edit.config.form == "stored"


def test_nothing_goes_where_no_share_is_cut():
    assert above({"a": torch.tensor([1.0, 2.0])}, 0.0)["a"].all()
    assert above({}, 0.5) == {}


def test_what_is_left_is_stored():
    host = cw.Host(make("bert")[0])
    tenant = stir(host.add("t", "light-peft", **SMALL))
    way = tenant.method.schedule(tenant.config, tenant.plan)
    with torch.no_grad():
        for s in way.sites[1:]:
            tenant.pools[f"{s}.d"].zero_()
        tenant.pools[f"{way.sites[0]}.d"][0] = 0
    before = host.merged("t")
    host.compact("t")
    assert [n for n in host["t"].pools if n.endswith(".A")] == [f"{way.sites[0]}.A"]
    assert not any(n.endswith(".z") for n in host["t"].pools) and host["t"].plan.pools[way.heads[0]].train is False
    for n, v in host.merged("t").items():
        torch.testing.assert_close(v, before[n])


def test_heads_divide_the_width():
    site = cw.Site("o", 32, 32, "linear", "attn_out")
    with pytest.raises(cw.CommonweightError, match="width 32 is not a multiple of heads=5"):
        cw.plan("light-peft", [site], heads=5)
    assert "o.heads" not in cw.plan("light-peft", [site]).pools


@pytest.mark.parametrize("width", [16, 128])
def test_heads_are_those_of_the_model(width):
    about = tf.LlamaConfig(
        hidden_size=4 * width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4, vocab_size=11
    )
    host = cw.Host(tf.LlamaForCausalLM(about))
    assert host.add("t", "light-peft", rank=1).pools["model.layers.0.self_attn.o_proj.heads"].shape == (4,)
    assert host["t"].config.heads == 4
    assert host.add("u", "light-peft", rank=1, heads=2).config.heads == 2
    assert not [n for n in host.add("v", "light-peft", rank=1, heads=0).pools if n.endswith(".heads")]


def test_heads_that_differ(tmp_path):
    model = make("bert")[0]
    model.encoder.layer[1].attention.self.num_attention_heads = 2  # only said; it is not run
    host = cw.Host(model)
    tenant = stir(host.add("t", "light-peft", rank=1))
    heads = [tenant.pools[f"encoder.layer.{i}.attention.output.dense.heads"].shape[0] for i in (0, 1)]
    assert heads == [4, 2] and tenant.config.heads is None
    again = host.load("u", host.save("t", tmp_path / "t.safetensors"))
    assert again.plan.digest() == tenant.plan.digest()


def test_an_attention_that_does_not_say_its_heads_keeps_them():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.o_proj = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.self_attn = Attention()

    host = cw.Host(torch.nn.Sequential(Block(), Block()))
    assert not [n for n in host.add("t", "light-peft", rank=1).pools if n.endswith(".heads")]
    with pytest.raises(cw.CommonweightError, match="nothing says how many heads made its input of 64 numbers; give"):
        site = [cw.Site(f"0.{n}", 64, 64, "linear", n) for n in ("query", "value", "attn_out")]
        cw.plan("dsee", site, prune_heads=1, heads=0)


def test_ties_are_not_all_cut():
    kept = above({"a": torch.zeros(8), "b": torch.zeros(4)}, 0.75)
    assert kept["a"].tolist() == [True] * 3 + [False] * 5 and not kept["b"].any()
    assert above({"a": torch.zeros(1)}, 0.75)["a"].all()
    scores = torch.tensor([1.0, 3, 3, 3, 2, 0])
    assert above({"a": scores}, 0.6)["a"].tolist() == [False, True, True, False, False, False]
