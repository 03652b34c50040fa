"""Rows side by side in one sequence train as they do alone."""

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, Host
from commonweight.adapt import adapt, open_host
from commonweight.adapt.by_row import by_row
from commonweight.adapt.masked import masked
from commonweight.adapt.tasks import LM, packing
from commonweight.adapt.tasks.packing import packed, real, sound
from tests.adapt import tiny
from tests.adapt.alone import packed_as_alone
from tests.models import make


def rows(n=9):
    return [
        {"prompt": " ".join(tiny.WORDS[i : i + 1 + i % 4]), "completion": " ".join(tiny.WORDS[i : i + 1 + (3 * i) % 7])}
        for i in range(n)
    ]


def chats(n=6):
    return [
        {"messages": [
            {"role": "system", "content": "w3"}, {"role": "user", "content": " ".join(tiny.WORDS[: 1 + i])},
            {"role": "assistant", "content": " ".join(tiny.WORDS[i : 2 * i + 1])},
            {"role": "user", "content": "w7"}, {"role": "assistant", "content": "w8 w9"},
        ]} for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("given", [rows, chats])
def test_loss_and_gradients_are_those_of_the_rows_alone(llama, attention, given):
    host = open_host(llama, "lm", dtype="float32")
    host.model.double().set_attn_implementation(attention)
    tenant = host.add("t", "lora", rank=2)
    with torch.no_grad():
        for p in tenant.parameters():
            p.normal_()
    from commonweight.adapt.base import tokenizer_of

    tokenizer = tokenizer_of(host.model)
    tokenizer.chat_template = tiny.CHAT
    task = LM(tokenizer, 24)
    examples = task.examples(given())
    assert 1 < len(packed_as_alone(host, "t", task, examples)) < len(examples)


def test_best_fit():
    made = [{"input_ids": [k] * n, "labels": [k] * n, "bytes": n} for k, n in enumerate([7, 3, 5, 2, 8, 3])]
    out = packed(made, 10)
    assert sorted(len(e["input_ids"]) for e in out) == [8, 10, 10]
    assert sum(e["bytes"] for e in out) == 28
    for e in out:
        starts = [i for i, p in enumerate(e["position_ids"]) if p == 0]
        assert all(e["labels"][i] == -100 for i in starts)
        assert sum(t != -100 for t in e["labels"]) == len(e["labels"]) - len(starts)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 1, 0, 1, 2, 3, 4]])
    assert real(positions) == 12
    assert packing.told(out, 10) == "packed into 3 sequences of at most 10 tokens, 93 % full"


def test_adapt_packs(llama):
    def run(**more):
        host = open_host(llama, "lm", dtype="float32")
        seen = []
        result = adapt(
            host, "t", rows(), task="lm", method="lora", options={"rank": 2}, epochs=1, batch_size=16, max_length=40,
            progress=seen.append, **more,
        )  # fmt: skip
        return result, seen

    plain, told = run()
    packs, seen = run(packing=True)
    assert packs.curve[0]["loss"] == pytest.approx(plain.curve[0]["loss"], rel=1e-5)
    assert seen[-1].tokens == told[-1].tokens
    assert "packed into 2 sequences of at most 40 tokens" in packs.note


def test_what_cannot_be_packed_is_refused(llama, bert):
    with pytest.raises(CommonweightError, match="rows of the task classify cannot be packed"):
        adapt(open_host(bert, dtype="float32"), "t", tiny.rows(8), method="lora", packing=True)
    with pytest.raises(CommonweightError, match="edits positions of a sequence"):
        adapt(
            open_host(llama, "lm", dtype="float32"),
            "t",
            rows(),
            task="lm",
            method="loreft",
            packing=True,
            options={"prefix": 1},
        )


def recurrent():
    return tf.MambaForCausalLM(tf.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=61, state_size=4))


def mamba2():
    return tf.Mamba2ForCausalLM(
        tf.Mamba2Config(
            hidden_size=16,
            num_hidden_layers=1,
            vocab_size=61,
            state_size=4,
            num_heads=4,
            head_dim=8,
            expand=2,
            n_groups=1,
        )
    )


def bloom():
    return tf.BloomForCausalLM(tf.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=61))


