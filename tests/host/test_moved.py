"""Positions of an encoder-decoder behind a prefix: tables given one list for all rows, each stack by itself."""

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.host import moved
from commonweight.host.sites.families import towers
from tests.laws.subjects import stir
from tests.models import VOCAB, make


def paired(name="Bart", layers=2):
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64)
    config = getattr(tf, f"{name}Config")(
        d_model=32, encoder_layers=layers, decoder_layers=layers, **heads, vocab_size=VOCAB, pad_token_id=0,
        max_position_embeddings=24, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    kind = {"Marian": "MarianMTModel"}.get(name, f"{name}ForConditionalGeneration")
    g = torch.Generator().manual_seed(1)
    batch = {k: torch.randint(3, VOCAB, (4, n), generator=g) for k, n in (("input_ids", 7), ("decoder_input_ids", 5))}
    return getattr(tf, kind)(config).eval(), batch


@pytest.mark.parametrize("name", ["Bart", "MBart", "Pegasus", "Marian"])
def test_each_row_of_a_mixed_batch_is_that_row_alone(name):
    model, batch = paired(name)
    host, readers = cw.Host(model), ["a", "b", None, "a"]
    stir(host.add("a", "prefix-tuning", tokens=3))
    stir(host.add("b", "prefix-tuning", tokens=2), 1)
    told = dict(do_sample=False, max_new_tokens=4, min_new_tokens=4)
    with torch.no_grad(), host.route(readers):
        mixed, made = model(**batch).logits, model.generate(batch["input_ids"], **told)
    for i, reader in enumerate(readers):
        with torch.no_grad(), host.route(reader):
            alone = model(**{k: v[i : i + 1] for k, v in batch.items()}).logits
            torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-6)
            assert torch.equal(model.generate(batch["input_ids"][i : i + 1], **told), made[i : i + 1])


def test_a_prefix_of_the_encoder_moves_no_token_of_the_decoder():
    model, batch = paired()
    host, seen = cw.Host(model), []
    table = model.model.decoder.embed_positions
    table.register_forward_pre_hook(lambda m, a, k: seen.append(k["position_ids"].tolist()), with_kwargs=True)
    for where in ("encoder", "decoder"):
        host.add(where, "prefix-tuning", tokens=3, sites=f"*.{where}.*.prefix")
        with torch.no_grad(), host.route(where):
            model(**batch)
    assert seen == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]]


def test_the_table_s_end():
    model, batch = paired()
    host = cw.Host(model)
    for tokens in (19, 20):
        host.add(f"t{tokens}", "prefix-tuning", tokens=tokens)
    with torch.no_grad():
        with host.route("t19"):
            model(**batch)
        with host.route("t20"), pytest.raises(cw.CommonweightError, match=r"to position 24, and .* ends at 23"):
            model(**batch)


def test_a_host_asks_for_the_tower_of_a_name_once(monkeypatch):
    """Not once for each layer: a model of thirty took a quarter of a second, nine tenths of it here."""
    asked = []

    def counting(model):
        tower = towers(model)
        return lambda name: [asked.append(name), tower(name)][1]

    monkeypatch.setattr(moved, "towers", counting)
    model = make("llama")[0]
    cw.Host(model)
    assert 0 < len(asked) == len(set(asked)) < len(list(model.modules()))
