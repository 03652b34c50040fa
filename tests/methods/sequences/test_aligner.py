"""Aligner against attention written out on the models' own weights."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make, shallow
from tests.rows import generate_alone

SMALL = {"tokens": 3, "first": 0}
VARIANTS = [{"tokens": 1}]


def read(q, keys, values, g):
    """g_h softmax(q_h K_h^T / sqrt(w)) V_h, head by head; q (B, heads, T, w), keys and values (N, heads of keys, w)."""
    each = q.shape[1] // keys.shape[1]
    return torch.stack(
        [
            g[h] * torch.softmax(q[:, h] @ keys[:, h // each].T / math.sqrt(q.shape[-1]), -1) @ values[:, h // each]
            for h in range(q.shape[1])
        ],
        1,
    )


class Reading(nn.Module):
    """Llama's attention as in the release: a second softmax over what k_proj and v_proj make of E, not rotated."""

    def __init__(self, module, E, g):
        super().__init__()
        self.module, self.E, self.g = module, E, g

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        at, (b, t, _) = self.module, hidden_states.shape
        q, k, v = (p(hidden_states).view(b, t, -1, 8).transpose(1, 2) for p in (at.q_proj, at.k_proj, at.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        scores = q @ k.mT / math.sqrt(8) + torch.full((t, t), -torch.inf).triu(1)
        mine = read(q, at.k_proj(self.E).view(-1, 2, 8), at.v_proj(self.E).view(-1, 2, 8), self.g)
        y = torch.softmax(scores, -1) @ v + mine
        return at.o_proj(y.transpose(1, 2).reshape(b, t, -1)), None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_formula(attention):
    model, batch = make("llama")
    model.set_attn_implementation(attention)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "aligner", tokens=3, first=1), std=0.5)
    E, g = (tenant.pools[n] for n in ("E", "model.layers.1.self_attn.aside.g"))
    plain.model.layers[1].self_attn = Reading(plain.model.layers[1].self_attn, E.detach(), g.detach())
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_formula_where_projections_are_fused_or_have_biases(kind):
    """What is given to the output projection is moved by what is read aside, and by nothing else in the first layer."""
    model, batch = make(kind)
    host = cw.Host(model)
    tenant = stir(host.add("t", "aligner", **SMALL), std=0.5)
    block = model.h[0] if kind == "gpt2" and hasattr(model, "h") else None
    if kind == "gpt2":
        at = (block or model.transformer.h[0]).attn
        name, out = next(n for n, m in model.named_modules() if m is at), at.c_proj
    else:
        at = model.encoder.layer[0].attention.self
        name, out = "encoder.layer.0.attention.self", model.encoder.layer[0].attention.output.dense
    seen = {}
    handles = [
        out.register_forward_pre_hook(lambda m, args: seen.update(o=args[0])),
        (at.c_attn if kind == "gpt2" else at.query).register_forward_pre_hook(lambda m, args: seen.update(x=args[0])),
    ]
    with torch.no_grad():
        answer(model, batch)
        base = dict(seen)
        with host.route("t"):
            answer(model, batch)
        E, g = tenant.pools["E"], tenant.pools[f"{name}.aside.g"]
        if kind == "gpt2":
            q, (_, k, v) = at.c_attn(base["x"])[..., :32], at.c_attn(E).split(32, -1)
        else:
            q, k, v = at.query(base["x"]), at.key(E), at.value(E)
        mine = read(q.view(4, 6, 4, 8).transpose(1, 2), k.view(-1, 4, 8), v.view(-1, 4, 8), g)
        want = base["o"] + mine.transpose(1, 2).reshape(4, 6, 32)
    torch.testing.assert_close(seen["o"], want, rtol=1e-5, atol=1e-5)
    for h in handles:
        h.remove()


