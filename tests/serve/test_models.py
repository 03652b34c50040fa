"""What a model's own settings mean for an engine: positions that scale, ends that are not named, what it was before."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.core import CommonweightError
from commonweight.serve import Encoder, Engine, Request, prompts

from . import encoders
from .served import SIZES, VOCAB, add, ask, make, prompt, right

LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 8.0],
        "original_max_position_embeddings": 32}  # fmt: skip


def scaling() -> cw.Host:
    """A Phi-3 that spreads the positions of a whole batch from its 33rd token on."""
    torch.manual_seed(3)
    config = tf.Phi3Config(**SIZES, original_max_position_embeddings=32, rope_parameters=dict(LONG))
    model = tf.Phi3ForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5) if p.dim() > 1 else p
    host = cw.Host(model)
    add(host, "a", "lora")
    return host


def test_nobodys_length_moves_the_positions_of_others():
    host = scaling()
    asked = [
        ask(t, i, max_new_tokens=12, prompt=prompt(i, n)) for i, (t, n) in enumerate([("a", 20), (None, 5), ("a", 9)])
    ]
    with Engine(host, page_size=8) as engine:
        assert engine.length == 32
        long = ask(None, prompt=prompt(4, 60), max_new_tokens=20)
        *answers, refused = engine.generate([*asked, long])
        right(host, asked, answers)
        assert "the model reads 32 without scaling the positions" in (refused.error or "")


def test_how_far_positions_are_as_they_are():
    plain = make()
    assert prompts.scaled(plain) is None and prompts.length_of(plain) == 256
    layered = tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(
        **SIZES, head_dim=8, layer_types=["sliding_attention", "full_attention"], rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": dict(LONG)},
    ))  # fmt: skip
    assert prompts.length_of(layered) == 32
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
    assert prompts.length_of(tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, rope_parameters=yarn))) == 256


def test_a_model_without_an_end(monkeypatch):
    host = cw.Host(make())
    monkeypatch.delattr(tf.LlamaConfig, "eos_token_id")
    host.model.generation_config.eos_token_id = None
    del host.model.config.eos_token_id
    asked = [ask(None, ignore_eos=False)]
    with Engine(host) as engine:
        assert not engine.ends
        right(host, asked, engine.generate(asked))


def test_the_last_engine_gives_the_model_back():
    model = make("gpt2").train()
    model.transformer.h[0].eval()
    mode = [m.training for m in model.modules()]
    host = cw.Host(model)
    how = model.config._attn_implementation
    asked = [ask(None, 1)]
    first, second = Engine(host), Engine(host)
    first.close()
    assert model.config._attn_implementation != how and not model.training
    right(host, asked, second.generate(asked))
    with pytest.raises(CommonweightError, match="an engine"):
        host.resize_vocabulary(VOCAB + 5)
    second.close()
    assert model.config._attn_implementation == how and [m.training for m in model.modules()] == mode
    host.resize_vocabulary(VOCAB + 5)


WRONG = {
    "stop": 5, "stop_token_ids": 5, "logit_bias": [1], "structured": "json", "special": 5, "tools": 5,
}  # fmt: skip


def test_a_value_of_another_kind_is_its_own_requests():
    host = cw.Host(make())
    with Engine(host) as engine:
        odd = [Request([3], **{name: value}) for name, value in WRONG.items()]  # type: ignore[arg-type]
        odd += [Request([3], **{name: None}) for name in ("stop", "stop_token_ids", "logit_bias")]  # type: ignore[arg-type]
        *bad, good = engine.generate([*odd, "a text", ask(None)])  # type: ignore[list-item]
        right(host, [ask(None)], [good])
        for name, answer in zip([*WRONG, "stop", "stop_token_ids", "logit_bias", "a str came"], bad, strict=True):
            assert answer.finish_reason == "error" and name in (answer.error or "")


def test_training_meanwhile_is_told_where_it_would_change_answers():
    asked = [ask(None, 1)]
    for family, dropped in (("gpt2", True), ("llama", False)):
        host = cw.Host(make(family))
        with Engine(host) as engine:
            host.model.train()
            answer = engine.generate(asked)[0]
            assert ("training mode" in (answer.error or "")) is dropped
            host.model.eval()
            right(host, asked, engine.generate(asked))
            if not dropped:
                right(host, asked, [answer])


def test_an_encoder_in_training_mode_is_read_without_dropout_and_given_back():
    host = encoders.host(encoders.bert())
    host.model.train()
    mode = [m.training for m in host.model.modules()]
    with Encoder(host) as encoder:
        one, two = (encoder.embed([[5, 6, 7]], "three")[0] for _ in range(2))
        assert one.error is None and one.vector == two.vector
        host.model.train()
        assert "training mode" in (encoder.embed([[5, 6, 7]], "three")[0].error or "")
        host.model.eval()
    assert [m.training for m in host.model.modules()] == mode
