"""Prompts in encoders whose tokens go by windows, distances, rotations, neighbours or masks."""

import copy
from typing import Any

import pytest
import torch

import commonweight as cw
from commonweight.host.sites.further import scale
from tests.host.kinds import ANYWHERE, ENCODERS, made, padded
from tests.laws.subjects import stir
from tests.models import VOCAB, make

pytestmark = pytest.mark.filterwarnings("ignore")
READERS = ["three", None, "five", "lora", "three"]
LENGTHS = [8, 6, 7, 8, 5]


def rows():
    return torch.randint(3, VOCAB, (5, 8), generator=torch.Generator().manual_seed(1))


def hosted(model):
    host = cw.Host(model)
    for i, (name, n) in enumerate({"three": 3, "five": 5}.items()):
        stir(host.add(name, "prompt-tuning", tokens=n), i)
    stir(host.add("lora", "lora", rank=2), 3)
    return host


def vectors(model, ids):
    """What the model makes of tokens; ESM has no part that takes vectors in their place."""
    if type(model).__name__ == "EsmModel":
        return model.embeddings(ids)
    return model.get_input_embeddings()(ids)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_row_is_that_row_alone_and_that_of_the_plain_model_with_vectors(name):
    model = made(name)
    plain, host, ids = copy.deepcopy(model), hosted(model), rows()
    kept = {n: next(iter(host[n].pools.values())) for n in ("three", "five")}
    for left in (False, True) if name in ANYWHERE else (False,):
        given = padded(ids, LENGTHS, left)
        with torch.no_grad(), host.route(READERS):
            mixed = model(**given).last_hidden_state
        for i, reader in enumerate(READERS):
            keep = given["attention_mask"][i].bool()
            row = ids[i : i + 1, keep]
            with torch.no_grad(), host.route(reader):
                alone = model(row).last_hidden_state
            torch.testing.assert_close(mixed[i, keep], alone[0], rtol=1e-3, atol=2e-5)
            if reader in kept:
                with torch.no_grad():
                    x = torch.cat([kept[reader][None], vectors(plain, row)], 1)
                    want = plain(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2])).last_hidden_state
                torch.testing.assert_close(alone, want[:, -len(row[0]) :], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["ModernBert", "DebertaV2", "MobileBert", "MPNet"])
def test_what_comes_out_beside_the_last_states_and_gradients(name):
    model = made(name, attention="eager" if name in ("ModernBert", "MobileBert") else None)
    plain, host, ids = copy.deepcopy(model), cw.Host(model), rows()
    (E,) = stir(host.add("t", "prompt-tuning", tokens=3)).parameters()
    stir(host.add("u", "p-tuning", tokens=2, hidden=4))
    with host.route(["t", None, "u", "t", "t"]):
        out = model(ids, output_hidden_states=True, output_attentions=True)
    assert {tuple(h.shape) for h in out.hidden_states} == {(5, 8, 32)}
    assert {tuple(a.shape) for a in out.attentions} == {(5, 4, 8, 11)}
    assert out.attentions[0][1, :, :, 8:].abs().max() == 0 and out.attentions[0][2, :, :, 10].abs().max() == 0
    out.last_hidden_state[[0, 3, 4]].square().sum().backward()
    again = E.detach().clone().requires_grad_()
    x = torch.cat([again.expand(3, -1, -1), plain.get_input_embeddings()(ids[[0, 3, 4]])], 1)
    want = plain(inputs_embeds=x, output_hidden_states=True)
    want.last_hidden_state[:, 3:].square().sum().backward()
    torch.testing.assert_close(E.grad, again.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.hidden_states[1][0], want.hidden_states[1][0, 3:], rtol=1e-3, atol=2e-5)
    if getattr(out, "pooler_output", None) is not None:
        pooled = model.pooler(out.last_hidden_state)
        torch.testing.assert_close(out.pooler_output, pooled)


@pytest.mark.parametrize("name", ["Longformer", "RoFormer", "MobileBert"])
def test_what_positions_bring_where_rows_are_filled_up(name):
    """Padding brings nothing: in MobileBERT it is a neighbour."""
    model = made(name)
    host, ids = cw.Host(model), rows()
    stir(host.add("t", "dept", tokens=3, rank=2, length=9))
    with torch.no_grad(), host.route("t"):
        got = model(**padded(ids, LENGTHS)).last_hidden_state
        for i, n in enumerate(LENGTHS):
            want = model(ids[i : i + 1, :n]).last_hidden_state[0]
            torch.testing.assert_close(got[i, :n], want, rtol=1e-3, atol=2e-5)


