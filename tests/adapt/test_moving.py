"""Trans-LoRA: which texts are written, which are taken, and that the other base learns the tenant's answers."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt import adapt, discriminator, moving, open_host, transfer
from commonweight.adapt.moving import HEAD, Writing, continued, reality, texts, whole
from tests.adapt import tiny

SEEDS = [r["text"] for r in tiny.rows(5, seed=3)]


@pytest.fixture(scope="module")
def judges(llama):
    """A host whose tenant takes texts with the word law for real ones."""
    host = open_host(llama, dtype="float32")
    some = [r for r in tiny.rows(60, seed=5) if r["label"] != "food"]
    real, written = ([r["text"] for r in some if (r["label"] == "law") == w] for w in (True, False))
    discriminator(host, "judge", real, written, epochs=6, lr=1e-2, batch_size=8, warmup=0.0)
    return host


def test_a_text_ends_where_the_next_begins():
    assert whole(f" one\ntwo \n{HEAD}three") == "one\ntwo" and whole(HEAD) == ""


def test_written_texts_come_once_and_again_with_the_seed(llama):
    host = open_host(llama, "lm", dtype="float32")
    how = Writing(rows=6, most=2, batch=4, length=4)
    got = [t for some in texts(host, SEEDS, how) for t in some]
    assert got and len(set(got)) == len(got) and not {*got} & {*SEEDS, ""}
    state = torch.get_rng_state()
    assert [t for some in texts(host, SEEDS, how) for t in some] == got
    assert torch.equal(state, torch.get_rng_state()), "the caller's generator stays"


def test_the_discriminator_says_how_real_a_text_is(judges):
    law, sport = ([r["text"] for r in tiny.rows(40, seed=9) if r["label"] == k] for k in ("law", "sport"))
    assert reality(judges, "judge", law).mean() > 0.8 > 0.2 > reality(judges, "judge", sport).mean()
    judges.add("other", "lora", labels=["a", "b"])
    with pytest.raises(cw.CommonweightError, match="wanted a tenant that `discriminator` made"):
        reality(judges, "other", law)
    judges.remove("other")


def test_the_other_base_learns_the_tenants_answers(llama, judges, tmp_path, monkeypatch):
    source, rows = open_host(llama, "lm", dtype="float32"), [r["text"] for r in tiny.rows(40)]
    answer = rows[0].split()[0]
    adapt(source, "t", [{"prompt": r, "completion": f" {answer}"} for r in rows], task="lm", epochs=3, lr=2e-2)
    torch.manual_seed(4)
    target = open_host(tiny.base(tmp_path / "other", "llama"), "lm", dtype="float32")
    for p in target.model.parameters():
        p.data.add_(0.01 * torch.randn_like(p))
    given = [[*dict.fromkeys(r["text"] for r in tiny.rows(40, seed=s))] for s in (20, 21)]
    monkeypatch.setattr(moving, "texts", lambda host, seeds, how: iter(given))
    how = {"rows": 18, "answer": 3, "frame": "{} w0"}
    made = transfer(
        source, "t", target, "moved", SEEDS, judges=judges, judge="judge", writing=how, epochs=12, lr=2e-2, batch_size=4
    )
    assert made.written == sum(map(len, given[: 1 if made.written < 41 else 2])) and 0 < len(made.rows) <= 18
    bodies = [r["prompt"].removesuffix(" w0") for r in made.rows]
    assert all(r["prompt"].endswith(" w0") for r in made.rows) and reality(judges, "judge", bodies).min() >= 0.5
    told = continued(source, "t", [r["prompt"] for r in made.rows], 3, do_sample=False)
    assert [r["completion"] for r in made.rows] == told
    new = [r["text"] + " w0" for r in tiny.rows(20, seed=30)]
    taught, learnt = (continued(h, n, new, 3, do_sample=False) for h, n in ((source, "t"), (target, "moved")))
    assert sum(a.split()[:1] == b.split()[:1] for a, b in zip(taught, learnt)) >= 15


def test_what_cannot_be_moved(llama, judges, monkeypatch):
    host = open_host(llama, "lm", dtype="float32")
    host.add("t", "lora", rank=2)
    judges.add("other", "lora", labels=["a", "b"])
    good = {
        "source": host, "tenant": "t", "target": host, "name": "u", "seeds": SEEDS, "judges": judges, "judge": "judge"
    }  # fmt: skip

    def refused(match, **wrong):
        with pytest.raises(cw.CommonweightError, match=match):
            transfer(**{**good, **wrong})

    with monkeypatch.context() as m:
        m.setattr(moving, "texts", lambda *_: pytest.fail("a text was written"))
        for seeds in ([], "one text", ["", "a"], [1]):
            refused("seeds: wanted a list of texts, none of them empty; got", seeds=seeds)
        refused("unknown tenant 'nope'", tenant="nope")
        refused("unknown tenant 'nope'", judge="nope")
        refused("'t' is taken", name="t")
        refused("wanted a tenant that `discriminator` made", judge="other")
        refused("target is a host of a Classifier, which writes no texts", target=judges)
        refused(r"frame='say' has no {} where a text stands", writing={"frame": "say"})
        refused("rowz", writing={"rowz": 3})
        refused("unknown method 'nope'", method="nope")
        refused("LoRA: rank is 0", options={"rank": 0})
        refused("Recipe: epochs is -1", epochs=-1)
    small = {"rows": 2, "most": 1, "length": 2, "batch": 2, "threshold": 1.0}
    refused("took none at threshold=1", writing=small)
    judges.remove("other")
    with pytest.raises(cw.CommonweightError, match="written: wanted a list of texts"):
        discriminator(judges, "new", ["a"], [])
