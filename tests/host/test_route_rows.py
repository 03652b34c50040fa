"""Models that feed their layers something without rows; copies of a host; numbers that are none."""

from __future__ import annotations

import pickle

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

# -- models that feed their layers something without rows --------------------------------------------------------------
from .routed import deberta


def swin():
    return tf.Swinv2Model(
        tf.Swinv2Config(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    )


@pytest.mark.parametrize("make_model", [deberta, swin])
def test_models_without_rows_at_some_layer_are_right_in_mixed_batches(make_model):
    torch.manual_seed(0)
    model = make_model().eval()
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.3)
    ids = torch.randint(3, 61, (3, 6), generator=torch.Generator().manual_seed(2))
    batch = {"pixel_values": torch.randn(3, 3, 16, 16)} if make_model is swin else {"input_ids": ids}
    for names in (["a", "a", "a"], ["a", None, "b"], ["b", "a", "b"]):
        with torch.no_grad(), host.route(names):
            mixed = model(**batch).last_hidden_state
        for row, name in enumerate(names):
            one = {k: v[row : row + 1] for k, v in batch.items()}
            with torch.no_grad(), host.route(name):
                torch.testing.assert_close(mixed[row], model(**one).last_hidden_state[0], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_cut_by_rows_is_refused_with_the_reason():
    torch.manual_seed(0)
    model = tf.DebertaV2ForSequenceClassification(deberta().config)
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i)
    ids = torch.randint(3, 61, (2, 6))
    with host.route(["a", "b"]):
        assert model(input_ids=ids).logits.shape == (2, 2)
        with pytest.raises(cw.CommonweightError, match=r"labels were given"):
            model(input_ids=ids, labels=torch.tensor([0, 1]))


def test_positions_that_do_not_begin_with_the_rows_are_not_cut():
    from commonweight.host.apart import Unfit, by_reader

    ids = torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(Unfit, match=r"position_ids of shape \(3, 3, 5\) do not begin with the rows"):
        by_reader(print, [("a", [0, 2]), ("b", [1])], (ids,), {"position_ids": torch.zeros(3, 3, 5)}, 3)


# -- copies, and numbers that are none ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "loreft", "oft", "mos"])
def test_a_host_comes_back_from_a_pickle_with_its_tenants(method):
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("a", method, common="both" if method == "mos" else None)
    stir(host["a"], 3)
    again = pickle.loads(pickle.dumps(host))
    with torch.no_grad(), host.route("a"), again.route("a"):
        assert torch.equal(answer(model, batch), answer(again.model, batch))
    assert again["a"].base() is again.base and again.model is not model
    again.remove("a")
    assert "a" in host


@pytest.mark.parametrize("method", ["loreft", "oft", "boft", "dora", "svf", "lora"])
def test_a_tenant_with_nan_ends_its_own_rows_alone(method):
    model, batch = make("llama")
    host = cw.Host(model)
    sick, sicker, well = host.add("sick", method), host.add("sicker", method), stir(host.add("well", "lora"))
    with torch.no_grad():
        for t in (sick, sicker):
            for p in t.parameters():
                p.fill_(float("nan"))
        with host.route("well"):
            want = answer(model, batch)
        with host.route(["sick", "well", "sicker", well.name]):
            got = answer(model, batch)
    torch.testing.assert_close(got[[1, 3]], want[[1, 3]])
    assert got[0].isnan().any() and got[2].isnan().any()