def short():
    """Its short convolutions read the two tokens before; of new weights that is 8e-6 of the largest logit."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 61}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    return tf.Lfm2ForCausalLM(tf.Lfm2Config(**sizes, **heads))


@pytest.mark.parametrize("model", [recurrent, mamba2, bloom, short])
def test_models_in_which_rows_would_mix_are_refused(model):
    torch.manual_seed(0)
    made = model().eval()
    with pytest.raises(CommonweightError, match=f"{type(made).__name__} cannot be trained on packed rows"):
        sound(made)


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "moe"])
def test_models_that_read_positions(kind):
    model, _ = make(kind)
    host = Host(model)
    host.add("t", "lora", rank=2)
    with host.route("t"):
        sound(model)


def gpt_oss():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 61, "head_dim": 8}
    more = {"num_local_experts": 4, "sliding_window": 3, "pad_token_id": 0, "eos_token_id": 1}
    return tf.GptOssForCausalLM(tf.GptOssConfig(**sizes, **more, num_attention_heads=2, num_key_value_heads=2))


def falcon():
    return tf.FalconForCausalLM(tf.FalconConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=61, alibi=False
    ))  # fmt: skip


def opt():
    return tf.OPTForCausalLM(tf.OPTConfig(
        hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=61, word_embed_proj_dim=16
    ))  # fmt: skip


@pytest.mark.parametrize("model", [gpt_oss, falcon, opt])
def test_models_that_are_given_masks(model, llama):
    """transformers makes no mask of positions for them: packed rows are kept apart by masks, window and all."""
    from commonweight.adapt.base import tokenizer_of

    torch.manual_seed(0)
    made = model().eval() if model is gpt_oss else model().double().eval()
    host = Host(made)
    tenant = host.add("t", "lora", rank=2)
    with torch.no_grad():
        for p in tenant.parameters():
            p.normal_(std=0.1)
    task = LM(tokenizer_of(open_host(llama, "lm").model), 24)
    with pytest.raises(CommonweightError, match="a row sees the row before it"):
        sound(made)
    with by_row(made), masked(made), host.route("t"):
        sound(made)
    with by_row(made), masked(made):
        assert 1 < len(packed_as_alone(host, "t", task, task.examples(rows()))) < len(rows())
    assert not any(h.__qualname__ == "_give" for h in made._forward_pre_hooks.values() if hasattr(h, "__qualname__"))


@pytest.mark.parametrize("model", [recurrent, bloom, short])
def test_where_masks_are_not_enough(model):
    torch.manual_seed(0)
    made = model().eval()
    hooks = len(made._forward_pre_hooks)
    with masked(made):
        assert len(made._forward_pre_hooks) == hooks
        with pytest.raises(CommonweightError, match=f"{type(made).__name__} cannot be trained on packed rows"):
            sound(made)


@pytest.mark.parametrize("side,kept", [("left", [8, 9, 3]), ("right", [4, 5, 6])])
def test_long_pairs_and_chats_are_cut_on_the_side_that_was_asked_for(llama, side, kept):
    from commonweight.adapt.base import tokenizer_of

    tokenizer = tokenizer_of(open_host(llama, "lm").model)
    task = LM(tokenizer, 3, truncation_side=side)
    pair = {"prompt": "w0", "completion": " " + " ".join(tiny.WORDS[1:6])}
    (made,) = task.examples([pair])
    assert made["input_ids"] == kept  # the tokenizer puts nothing in front
    where = "before the last 3" if side == "left" else "after 3"
    assert f"1 pair cut off {where} tokens" in task.note
    tokenizer.chat_template = tiny.CHAT
    chat = [{"role": "user", "content": "w0"}, {"role": "assistant", "content": " ".join(tiny.WORDS[1:6])}]
    (made,) = LM(tokenizer, 4, truncation_side=side).examples([{"messages": chat}])
    assert made["input_ids"] == ([7, 8, 9, 3] if side == "left" else [4, 3, 5, 6])
    tokenizer.chat_template = None
    (of_text,) = task.cut(["w0 w1 w2 w3"], "texts")
    assert len(of_text) == 3 and tokenizer.truncation_side == "right"
    if side == "right":
        with pytest.raises(CommonweightError, match="no completion begins within 3 tokens"):
            task.examples([{"prompt": "w0 w1 w2 w3", "completion": "w4"}])


def test_an_unknown_side(llama):
    with pytest.raises(CommonweightError, match="unknown truncation side 'middle'"):
        adapt(open_host(llama, "lm"), "t", rows(), task="lm", truncation_side="middle")