def test_one_token_is_the_same_for_all_queries():
    """The headline's N = 1: g_h V_h, whatever is asked."""
    bind = cw.methods.sequences.aligner.ReadAside()
    q, k, v, g = torch.randn(2, 4, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8), torch.randn(4)
    got = bind.aside(q, k, v, 0.3, E=torch.zeros(1, 16), g=g)
    want = g[:, None, None] * v.repeat_interleave(2, 0)
    torch.testing.assert_close(got, want[None].expand(2, -1, 5, -1))


def test_in_the_first_step_gates_learn_and_tokens_do_not():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "aligner", **SMALL)
    with host.route("t"):
        answer(model, batch).square().sum().backward()
    for name, p in tenant.named_parameters():
        assert bool(p.grad.any()) == (name != "E")


def test_generation_in_a_mixed_batch_padded_on_the_left():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("a", "aligner", **SMALL), 1, std=0.5)
    stir(host.add("b", "aligner", tokens=5, first=1), 2, std=0.5)
    host.add("p", "prefix-tuning", tokens=5)
    generate_alone(
        host, batch["input_ids"], ["a", None, "p", "b"], {"cache_implementation": "static"}, {"num_beams": 2}
    )


@torch.no_grad()
def test_padding_on_the_left_is_no_position():
    """Its keys are not rotated, so that to them a query's place counts: the model's own positions count padding."""
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("a", "aligner", **SMALL), 1, std=0.5)
    stir(host.add("p", "prefix-tuning", tokens=3), 2, std=0.5)
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    mask[0, :2] = mask[2, :3] = 0
    for route in ("a", ["a", None, "p", "a"]):
        with host.route(route):
            got = model(input_ids=ids, attention_mask=mask).logits
        for i, n in ((0, 2), (2, 3)):
            with host.route(route if isinstance(route, str) else route[i]):
                alone = model(input_ids=ids[i : i + 1, n:]).logits
            torch.testing.assert_close(got[i, n:], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["aligner", "prefix-tuning"])
@torch.no_grad()
def test_padding_on_the_left_under_torch_compile(method):
    model, batch = shallow("llama")
    host = cw.Host(model)
    stir(host.add("t", method, tokens=3, **({"first": 0} if method == "aligner" else {})), std=0.5)
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    mask[0, :2] = 0
    with host.route("t"):
        got = torch.compile(model, backend="eager", fullgraph=True)(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(got[0, 2:], model(input_ids=ids[:1, 2:]).logits[0], rtol=1e-4, atol=1e-5)


def test_what_is_kept_follows_the_pools():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "aligner", **SMALL), std=0.5)
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
        stir(tenant, 3, std=0.5)
        got = answer(model, batch)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(got, answer(model, batch), rtol=0, atol=0)


def test_a_mixed_batch_with_a_tenant_that_is_not_finite():
    model, batch = make("llama")
    host = cw.Host(model)
    ill = host.add("ill", "aligner", **SMALL)
    with torch.no_grad():
        ill.pools["E"].fill_(float("nan"))
        with host.route(["ill", None, "ill", None]):
            got = answer(model, batch)
        torch.testing.assert_close(got[[1, 3]], answer(model, batch)[[1, 3]])
    assert got[[0, 2]].isnan().any()


def test_count_is_the_papers():
    """LLaMA-7B with one token: 5,056."""
    sites = [cw.Site(f"model.layers.{i}.self_attn.aside", 32, 4096, "aside") for i in range(32)]
    assert cw.plan("aligner", sites, tokens=1).count() == 4096 + 32 * 30 == 5056


def test_sites_that_do_not_fit():
    site = cw.Site("model.layers.1.self_attn.aside", 4, 32, "aside")
    with pytest.raises(
        cw.CommonweightError, match=r"first=2, but .*1\.self_attn\.aside is the last of its 1 attention; take"
    ):
        cw.plan("aligner", [site])
    other = cw.Site("model.layers.2.self_attn.aside", 4, 16, "aside")
    with pytest.raises(cw.CommonweightError, match=r"reads 16 numbers a token, .* 32; its tokens are of one width"):
        cw.plan("aligner", [site, other], first=0)