def test_positions_that_are_given_go_on_behind_a_prompt():
    """With those of the prompt where the row began: here that is what the model counts, from 7 on."""
    model = made("EuroBert")
    plain, host, ids = copy.deepcopy(model), hosted(model), rows()
    E = next(iter(host["three"].pools.values()))
    at = torch.arange(7, 15).expand(5, -1)
    x = torch.cat([E.expand(5, -1, -1), plain.get_input_embeddings()(ids)], 1)
    with torch.no_grad(), host.route(["three", None, "five", "three", "three"]):
        got = model(ids, position_ids=at).last_hidden_state
        want = plain(inputs_embeds=x, position_ids=torch.arange(7, 18)[None]).last_hidden_state[:, 3:]
    torch.testing.assert_close(got[[0, 3]], want[[0, 3]], rtol=1e-3, atol=2e-5)


def test_vectors_in_place_of_tokens_and_dept():
    model = made("ModernBert")
    host, ids = hosted(model), rows()
    dept = stir(host.add("dept", "dept", tokens=3, rank=2, length=9), 5)
    with torch.no_grad():
        x = model.get_input_embeddings()(ids)
        with host.route(READERS):
            torch.testing.assert_close(model(inputs_embeds=x)[0], model(ids)[0], rtol=1e-4, atol=1e-5)
        given = padded(ids, LENGTHS, left=True)
        with host.route("dept"):
            got = model(**given).last_hidden_state
            one = model(ids[2:3, 1:]).last_hidden_state[0]
        torch.testing.assert_close(got[2, 1:], one, rtol=1e-4, atol=1e-5)
        E, A, B = (next(p for n, p in dept.pools.items() if n.endswith(k)) for k in (".E", ".A", ".B"))
        moved = x + 8 / 2**0.5 * (A[:8] @ B)
        want = model(inputs_embeds=torch.cat([E.expand(5, -1, -1), moved], 1)).last_hidden_state[:, 3:]
        with host.route("dept"):
            torch.testing.assert_close(model(ids).last_hidden_state, want, rtol=1e-4, atol=1e-5)


def test_a_prefix_of_eager_attention_that_does_not_say_how_it_sees():
    """Splinter's says nothing of causality, and without a mask its eager attention has none."""
    import transformers as tf

    from tests.host.kinds import SIZES

    torch.manual_seed(0)
    model = tf.SplinterModel(tf.SplinterConfig(**dict[str, Any](SIZES))).eval()
    host, ids = cw.Host(model), rows()
    stir(host.add("t", "prefix-tuning", tokens=2))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(model(ids)[0], model(ids, torch.ones_like(ids))[0])
        assert host["t"].sites[0].role == ""
        other = ids.clone()
        other[:, -1] = 9
        assert (model(ids)[0] - model(other)[0])[:, 0].abs().max() > 1e-5


@pytest.mark.parametrize(
    ("name", "why"),
    [("FNet", "FNetModel is not called with tokens, or vectors .*, and their mask alone"),
     ("IBert", "it names no table of input tokens"),
     ("XLNet", "its tokens see those before them alone")],
)  # fmt: skip
def test_kinds_without_prompts_say_why(name, why):
    import transformers as tf

    sizes = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    if name == "XLNet":
        sizes = dict(vocab_size=VOCAB, d_model=32, n_layer=1, n_head=4, d_inner=64)
    host = cw.Host(getattr(tf, f"{name}Model")(getattr(tf, f"{name}Config")(**sizes)))
    with pytest.raises(cw.CommonweightError, match=f"no prompt can stand before .*{why}.*such as lora"):
        host.add("t", "prompt-tuning")


@pytest.mark.parametrize("method", ["prefix-tuning", "aligner", "rpo"])
def test_where_no_keys_can_stand_in_front(method):
    host = cw.Host(made("DebertaV2"))
    with pytest.raises(cw.CommonweightError, match=r"compute by themselves. Take prompt-tuning, or a"):
        host.add("t", method)


def test_what_is_multiplied_behind_the_table():
    assert scale(made("Bart").get_encoder()) == 1.0 and scale(made("Marian").get_encoder()) == 32**0.5
    assert make("bert")[0] is not None and scale(made("Esm")) == pytest.approx(0.88)
