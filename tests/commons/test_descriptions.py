"""Tenants found by a text."""

import pytest
import torch

from commonweight import CommonweightError
from commonweight.commons import Commons, describe, encoder, find
from commonweight.commons.descriptions import FILE, read
from tests.adapt import tiny
from tests.cli.test_cli import call
from tests.commons.small import tenant

TEXTS = {"law": ["court judge", "court appeal"], "food": ["bread soup", "soup salt"], "sport": ["ball goal"]}
WORDS = sorted({w for some in TEXTS.values() for t in some for w in t.split()})


def encode(texts):
    counts = torch.tensor([[float(t.split().count(w)) for w in WORDS] for t in texts])
    return torch.nn.functional.normalize(counts, dim=-1)


@pytest.fixture
def store(tmp_path):
    out = Commons(tmp_path / "s")
    for i, name in enumerate(TEXTS):
        out.publish_file(tenant(tmp_path / f"{name}.safetensors", i))
    return out


def test_the_likest_is_first(store):
    assert read(store) is None
    described = describe(store, TEXTS, encode, "words")
    assert described.names == ("food", "law", "sport") and described.vectors.dtype is torch.float16
    (vector,) = encode(["the soup needs bread"])
    found = find(described, vector, 2)
    assert [f.name for f in found] == ["food", "law"] and found[0].score > 0.8 > found[1].score + 0.5
    wanted = encode(TEXTS["law"]).mean(0)
    torch.testing.assert_close(described.vectors[1].float(), wanted / wanted.norm(), rtol=1e-3, atol=1e-3)


def test_one_after_another(store):
    describe(store, {"law": ["ball"]}, encode, "words")
    describe(store, {"food": ["soup"]}, encode, "words")
    describe(store, {"law": ["court"]}, encode, "words")
    got = read(store)
    assert got is not None and got.names == ("food", "law")
    assert find(got, encode(["court"])[0], 1)[0] == ("law", 1.0)
    store.remove("law")
    assert [f.name for f in find(got, encode(["court"])[0], 5, store.newest())] == ["food"]
    assert describe(store, {"sport": ["ball"]}, encode, "words").names == ("food", "sport")
    assert store.verify() == []


def test_what_does_not_go(store):
    with pytest.raises(CommonweightError, match="no text that describes it"):
        describe(store, {"law": []}, encode, "words")
    with pytest.raises(CommonweightError, match="tenant 'laws'"):
        describe(store, {"laws": ["court"]}, encode, "words")
    described = describe(store, {"law": ["court"]}, encode, "words")
    with pytest.raises(CommonweightError, match=r"described by words, not other; take that one, or delete"):
        describe(store, {"food": ["soup"]}, encode, "other")
    with pytest.raises(CommonweightError, match="a text's vector has 2 numbers"):
        find(described, torch.ones(2))
    (store.folder / FILE).write_bytes(b"damaged")
    with pytest.raises(CommonweightError, match="not a whole file of descriptions"):
        read(store)


def test_an_encoder_reads_each_text_alone(bert):
    encode = encoder(str(bert))
    texts = ["w1 w2", "w3 w4 w5 w6 w7", "w8"]
    together = encode(texts)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for t, v in zip(texts, together):
        torch.testing.assert_close(encode([t])[0], v, rtol=1e-4, atol=1e-5)
    with pytest.raises(CommonweightError, match="--encoder nowhere: not opened"):
        encoder("nowhere")


def test_the_command(store, bert, tmp_path, capsys):
    rows = {n: tiny.jsonl(tmp_path / f"{n}.jsonl", [{"text": f"{w} {w}"}]) for n, w in (("law", "w1"), ("food", "w9"))}
    code, _, told = call(capsys, "store", "find", store.folder, "w1")
    assert code == 2 and "no tenant is described" in told and "TENANT ROWS --encoder ENCODER" in told
    code, _, told = call(capsys, "store", "describe", store.folder, "law", rows["law"])
    assert code == 2 and "no tenant is described yet, so that the encoder is not known" in told
    code, _, told = call(capsys, "store", "describe", store.folder, "nobody", rows["law"], "--encoder", "nowhere")
    assert code == 2 and "unknown tenant 'nobody'" in told
    code, _, told = call(capsys, "store", "find", store.folder, " ")
    assert code == 2 and "the text is empty" in told
    for n, file in rows.items():
        named = ("--encoder", bert) if n == "law" else ()  # from then on it is known
        code, said, _ = call(capsys, "store", "describe", store.folder, n, file, *named)
        assert code == 0 and f"{n}: described by 1 row" in said
    code, said, _ = call(capsys, "store", "find", store.folder, "w9 w9", "-n", "1")
    assert code == 0 and said.split() == ["1.0000", "food"]
    assert '"name": "food"' in call(capsys, "store", "find", store.folder, "w9 w9", "--json")[1]
    bad = tiny.jsonl(tmp_path / "bad.jsonl", [{"line": "w1"}])
    code, _, told = call(capsys, "store", "describe", store.folder, "law", bad, "--encoder", bert)
    assert code == 2 and "row 1 has no text in 'text'" in told
