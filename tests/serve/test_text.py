"""Text as it comes makes the text as it is, and a stop string never shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from commonweight.serve.text import Decoder
from tests.drawn import drawn

_letters = sorted(pre_tokenizers.ByteLevel.alphabet())
_raw = Tokenizer(models.BPE({c: i for i, c in enumerate(_letters)}, []))
_raw.pre_tokenizer, _raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=_raw)  # a token a byte: characters come in parts


def said(text: str, stops: list[str]) -> tuple[str, list[str], bool]:
    decoder, parts = Decoder(TOKENIZER, stops), []
    for token in TOKENIZER(text)["input_ids"]:
        parts.append(decoder.feed(token))
        if decoder.stopped:
            break
    parts.append(decoder.rest())
    return "".join(parts), parts, decoder.stopped is not None


@drawn(60)
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_parts_make_the_whole(text: str):
    assert said(text, [])[0] == TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True)


def test_no_half_characters_are_given_out():
    assert all("\ufffd" not in p for p in said("a\u00e9\u4e2d\U0001f642!", [])[1])


def test_a_space_behind_many_special_tokens_stays():
    """Decoders of SentencePiece's kind leave out the first space of what they are given."""
    raw = Tokenizer(models.WordLevel({"<s>": 0, "\u2581a": 1, "\u2581b": 2}, unk_token="<s>"))
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    tokens = [1, *[0] * 9, 2, *[0] * 9, 2]
    decoder = Decoder(tokenizer)
    assert "".join(decoder.feed(t) for t in tokens) + decoder.rest() == "a b b"


@pytest.mark.parametrize(
    ("text", "stops", "want"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["twos", "thr"], "one two "),
        ("aaab", ["aab"], "a"),
        ("one two", ["twofold"], "one two"),
        ("one\nUser: x", ["\nUser:"], "one"),
    ],
)
def test_stop_strings(text: str, stops: list[str], want: str):
    whole, parts, stopped = said(text, stops)
    assert whole == want and stopped == (len(want) < len(text))
    shown = ""
    for part in parts:
        shown += part
        assert want.startswith(shown)


def test_a_stop_string_is_seen_across_what_came_before():
    assert said("abcabd", ["abd"])[0] == "abc"


def test_a_stop_string_within_the_least_length_is_text():
    ids = TOKENIZER("stop a stop b", add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids).count("stop") == 2
    for least in range(len(ids) + 1):
        decoder = Decoder(TOKENIZER, ["stop"], least=least)
        text = "".join(decoder.feed(i) for i in ids) + decoder.rest()
        assert text == "" if least == 0 else text.startswith("s"), least
    assert text == TOKENIZER.decode(ids) and decoder.stopped is None


def test_without_a_tokenizer_there_is_no_text():
    decoder = Decoder(None)
    assert decoder.feed(3) == "" and decoder.rest() == "" and decoder.tokens == [3]


def test_which_stop_string_it_was():
    decoder = Decoder(TOKENIZER, ["zz", "lo w", "o"])
    for token in TOKENIZER("hello world", add_special_tokens=False)["input_ids"]:
        decoder.feed(token)
    assert decoder.rest() == "" and decoder.stopped in ("o", "lo w")
