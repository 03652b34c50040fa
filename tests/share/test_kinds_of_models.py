"""Models that are unlike llama: blocks of different kinds, no cache or another one, heads of other kinds, windows."""

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, share
from tests.share.deep import IDS, SIZE, TOKENS, _own, answer, bert, far, llama

HOW = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SCORES = {**HOW, "output_logits": True, "return_dict_in_generate": True}


def moe():
    """Its second block has no experts; transformers writes experts one by one, and holds them in one tensor."""
    return _own(
        lambda: tf.Qwen3MoeForCausalLM(
            tf.Qwen3MoeConfig(
                num_hidden_layers=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
                moe_intermediate_size=16, mlp_only_layers=[1], **SIZE, **TOKENS,
            )
        )
    )  # fmt: skip


def t5():
    """Its first block alone has a table of the bias by position."""
    config = tf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=4, num_heads=4, vocab_size=61)
    return _own(lambda: tf.T5EncoderModel(config))


def neox():
    """Its blocks call their cache by another name."""
    return _own(
        lambda: tf.GPTNeoXForCausalLM(
            tf.GPTNeoXConfig(num_hidden_layers=6, max_position_embeddings=32, **SIZE, **TOKENS)
        )
    )


def vit():
    return _own(
        lambda: tf.ViTModel(
            tf.ViTConfig(
                num_hidden_layers=6, hidden_size=32, intermediate_size=64, num_attention_heads=4, image_size=8,
                patch_size=4,
            )
        )
    )  # fmt: skip


def again(small, folder, auto):
    """As others load it: by the code in the folder."""
    share.save(small, folder)
    return auto.from_pretrained(folder, trust_remote_code=True).eval()


def test_blocks_of_different_kinds_keep_their_places(tmp_path):
    model = moe()
    whole = share.share(model, "masa", matrices=4)
    assert far(answer(whole), answer(model)) < 1e-5
    assert far(answer(again(whole, tmp_path / "m", tf.AutoModelForCausalLM)), answer(whole)) == 0
    assert far(answer(share.load(tmp_path / "m")), answer(whole)) == 0
    for init in ("upper", "stepwise"):
        with pytest.raises(CommonweightError, match="this model's blocks are of different kinds"):
            share.share(model, "recursive", init=init)
    with pytest.raises(CommonweightError, match="of different kinds, in their feed-forward networks"):
        share.share(model, "widenet")
    with pytest.raises(CommonweightError, match="block 1 would be of a kind that its config has elsewhere"):
        share.share(model, "drop", layers=(0, 2, 3))


def test_what_one_block_has_alone(tmp_path):
    model = t5()
    assert far(answer(share.share(model, "recursive", init="average", share_norms=False)), answer(model)) > 1e-5
    frozen = share.share(model, "aslora")
    found = again(frozen, tmp_path / "a", tf.AutoModel)
    assert far(answer(found), answer(frozen)) == 0
    assert not found.encoder.block[2].layer[0].SelfAttention.q.weight.requires_grad
    with pytest.raises(CommonweightError, match="no table of input tokens"):
        share.share(model, "rembert", rank=8)  # the encoder holds the table too, and would read that
    with pytest.raises(CommonweightError, match=r"a bias by position \(position_bias\)"):
        share.share(model, "mor")
    with pytest.raises(CommonweightError, match="block 1 would be of a kind that its config has elsewhere"):
        share.share(model, "drop", layers=(0, 0, 1))


@pytest.mark.parametrize(
    ("method", "options"), [("mor", {"choice": "token"}), ("mor", {}), ("parscale", {"tokens": 3})]
)
def test_a_cache_of_another_name(method, options):
    small = share.share(neox(), method, **options)
    with torch.no_grad():
        for name, p in small.named_parameters():
            if name.endswith("router"):
                p.normal_(std=3.0, generator=torch.Generator().manual_seed(3))
    one, two = (small.generate(IDS, use_cache=cache, **SCORES).logits for cache in (True, False))
    assert max(map(far, one, two)) < 1e-5


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_tokens_of_an_encoder_see_those_behind_them(choice):
    """Without a mask of the model's own, and in eager attention, which adds the mask that it is given."""
    small = share.share(vit(), "mor", choice=choice)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sdpa = small(pixels).last_hidden_state
        small.set_attn_implementation("eager")
        assert len({int(n) for n in small.layers[1].walk.ran.flatten()}) > 1
        assert far(small(pixels).last_hidden_state, sdpa) < 1e-5


