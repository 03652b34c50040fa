"""Keys and values in front of an attention: where they can stand, and what is said where they cannot."""

import copy
import warnings

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import VOCAB, answer, make


def test_sites_are_the_self_attentions():
    at = {k: [(s.name, s.out, s.inp) for s in cw.Host(make(k)[0]).sites if s.kind == "prefix"] for k in
          ("llama", "gpt2", "bert", "t5", "vit", "mlp")}  # fmt: skip
    assert at["llama"] == [(f"model.layers.{i}.self_attn.prefix", 16, 8) for i in range(2)]
    assert at["gpt2"] == [(f"transformer.h.{i}.attn.prefix", 32, 8) for i in range(2)]
    assert at["bert"][0] == ("encoder.layer.0.attention.self.prefix", 32, 8)
    assert [n for n, _, _ in at["t5"]] == [
        f"{s}.block.{i}.layer.0.SelfAttention.prefix" for s in ("encoder", "decoder") for i in range(2)
    ]
    assert len(at["vit"]) == 2 and at["mlp"] == []


def test_of_a_model_of_two_senses_the_language_is_default():
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    model = tf.CLIPModel(
        tf.CLIPConfig(
            text_config=dict(vision, vocab_size=VOCAB), vision_config=dict(vision, image_size=8, patch_size=4)
        )
    )
    host = cw.Host(model)
    assert [s.name.split(".")[0] for s in host.sites if s.kind == "prefix"] == ["text_model"] * 2
    assert host.add("v", "prefix-tuning", tokens=2, sites="vision_model.*.prefix").count() == 2 * 2 * 2 * 32


def test_relative_positions_give_no_bias_to_keys_that_have_none():
    """T5: with the values of the prefix zero and its keys zero, each weight is e^0 among the others."""
    model, batch = make("t5")
    host = cw.Host(model)
    host.add("t", "prefix-tuning", tokens=3, std=0.0, sites="encoder.block.0.*")
    at = model.encoder.block[0].layer[0].SelfAttention
    got = []
    handle = at.register_forward_hook(lambda m, args, kwargs, y: got.append((args, kwargs, y)), with_kwargs=True)
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
    handle.remove()
    args, kwargs, y = got[0]
    x = args[0] if args else kwargs["hidden_states"]
    with torch.no_grad():
        q, k, v = (z.view(4, 6, 4, 8).transpose(1, 2) for z in (at.q(x), at.k(x), at.v(x)))
        scores = torch.exp(q @ k.mT + at.compute_bias(6, 6, device=x.device))
        want = at.o((scores / (scores.sum(-1, keepdim=True) + 3) @ v).transpose(1, 2).reshape(4, 6, 32))
    torch.testing.assert_close(y[0], want, rtol=1e-5, atol=1e-6)


def test_a_sliding_window_does_not_lose_it():
    config = tf.Gemma3TextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=VOCAB, sliding_window=3, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.Gemma3ForCausalLM(config).eval()
    host = cw.Host(model)
    tenant = host.add("t", "prefix-tuning", tokens=2, sites="*.0.self_attn.prefix")
    with host.route(["t"]):
        answer(model, {"input_ids": torch.arange(3, 12)[None]})[0, -1].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in tenant.parameters())


def test_what_cannot_be_joined_is_said():
    host = cw.Host(make("llama")[0])
    host.add("t", "prefix-tuning", tokens=2)
    ids = make("llama")[1]
    tf.AttentionInterface.register("of_a_stranger", tf.AttentionInterface()["sdpa"])
    host.model.config._attn_implementation = "of_a_stranger"
    with host.route("t"), pytest.raises(cw.CommonweightError, match="of_a_stranger attention takes no keys in front"):
        host.model(**ids)
    host.model(**ids)
    host.model.config._attn_implementation = "sdpa"
    with host.route(torch.zeros(4, 6, dtype=torch.long)), pytest.raises(cw.CommonweightError, match="one reader per"):
        host.model(**ids)


def test_an_attention_that_computes_by_itself_is_found_out():
    config = tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=32, bos_token_id=1,
                           eos_token_id=2, reorder_and_upcast_attn=True, attn_implementation="eager")  # fmt: skip
    host = cw.Host(tf.GPT2LMHeadModel(config).eval())
    host.add("t", "prefix-tuning", tokens=2)
    with host.route("t"), pytest.raises(cw.CommonweightError, match="without asking transformers' attention interface"):
        host.model(**make("gpt2")[1])


def test_a_table_of_positions_ends():
    model, batch = make("gpt2")
    host = cw.Host(model)
    host.add("t", "prefix-tuning", tokens=27)
    with host.route([None, "t", None, None]), pytest.raises(cw.CommonweightError, match="position 32, and the model's"):
        model(**batch)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_have_the_same_gradients(reentrant):
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "prefix-tuning", tokens=3, projection=4)
    model.train()

    def gradients():
        with host.route(["t", None, "t", "t"]):
            answer(model, batch).square().sum().backward()
        out = [p.grad.clone() for p in tenant.parameters()]
        for p in tenant.parameters():
            p.grad = None
        return out

    want = gradients()
    model.config.use_cache = False
    with warnings.catch_warnings():  # that it goes by another name in version 6
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert all(torch.equal(a, b) for a, b in zip(gradients(), want))


def test_what_is_kept_follows_the_pools():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "prefix-tuning", tokens=3)
    with torch.no_grad(), host.route(["t"] * 4):
        before = answer(model, batch)
        assert torch.equal(answer(model, batch), before)
        stir(tenant)
        assert not torch.equal(answer(model, batch), before)


def test_copies_and_closing():
    model, batch = make("llama")
    base = answer(model, batch)
    host = cw.Host(model)
    host.add("t", "prefix-tuning", tokens=3)
    with host.route("t"):
        assert torch.equal(answer(copy.deepcopy(model), batch), base)
    host.close()
    assert torch.equal(answer(model, batch), base)
    assert not any("commonweight" in key for m in model.modules() for key in m.__dict__)


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_padding_on_the_left_without_positions(kind):
    """A rotation does not feel where a row begins, but a prefix is not rotated. Rows of the plain base stay as they
    are, but for the rounding of a longer batch; from a cache too."""
    model, batch = make(kind)
    host, ids = cw.Host(model), batch["input_ids"]
    for n, (method, tokens) in {"a": ("prefix-tuning", 3), "b": ("prompt-tuning", 5)}.items():
        stir(host.add(n, method, tokens=tokens), seed=tokens)
    route, mask = ["a", None, "b", "a"], torch.ones_like(ids)
    mask[0, :3] = mask[1, :2] = mask[2, :1] = 0
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        with host.route(route):
            mixed = model(input_ids=ids, attention_mask=mask).logits
            said = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
            first = model(input_ids=ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
            last = [model(input_ids=ids[:, 4:5], attention_mask=mask[:, :5], past_key_values=first.past_key_values)]
            last.append(model(input_ids=ids[:, 5:], attention_mask=mask, past_key_values=last[0].past_key_values))
        for i, name in enumerate(route):
            real = mask[i].bool()
            with host.route(name):
                alone = model(input_ids=ids[i : i + 1, real]).logits[0]
            for found in (mixed, said, torch.cat([first.logits, *(s.logits for s in last)], 1)):
                torch.testing.assert_close(found[i][real], alone, rtol=1e-4, atol=1e-5)
            with host.route(name):
                one = model(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]).logits[0]
            torch.testing.assert_close(one[real], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], plain[1], rtol=1e-6, atol=1e-7)
