"""Trunks: what blocks give is read without gradients; mixed batches, generation and checkpoints."""

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.host.current import _OfThread
from tests.host.padded import rows_are_those_alone
from tests.laws.subjects import small, stir
from tests.mixtures import mixture
from tests.models import answer, make

SIDES = {
    "read": {"size": 3},
    "sherl": {"size": 5},
    "lst": {"reduction": 4, "heads": 2},
    "vqt": {"queries": 2, "size": 3},
}


def saved(model, batch, host, name):
    """Bytes that a pass keeps for its backward pass, parameters of the model left out."""
    mine = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in mine:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), host.route(name):
        out = answer(model, batch)
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_pass_keeps_half_of_what_lora_keeps_at_most(kind):
    model, batch = make(kind)
    if kind == "llama":
        model.lm_head = torch.nn.Identity()
    host = cw.Host(model)
    host.add("lora", "lora", rank=8)
    most = saved(model, batch, host, "lora")
    for method in ("read", "lst", "vqt"):
        host.add(method, method, **SIDES[method])
        assert saved(model, batch, host, method) < most / 2


@pytest.mark.parametrize("method", SIDES)
def test_mixed_rows_with_padding_are_those_rows_alone(method):
    model, batch = make("bert")
    host = cw.Host(model)
    for i, name in enumerate(("one", "two")):
        stir(host.add(name, method, **SIDES[method]), i)
    stir(host.add("lora", "lora"), 3)
    rows_are_those_alone(host, batch["input_ids"], ["one", "lora", None, "two"])


def test_gradients_of_a_mixed_batch_are_those_alone():
    model, batch = make("bert")
    host = cw.Host(model)
    side, lora = stir(host.add("side", "lst", **SIDES["lst"])), stir(host.add("lora", "lora"), 1)
    found = []
    for readers in (["side", "lora", "side", "lora"], "side"):
        rows = slice(None) if isinstance(readers, list) else [0, 2]
        side.plan, [setattr(p, "grad", None) for p in (*side.parameters(), *lora.parameters())]
        with host.route(readers):
            y = model(input_ids=batch["input_ids"][rows]).last_hidden_state
        (y[[0, 2]] if isinstance(readers, list) else y).square().sum().backward()
        found.append([p.grad.clone() for p in side.parameters()])
        assert all(p.grad is None or not p.grad.abs().sum() for p in lora.parameters())
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("method", ["read", "sherl"])
def test_generation_with_a_cache_and_padding(kind, method):
    model, batch = make(kind)
    host = cw.Host(model)
    for i, name in enumerate(("one", "two")):
        stir(host.add(name, method, **SIDES[method]), i)
    ids, mask = batch["input_ids"].clone(), torch.ones_like(batch["input_ids"])
    ids[1, :2], mask[1, :2] = 0, 0
    told = dict(attention_mask=mask, do_sample=False, max_new_tokens=4, min_new_tokens=4)
    with host.route(["one", "two", None, "two"]):
        cached, plain = (model.generate(ids, use_cache=c, **told) for c in (True, False))
    assert torch.equal(cached, plain)


def test_a_ladder_generates_without_a_cache_and_refuses_one():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "lst", **SIDES["lst"]), std=0.3)
    ids = batch["input_ids"]
    told = dict(do_sample=False, max_new_tokens=3, min_new_tokens=3)
    with host.route("t"):
        found = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **told)
        padded = torch.cat([torch.zeros(4, 2, dtype=torch.long), ids], 1)
        mask = (torch.arange(8) >= 2).long().expand(4, 8)
        again = model.generate(padded, attention_mask=mask, use_cache=False, **told)
        assert torch.equal(found[:, -3:], again[:, -3:])
        with pytest.raises(cw.CommonweightError, match=r"lst\) reads whole rows, .* use_cache=False"):
            model.generate(ids, attention_mask=torch.ones_like(ids), **told)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", SIDES)
def test_checkpoints_give_the_same_gradients(method, reentrant):
    found = []
    for checkpointed in (False, True):
        model, batch = make("llama")
        host = cw.Host(model)
        tenant = stir(host.add("t", method, **SIDES[method]))
        model.train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with host.route("t"):
            answer(model, batch).square().sum().backward()
        found.append([p.grad for p in tenant.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_that_give_other_widths_are_refused():
    model = tf.SwinModel(
        tf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
    ).eval()
    host = cw.Host(model)
    host.add("t", "read", size=3)
    with torch.no_grad(), host.route("t"), pytest.raises(cw.CommonweightError, match=r"wanted \(rows, tokens, 16\)"):
        model(pixel_values=torch.randn(1, 3, 32, 32))


class Lengths:
    def __init__(self, length, **more):
        self.get_seq_length = length
        self.__dict__ |= more


def none(*_):
    raise ValueError("no attention layer")


@pytest.mark.parametrize("cache, past", [
    (None, False), (Lengths(lambda: 0), False), (Lengths(lambda: torch.tensor(3)), True),
    (Lengths(none, has_previous_state=lambda: True), True), (Lengths(none, has_previous_state=False), False),
    (Lengths(lambda layer: 3), False),
])  # fmt: skip
def test_whether_a_cache_holds_tokens(cache, past):
    thread = _OfThread()
    thread.begin(torch.nn.Identity(), (), {"past_key_values": cache})
    assert thread.run.past is past


@torch.no_grad()
def test_a_cache_whose_first_layer_counts_no_tokens():
    """MiniMax's says 0: what goes by a token's place would begin anew with each pass."""
    model, batch = mixture("minimax")
    ids, host = batch["input_ids"], cw.Host(model)
    stir(host.add("first", "loreft", prefix=2), std=0.3)
    stir(host.add("ladder", "lst", **small("lst")), std=0.3)
    told = {"position_ids": torch.full((len(ids), 1), ids.shape[1] - 1)}  # transformers itself counts from 0 else
    with host.route("first"):
        wanted = model(ids).logits[:, -1]
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        got = model(ids[:, -1:], past_key_values=cache, **told).logits[:, -1]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    with host.route("ladder"), pytest.raises(cw.CommonweightError, match="a cache holds what came before"):
        model(ids[:, -1:], past_key_values=cache, **told)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["lst", "vqt", "dyt", "prompt-pool"])
def test_two_passes_before_one_backward_find_each_its_own(method, reentrant):
    """Other tokens and other padding in the second, which a checkpoint computes again first."""

    def gradients(on: bool) -> list[torch.Tensor]:
        model, batch = make("bert")
        if on:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        host = cw.Host(model)
        t = stir(host.add("t", method, **small(method)), std=0.3)
        model.train()
        for m in model.modules():
            if isinstance(m, torch.nn.Dropout):
                m.p = 0.0
        mask = torch.ones_like(batch["input_ids"])
        mask[:, 4:] = 0
        with host.route("t"):
            first = answer(model, {**batch, "attention_mask": torch.ones_like(mask)})
            second = answer(model, {"input_ids": batch["input_ids"].flip(1), "attention_mask": mask})
            (first.square().sum() + second.square().sum()).backward()
        return [p.grad for p in t.parameters() if p.grad is not None]

    want = gradients(False)
    assert any(g.abs().sum() > 0 for g in want)
    for got, g in zip(gradients(True), want, strict=True):
        torch.testing.assert_close(got, g, rtol=1e-4, atol=1e-5)