def test_what_reads_no_text():
    with pytest.raises(CommonweightError, match="parscale: these blocks read no cache"):
        share.share(vit(), "parscale")
    with pytest.raises(CommonweightError, match="ViTModel reads pixel_values; the method looks at text"):
        share.share(vit(), "crash", rows=IDS, ends=1)


def test_two_names_of_one_bias_stay_one(tmp_path):
    """A tied table ends, and with it what else transformers ties only while tables are."""
    config = tf.BertConfig(num_hidden_layers=2, max_position_embeddings=32, **SIZE)
    small = share.share(_own(lambda: tf.BertForMaskedLM(config)), "rembert", rank=8)
    found = again(small, tmp_path / "b", tf.AutoModelForMaskedLM)
    assert far(answer(found), answer(small)) == 0
    assert found.cls.predictions.decoder.bias is found.cls.predictions.bias
    assert far(answer(share.load(tmp_path / "b")), answer(small)) == 0


def test_a_head_that_asks_an_auto_class_for_its_base(tmp_path):
    config = llama().config
    small = share.share(_own(lambda: tf.LlamaForSequenceClassification(config)), "recursive", relax=2)
    found = again(small, tmp_path / "c", tf.AutoModelForSequenceClassification)
    assert far(answer(found), answer(small)) == 0
    assert found.model.layers[0].mlp.up_proj.weight is found.model.layers[3].mlp.up_proj.weight
    assert share.share(_own(lambda: tf.LlamaForSequenceClassification(config)), "matching", rows=IDS) is not None


def test_windows_are_refused_before_anything_is_built():
    config = tf.MistralConfig(num_hidden_layers=6, num_key_value_heads=2, sliding_window=4, **SIZE, **TOKENS)
    model = _own(lambda: tf.MistralForCausalLM(config))
    for method in ("mor", "exit", "sut", "parscale"):
        with pytest.raises(CommonweightError, match=f"{method}: the attention of these blocks has windows"):
            share.share(model, method)
    assert not any(c.method.startswith(("mor", "exit", "sut")) for c in share.plan(model))


def test_a_looped_model_is_told_what_to_do():
    config = tf.AlbertConfig(num_hidden_layers=6, embedding_size=16, max_position_embeddings=32, **SIZE)
    for ask in (share.share, share.plan):
        with pytest.raises(CommonweightError, match=r"says 6 layers, it has 1 blocks; .* share.depths\(model\)"):
            ask(tf.AlbertModel(config))


def test_a_shared_model_without_forms_is_shared_again(tmp_path):
    once = share.share(llama(), "drop", keep=4)
    twice = share.share(once, "recursive", loops=2)
    plain = share.share(llama(), "drop", layers=tuple(share.layout(llama(), "drop", keep=4).like))
    want = share.share(plain, "recursive", loops=2)
    assert far(answer(twice), answer(want)) == 0
    assert far(answer(again(twice, tmp_path / "t", tf.AutoModelForCausalLM)), answer(twice)) == 0


def test_end_tokens_as_many_as_layers_stay():
    model = llama(3)
    model.config.eos_token_id = [2, 5, 7]
    assert share.share(model, "drop", keep=2).config.eos_token_id == [2, 5, 7]


@pytest.mark.parametrize("rows", [[[]], ["abc"], [[61]], [[1.5]]])
def test_rows_that_are_none(rows):
    with pytest.raises(CommonweightError, match=r"row 0 is .* wanted numbers of tokens, 0 to 60"):
        share.share(llama(), "crash", rows=rows, ends=1)


def test_codes_that_layers_do_not_tell_apart():
    small = share.share(llama(2), "mip", hidden=(4, 2))
    for code in (2.0, -0.5, float("nan"), [float("nan")], None, "a"):
        with pytest.raises(CommonweightError, match=r"a number from 0 to 1|is no number"):
            share.choose(small, code)
    small = share.share(llama(2), "efficientdm", acts=8, steps=3, rank=2)
    with pytest.raises(CommonweightError, match="asked to be 3; wanted a step from 0 to 2"):
        share.choose(small, 3)


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CommonweightError, match="cannot be written"):
        share.save(share.share(bert(2), "drop", keep=1), tmp_path / "file" / "small")


def test_what_is_no_plain_model():
    from peft import LoraConfig, inject_adapter_in_model

    from commonweight import Host

    with pytest.raises(CommonweightError, match=r"is a layer of PEFT's, .* merge_and_unload\(\) first"):
        share.share(inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), llama(2)), "drop", keep=1)
    for wrong in (Host(llama(2)), "a-folder"):
        with pytest.raises(CommonweightError, match=r"wanted a model \(of a host, its .model\)"):
            share.share(wrong, "crash", rows=IDS)
