"""State-offset tuning against a recurrence of Mamba, step by step, on the model's own weights."""

import copy
from functools import partial

import pytest
import torch
import transformers as tf
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make
from tests.rows import are_alone, generate_alone

SMALL = {}
VARIANTS = [{"on": "output"}, {"rank": 2}]
MODEL = "mamba"


def recurrent(at, H, o, x, **_):
    """A mixer, token by token: y_t = C_t . (h_t + H) + D x_t + o, times silu(z_t); h_t + H is not fed back."""
    u, z = at.in_proj(x).chunk(2, -1)
    u = F.silu(at.conv1d(u.mT)[..., : x.shape[1]]).mT
    n = at.A_log.shape[1]
    dt, B, C = at.x_proj(u).split([at.x_proj.out_features - 2 * n, n, n], -1)
    if hasattr(at, "c_layernorm"):
        dt, B, C = at.dt_layernorm(dt), at.b_layernorm(B), at.c_layernorm(C)
    dt, A = F.softplus(at.dt_proj(dt)), -torch.exp(at.A_log)
    h, out = torch.zeros(len(x), *A.shape), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
        out.append(((h + H) * C[:, t, None]).sum(-1) + at.D * u[:, t] + o)
    return at.out_proj(torch.stack(out, 1) * F.silu(z))


@pytest.mark.parametrize("on", ["state", "output"])
def test_formula(on):
    model, batch = make("mamba")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "state-offset", on=on), std=0.5)
    for i, block in enumerate(plain.backbone.layers):
        mine = tenant.pools[f"backbone.layers.{i}.mixer.state.{'H' if on == 'state' else 'o'}"].detach()
        H, o = (mine, 0.0) if on == "state" else (0.0, mine)
        block.mixer.forward = partial(recurrent, block.mixer, H, o)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch), rtol=1e-4, atol=1e-5)


def test_jamba_norms_what_reads_a_state():
    torch.manual_seed(0)
    model = tf.JambaForCausalLM(
        tf.JambaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=61, attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_d_state=4,
            use_mamba_kernels=False,
        )
    ).eval()  # fmt: skip
    plain, ids = copy.deepcopy(model), torch.randint(3, 61, (2, 6), generator=torch.Generator().manual_seed(1))
    host = cw.Host(model)
    tenant = stir(host.add("t", "state-offset"), std=0.5)
    (H,) = tenant.pools.values()
    at = plain.model.layers[0].mamba
    at.forward = lambda hidden_states, **_: recurrent(at, H.detach(), 0.0, hidden_states)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on", ["state", "output"])
def test_a_row_in_a_mixed_batch_is_that_row_alone(on):
    model, batch = make("mamba")
    host = cw.Host(model)
    stir(host.add("a", "state-offset", on=on), 1, std=0.5)
    stir(host.add("b", "state-offset", on=on), 2, std=0.5)
    stir(host.add("lora", "lora", rank=2), 3)
    are_alone(host, batch, ["a", None, "b", "lora"])


def test_a_fresh_tenant_changes_nothing_and_nothing_can_be_merged():
    model, batch = make("mamba")
    host = cw.Host(model)
    host.add("t", "state-offset")
    with torch.no_grad():
        base = answer(model, batch)
        with host.route("t"):
            assert torch.equal(answer(model, batch), base)
    with pytest.raises(cw.CommonweightError, match="cannot be merged"):
        host.merged("t")


def test_a_step_from_a_cache_is_the_step_in_one_pass():
    model, batch = make("mamba")
    host = cw.Host(model)
    stir(host.add("a", "state-offset"), 1, std=0.5)
    stir(host.add("b", "state-offset", on="output"), 2, std=0.5)
    ids, route = batch["input_ids"], ["a", None, "b", "a"]
    with torch.no_grad(), host.route(route):
        want = model(ids).logits
        first = model(ids[:, :4], use_cache=True)
        cache, got = first.cache_params, [first.logits]
        for t in (4, 5):
            step = model(ids[:, t : t + 1], cache_params=cache, use_cache=True)
            got.append(step.logits)
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-4, atol=1e-5)


def test_generation_in_a_mixed_batch_padded_on_the_left():
    model, batch = make("mamba")
    host = cw.Host(model)
    stir(host.add("a", "state-offset"), 1, std=0.5)
    stir(host.add("b", "state-offset", on="output"), 2, std=0.5)
    generate_alone(host, batch["input_ids"], ["a", None, "b", "a"])


def test_it_learns_and_the_mixer_trains_again_afterwards():
    model, batch = make("mamba")
    model.train()
    host = cw.Host(model)
    tenant = host.add("t", "state-offset")
    labels, losses = batch["input_ids"], []
    optimizer = torch.optim.Adam(tenant.parameters(), lr=0.05)
    for _ in range(8):
        with host.route("t"):
            loss = model(input_ids=labels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(m.training for m in model.modules())


def test_a_mixer_that_does_not_call_its_layers():
    model, batch = make("mamba")
    host = cw.Host(model)
    host.add("t", "state-offset")
    model.backbone.layers[0].mixer.forward = lambda x, **_: x
    with host.route("t"), pytest.raises(cw.CommonweightError, match=r"0\.mixer\.state: this layer computed with"):
        answer(model, batch)


def test_a_low_rank_and_a_random_start():
    model, batch = make("mamba")
    host = cw.Host(model)
    low, whole = stir(host.add("low", "state-offset", rank=2), std=0.5), host.add("whole", "state-offset")
    with torch.no_grad():
        for n, H in whole.pools.items():
            at = n.removesuffix(".H")
            H.copy_(low.pools[f"{at}.U"].T @ low.pools[f"{at}.V"])
        with host.route("whole"):
            want = answer(model, batch)
        with host.route("low"):
            torch.testing.assert_close(answer(model, batch), want, rtol=1e-4, atol=1e-5)
    for on in ("state", "output"):
        drawn = host.add(on, "state-offset", on=on, start="random")
        assert torch.cat([p.detach().flatten() for p in drawn.pools.values()]).std() == pytest.approx(0.1, rel=0.2)
    site = [cw.Site("m.state", 1536, 16, "state")]
    assert cw.plan("state-offset", site, rank=4).count() == 4 * (1536 + 16)
    for options, why in (({"on": "output", "rank": 2}, "which has none"), ({"start": "random", "rank": 2}, "of whole")):
        with pytest.raises(cw.CommonweightError, match=why):
            cw.plan("state-offset", site, **options)


def test_count_is_the_papers():
    """mamba-130m: L d_inner d_state, and L d_inner."""
    sites = [cw.Site(f"layers.{i}.mixer.state", 1536, 16, "state") for i in range(24)]
    assert cw.plan("state-offset", sites).count() == 24 * 1536 * 16
    assert cw.plan("state-offset", sites, on="output").count() == 24 * 1536
