"""A and D of state-space models, and gated norms, in mixed batches: each row's own, in one pass, with a cache and
gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.host import Host
from tests.laws.subjects import stir
from tests.models import make

SIZES: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
MODELS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: tf.MambaForCausalLM(tf.MambaConfig(**SIZES, state_size=4, time_step_rank=4)),
    "mamba2": lambda: tf.Mamba2ForCausalLM(
        tf.Mamba2Config(**SIZES, state_size=4, num_heads=8, head_dim=8, n_groups=1, chunk_size=4)
    ),
    "granite": lambda: tf.GraniteMoeHybridForCausalLM(
        tf.GraniteMoeHybridConfig(
            **SIZES, **ATTENTION, **HEADS, num_local_experts=0, layer_types=["mamba", "attention"],
            shared_intermediate_size=48,
        )
    ),
    "qwen3-next": lambda: tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(
            **SIZES, **ATTENTION, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
            linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=0,
        )
    ),
}  # fmt: skip
IDS = torch.randint(3, 60, (4, 8), generator=torch.Generator().manual_seed(1))
READERS = ["p", "l", None, "q"]
PARAMETERS = "*A_log|*.D|*dt_bias|*linear_attn.norm.weight|*mixer.norm.weight|*mamba.norm.weight"  # gated norms too
CALL = {"max_new_tokens": 4, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module", params=MODELS)
def host(request) -> Host:
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    host = cw.Host(model)
    for i, (name, method, options) in enumerate(
        [("p", "full", {"sites": PARAMETERS}), ("q", "full", {"sites": PARAMETERS}), ("l", "lora", {"rank": 2})]
    ):
        stir(host.add(name, method, **options), i, std=0.3)
    return host


@torch.no_grad()
def test_a_row_is_that_row_alone_with_a_cache(host):
    with host.route(READERS):
        mixed = host.model.generate(IDS, **CALL)
    for i, name in enumerate(READERS):
        with host.route(name):
            alone = host.model.generate(IDS[i : i + 1], **CALL)
        for together, one in zip(mixed.logits, alone.logits):
            torch.testing.assert_close(together[i], one[0], rtol=1e-4, atol=1e-5)
    with host.route("p"):
        assert (host.model(IDS).logits[2] - mixed.logits[0][2]).abs().max() > 1e-2, "the parameters move nothing"


def test_gradients_are_those_of_each_row_alone(host):
    def gradients(run: Callable[[], None]) -> dict[str, torch.Tensor | None]:
        pools = {f"{n}.{k}": p for n in ("p", "q", "l") for k, p in host[n].named_parameters()}
        for p in pools.values():
            p.grad = None
        run()
        return {k: None if p.grad is None else p.grad.clone() for k, p in pools.items()}

    def one(rows: list[int], readers: Any) -> None:
        with host.route(readers):
            host.model(IDS[rows], use_cache=False).logits.square().sum().backward()

    mixed = gradients(lambda: one([0, 1, 2, 3], READERS))
    apart = gradients(lambda: [one([i], n) for i, n in enumerate(READERS) if n is not None] and None)
    assert mixed.keys() == apart.keys()
    for name, g in apart.items():
        torch.testing.assert_close(mixed[name], g, rtol=1e-3, atol=1e-5 * max(1.0, g.abs().max().item()))


def test_the_batch_is_one_pass(host):
    passes = []
    handle = host.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        with torch.no_grad(), host.route(READERS):
            host.model(IDS)
            passes.clear()
            host.model(IDS)
    finally:
        handle.remove()
    assert len(passes) == 1


@pytest.mark.parametrize("method", ["bottleneck", "molora"])
def test_methods_that_change_no_weight_take_what_can_be_read(method):
    """Time steps are read past their layer, as columns; depthwise convolutions are left out by default."""
    model, batch = make("mamba")
    host = cw.Host(model)
    tenant = stir(host.add("t", method))
    assert any(u.site.endswith("dt_proj") for u in tenant.plan.uses)
    with torch.no_grad():
        base = model(**batch).logits
        with host.route("t"):
            want = model(**batch).logits
        with host.route([None, "t", "t", None]):
            mixed = model(**batch).logits
    assert not torch.equal(want, base)
    torch.testing.assert_close(mixed, torch.stack([base[0], want[1], want[2], base[3]]), rtol=1e-4, atol=1e-5)
