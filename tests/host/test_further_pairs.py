"""Prompts in front of what an encoder reads that stands before a decoder: the decoder reads them too."""

import copy

import pytest
import torch

import commonweight as cw
from commonweight.host.sites.further import scale
from tests.host.kinds import PAIRS, made, padded
from tests.laws.subjects import stir
from tests.models import VOCAB

pytestmark = pytest.mark.filterwarnings("ignore")
READERS = ["three", None, "five", "lora", "three"]
LENGTHS = [8, 6, 7, 8, 5]
KEPT = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)


def rows():
    return torch.randint(3, VOCAB, (5, 8), generator=torch.Generator().manual_seed(1))


def hosted(model):
    host = cw.Host(model)
    for i, (name, n) in enumerate({"three": 3, "five": 5}.items()):
        stir(host.add(name, "prompt-tuning", tokens=n), i)
    stir(host.add("lora", "lora", rank=2), 3)
    return host


def longer(plain, E, ids):
    encoder = plain.get_encoder()
    words = plain.get_input_embeddings()(ids) * scale(encoder)
    return torch.cat([E.expand(len(ids), -1, -1), words], 1)


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_is_that_row_alone_and_that_of_the_plain_model_with_vectors(name):
    model = made(name)
    plain, host, ids = copy.deepcopy(model), hosted(model), rows()
    kept = {n: next(iter(host[n].pools.values())) for n in ("three", "five")}
    given, answers = padded(ids, LENGTHS), ids[:, :4]
    with torch.no_grad(), host.route(READERS):
        mixed = model(**given, decoder_input_ids=answers)
    assert mixed.encoder_last_hidden_state.shape[1] == 13
    for i, reader in enumerate(READERS):
        row = ids[i : i + 1, : LENGTHS[i]]
        with torch.no_grad(), host.route(reader):
            alone = model(row, decoder_input_ids=answers[i : i + 1]).logits
        torch.testing.assert_close(mixed.logits[i], alone[0], rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
        if reader in kept:
            with torch.no_grad():
                x = longer(plain, kept[reader], row)
                want = plain(inputs_embeds=x, decoder_input_ids=answers[i : i + 1]).logits
            torch.testing.assert_close(alone, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["T5", "Bart", "Marian"])
def test_a_mixed_batch_generates_what_each_row_does(name, beams):
    """With a cache; the plain model is given vectors and their mask."""
    model = made(name)
    plain, host, ids = copy.deepcopy(model), hosted(model), rows()
    kept = {n: next(iter(host[n].pools.values())).detach() for n in ("three", "five")}
    with host.route(READERS):
        mixed = model.generate(**padded(ids, LENGTHS), num_beams=beams, **KEPT)
    for i, reader in enumerate(READERS):
        row = ids[i : i + 1, : LENGTHS[i]]
        if reader in kept:
            x = longer(plain, kept[reader], row)
            want = plain.generate(
                inputs_embeds=x, attention_mask=torch.ones(x.shape[:2]).long(), num_beams=beams, **KEPT
            )
        else:
            with host.route(reader):
                want = model.generate(row, num_beams=beams, **KEPT)
        assert torch.equal(mixed[i], want[0])


def test_gradients_are_those_of_a_longer_input():
    model = made("T5")
    plain, host, ids = copy.deepcopy(model), hosted(model), rows()
    (E,) = host["three"].parameters()
    labels = ids[:, :4].contiguous()
    with host.route("three"):
        model(ids, labels=labels).loss.backward()
    again = E.detach().clone().requires_grad_()
    plain(inputs_embeds=longer(plain, again, ids), labels=labels).loss.backward()
    torch.testing.assert_close(E.grad, again.grad, rtol=1e-3, atol=1e-4)


def test_states_of_an_encoder_that_ran_before():
    """With prompts they are read with them, without as they are; positions stand in the encoder's rows alone."""
    model = made("Bart")
    base, host, ids = copy.deepcopy(model), hosted(model), rows()
    given, answers = padded(ids, LENGTHS), ids[:, :4]
    mask = {"attention_mask": given["attention_mask"]}
    stir(host.add("dept", "dept", tokens=3, rank=2, length=9), 5)
    with torch.no_grad():
        plain = model.get_encoder()(**given)
        before = model(encoder_outputs=plain, decoder_input_ids=answers, **mask).logits
        with host.route(READERS):
            states = model.get_encoder()(**given)
            got = model(encoder_outputs=states, decoder_input_ids=answers, **mask).logits
            torch.testing.assert_close(got, model(**given, decoder_input_ids=answers).logits)
        with host.route("three"):
            torch.testing.assert_close(model(encoder_outputs=plain, decoder_input_ids=answers, **mask).logits, before)
        E, A, B = (next(p for n, p in host["dept"].pools.items() if n.endswith(k)) for k in (".E", ".A", ".B"))
        with host.route("dept"):
            got = model(ids, decoder_input_ids=answers).logits
            want = [
                model(ids[i : i + 1, :n], decoder_input_ids=answers[i : i + 1]).logits for i, n in enumerate(LENGTHS)
            ]
            torch.testing.assert_close(
                model(**given, decoder_input_ids=answers).logits, torch.cat(want), rtol=1e-3, atol=1e-4
            )
        x = torch.cat([E.expand(5, -1, -1), base.get_input_embeddings()(ids) + 8 / 2**0.5 * (A[:8] @ B)], 1)
        want = base(inputs_embeds=x, decoder_input_ids=answers).logits
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_states_of_which_nothing_says_whose_they_are():
    """Whether a prompt stands in front of them is told by the mask of the rows alone."""
    host, answers = hosted(made("Bart")), rows()[:, :4]
    given = padded(rows(), LENGTHS)
    with torch.no_grad():
        plain = host.model.get_encoder()(**given)
        with host.route("three"):
            states = host.model.get_encoder()(**given)
        with host.route(READERS), pytest.raises(cw.CommonweightError, match="told by the attention_mask"):
            host.model(encoder_outputs=plain, decoder_input_ids=answers)
        with (
            host.route("five"),
            pytest.raises(cw.CommonweightError, match=r"have 11 columns for 8 tokens.* make them 13"),
        ):
            host.model(encoder_outputs=states, decoder_input_ids=answers, attention_mask=given["attention_mask"])


def test_rows_that_do_not_fit_and_what_leads():
    host = hosted(made("Bart"))
    host.add("long", "prompt-tuning", tokens=35)
    with torch.no_grad(), host.route("long"), pytest.raises(cw.CommonweightError, match="rows of 8 tokens are 43"):
        host.model(rows(), decoder_input_ids=rows()[:, :2])
    with pytest.raises(cw.CommonweightError, match="leads is of encoders"):
        host.add("first", "prompt-tuning", leads=True)
