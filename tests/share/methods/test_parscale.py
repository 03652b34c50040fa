"""ParScale: streams of one input by hand, the cases that are the original, caches, masks, folders, bytes."""

import pytest
import torch

from commonweight import CommonweightError, share
from tests.share.deep import IDS, answer, bert, far, gpt2, llama, qwen
from tests.share.elsewhere import answers

MAKE = {"llama": llama, "qwen": qwen, "gpt2": gpt2}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("options", [{"streams": 1}, {"streams": 3, "tokens": 0}])
def test_one_stream_or_no_prefix_is_the_original(kind, options):
    model = MAKE[kind]()
    assert far(answer(share.share(model, "parscale", **options)), answer(model)) < 2e-5


def by_hand(small, ids):
    """Each stream by itself, token by token: what it attends to is put into a cache in front."""
    import transformers as tf

    blocks, streams = small.model.layers, []
    plain = llama()
    for i in range(2):
        cache = tf.DynamicCache()
        for at, block in enumerate(blocks):
            k, v = (
                p.detach()[i].unflatten(-1, (2, 8)).transpose(0, 1)[None].expand(len(ids), -1, -1, -1)
                for p in (block.self_attn.prefix_keys, block.self_attn.prefix_values)
            )
            cache.update(k, v, at)
        n = cache.get_seq_length()
        at = torch.arange(ids.shape[1])[None].expand_as(ids)
        mask = torch.ones(len(ids), n + ids.shape[1], dtype=torch.long)
        with torch.no_grad():
            out = plain.model(ids, past_key_values=cache, position_ids=at, attention_mask=mask)
        streams.append(out.last_hidden_state)
    norm = small.model.norm
    mixed = torch.stack(streams, -1).flatten(-2)  # features of one number side by side
    score = torch.nn.functional.silu(mixed @ norm.mix_in.T + norm.mix_in_bias) @ norm.mix_out.T + norm.mix_out_bias
    a = 0.99 * score.softmax(-1) + 0.01 / 2
    return small.lm_head(sum(a[..., i : i + 1] * s for i, s in enumerate(streams)))


def test_the_formula():
    small = share.share(llama(), "parscale", tokens=3, std=1.0)
    with torch.no_grad():
        assert far(small(IDS).logits, by_hand(small, IDS)) < 2e-5
    assert far(answer(small), answer(llama())) > 1e-2


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_caches_and_padding(kind, attention):
    small = share.share(MAKE[kind](), "parscale", streams=3, tokens=4, std=1.0)
    small.set_attn_implementation(attention)
    how = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(small.generate(IDS, **how), small.generate(IDS, **how, use_cache=False))
    with torch.no_grad():
        out = small(IDS[:, :4], use_cache=True)
        rest = small(IDS[:, 4:], past_key_values=out.past_key_values).logits
        assert far(rest, small(IDS).logits[:, 4:]) < 2e-5
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
        mask = (torch.arange(10) >= 3).long()[None].expand(2, -1).clone()
        mask[1] = 1  # the second row has three more tokens
        at = (mask.cumsum(-1) - 1).clamp_min(0)
        got = small(padded, attention_mask=mask, position_ids=at).logits
        assert far(got[:1, 3:], small(IDS[:1]).logits) < 2e-5
        assert far(got[1:], small(padded[1:]).logits) < 2e-5


def test_bytes_are_those_of_the_plan():
    model = llama()
    small = share.share(model, "parscale", streams=3, tokens=5)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert after - before == 6 * 2 * 3 * 5 * 16 + 3 * 32 * 32 + 32 + 32 * 3 + 3
    original, cost = share.plan(model, {"parscale": [{"streams": 3, "tokens": 5}]})
    assert (cost.parameters, cost.bytes, cost.cache) == (after, 4 * after, 3 * original.cache)
    head = 2 * 61 * 32
    assert cost.flops - head == 3 * (original.flops - head) + 2 * (3 * 32 * 32 + 3 * 32)


def test_folders(tmp_path):
    small = share.share(llama(), "parscale", tokens=3, std=1.0)
    folder = share.save(small, tmp_path / "s")
    assert far(answer(share.load(folder)), answer(small)) == 0
    found = answers(tmp_path, {"p": ("AutoModelForCausalLM", str(folder), True, "float32")})
    assert far(found["p"][0], answer(small)) < 1e-6
    with pytest.raises(CommonweightError, match="nothing that a stock LlamaForCausalLM does"):
        share.save(small, tmp_path / "u", "unrolled")


def test_prefixes_alone_can_be_trained():
    small = share.share(llama(), "parscale", tokens=4).requires_grad_(False)
    mine = [p for n, p in small.named_parameters() if "prefix_" in n or "mix_" in n]
    before = small(IDS, labels=IDS).loss.item()
    optimizer = torch.optim.Adam([p.requires_grad_() for p in mine], lr=3e-2)
    for _ in range(8):
        optimizer.zero_grad()
        small(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert small(IDS, labels=IDS).loss.item() < before - 0.1


def test_what_it_refuses():
    small, how = share.share(llama(), "parscale", tokens=3), dict(max_new_tokens=3, do_sample=False, pad_token_id=0)
    with pytest.raises(ValueError, match="streams need a DynamicCache without windows, not StaticCache"):
        small.generate(IDS, cache_implementation="static", **how)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        small.generate(IDS, num_beams=2, **how)
    with pytest.raises(CommonweightError, match="no norm behind its blocks"):
        share.share(bert(), "parscale")
