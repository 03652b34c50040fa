"""Binds that go by a token's place in its row, beside other passes, caches and models with tokens first."""

from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.host.test_odd_models import fsmt
from tests.laws.subjects import stir
from tests.models import make


def hosted() -> tuple[Any, torch.Tensor]:
    model, batch = make("llama")
    host: Any = cw.Host(model)
    stir(host.add("a", "loreft", prefix=2), 1, std=0.5)
    return host, batch["input_ids"]


@torch.no_grad()
def test_a_part_by_itself_has_no_padding_of_an_earlier_pass():
    host, ids = hosted()
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    with host.route("a"):
        host.model(ids, attention_mask=mask)
        got = host.model.model(ids).last_hidden_state
        host.model(ids)
        torch.testing.assert_close(got, host.model.model(ids).last_hidden_state)
        wanted = host.model(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("method, options", [("loreft", {"prefix": 2}), ("dyt", {"first": True})])
@torch.no_grad()
def test_a_mask_that_does_not_say_which_tokens_are_padding_is_refused(method, options):
    host, ids = hosted()
    host.add("b", method, **options)
    how = {"max_new_tokens": 2, "do_sample": False, "cache_implementation": "static"}
    with host.route("b"), pytest.raises(cw.CommonweightError, match="goes by a token's place in its row"):
        host.model.generate(ids, attention_mask=torch.ones_like(ids), **how)


@torch.no_grad()
def test_padding_of_texts_among_which_a_model_chooses():
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    host: Any = cw.Host(tf.BertForMultipleChoice(tf.BertConfig(vocab_size=64, intermediate_size=48, **sizes)).eval())
    stir(host.add("a", "loreft", prefix=2), 1, std=0.5)
    ids = torch.randint(2, 60, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    padded, place = torch.cat([ids[..., :2], ids], -1), torch.tensor([0, 0, *range(5)]).expand(2, 3, 7)
    mask = torch.ones_like(padded)
    mask[..., :2] = 0
    type_ids = torch.zeros_like(padded)
    with host.route("a"):  # the pooler reads the first column
        blocks = {"output_hidden_states": True}
        wanted = host.model(ids, **blocks).hidden_states[-1]
        got = host.model(padded, attention_mask=mask, position_ids=place, token_type_ids=type_ids, **blocks)
    torch.testing.assert_close(got.hidden_states[-1][:, 2:], wanted)


@pytest.mark.parametrize("rows", [4, 8])
@torch.no_grad()
def test_a_token_of_a_model_with_tokens_first_has_its_place_in_its_row(rows):
    host: Any = cw.Host(fsmt())
    stir(host.add("a", "loreft", prefix=2), 1, std=0.5)
    ids = torch.randint(4, 60, (rows, 8), generator=torch.Generator().manual_seed(0))

    def scores(route, ids):
        with host.route(route):
            return host.model(ids, decoder_input_ids=ids, use_cache=False).logits

    got, mixed = scores("a", ids), scores(["a", None] * (rows // 2), ids)
    for i in range(0, rows, 2):
        alone = scores("a", ids[i : i + 1])[0]
        torch.testing.assert_close(got[i], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[i], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tokens_first_that_nobody_said_are_refused():
    config = tf.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=48)
    host: Any = cw.Host(tf.XLNetModel(config).eval())
    host.add("a", "loreft", prefix=2)
    for route in ("a", ["a", None, "a", "a"]):
        with host.route(route), pytest.raises(cw.CommonweightError, match=r"layer.0: .*\(6, .* in a pass of .* row"):
            host.model(torch.ones(4, 6, dtype=torch.long))
