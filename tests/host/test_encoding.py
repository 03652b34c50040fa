"""`generate` of an encoder-decoder, whose encoder runs by itself: each row is what it is alone."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import small, stir
from tests.models import make


@pytest.mark.parametrize("method", ["coda", "meo", "styleinject", "prompt-pool"])
@torch.no_grad()
def test_a_row_with_padding_is_that_row_alone(method):
    model, batch = make("t5")
    host = cw.Host(model)
    for i, name in enumerate("ab"):
        stir(host.add(name, method, **small(method)), i, std=0.3)
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    mask[0, 3:] = mask[2, 4:] = 0
    how = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    how["eos_token_id"] = None

    def scores(route, ids, mask):
        with host.route(route):
            return torch.stack(model.generate(input_ids=ids, attention_mask=mask, **how).logits, 1)

    with host.route(["a", None, "b", "a"]):  # a whole pass may have found that it runs reader by reader
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
    for route in (["a"] * 4, ["a", None, "b", "a"]):
        got = scores(route, ids, mask)
        for i, n in ((0, 3), (1, ids.shape[1]), (2, 4)):
            alone = scores(route[i], ids[i : i + 1, :n], mask[i : i + 1, :n])
            torch.testing.assert_close(got[i], alone[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_encoder_is_told_wrong_rows_by_their_number():
    model, batch = make("t5")
    host = cw.Host(model)
    host.add("a", "lora", rank=2)
    with host.route(["a", None]), pytest.raises(cw.CommonweightError, match=r"names 2 readers, the batch has 4 rows"):
        model.get_encoder()(input_ids=batch["input_ids"])
    host.close()
    assert "forward" not in model.get_encoder().__dict__


@pytest.mark.parametrize("before", ["refused", "compiled"])
@torch.no_grad()
def test_a_pass_that_was_refused_or_compiled_is_over(before, monkeypatch):
    model, batch = make("t5")
    host = cw.Host(model)
    stir(host.add("a", "meo", **small("meo")), 1, std=0.3)
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    how = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def scores():
        with host.route("a"):
            return torch.stack(model.generate(input_ids=ids, attention_mask=mask, **how).logits)

    wanted, padded = scores(), mask.clone()
    padded[:, 2:] = 0
    given = {"input_ids": ids, "attention_mask": padded, "decoder_input_ids": ids}
    if before == "refused":
        with host.route(["a", None]), pytest.raises(cw.CommonweightError, match="names 2 readers"):
            model(**given)
    else:
        with host.route("a"), monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)  # as what is compiled sees it, without its cost
            model.__call__(**given)
    assert host.base.current.thread.run.given is None
    torch.testing.assert_close(scores(), wanted)
