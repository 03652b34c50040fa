"""PEMA: its distribution written out, the fall of its share however a row is run, and its two stages."""

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from commonweight.core.schedule import Moment
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 4, "alpha": 4.0}
VARIANTS = [{"form": "stored"}, {"length": 3, "invocation": (5, 6)}]
INV = (5, 6)
FALLS = {**SMALL, "length": 3, "invocation": INV, "share": 0.6, "dropout": 0.5}


def texts() -> torch.Tensor:
    """Four rows of nine tokens whose answers begin at 5, at 8 (the last of two), never, at 4."""
    ids = torch.randint(7, 60, (4, 9), generator=torch.Generator().manual_seed(1))
    for row, at in ((0, 3), (1, 1), (1, 6), (3, 2)):
        ids[row, at : at + 2] = torch.tensor(INV)
    return ids


@torch.no_grad()
def said(host, readers, ids, **more):
    with host.route(readers):
        return host.model(input_ids=ids, **more).logits


def parts(host, ids, pools, scale):
    """(f, the base's scores, the second ones), by the model's own parts."""
    model, seen = host.model, []
    norm = model.model.norm if hasattr(model, "model") else model.transformer.ln_f
    handle = norm.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    base = said(host, None, ids)
    handle.remove()
    h = scale * seen[0] @ pools["lm_head.A"].T @ pools["lm_head.B"].T
    with torch.no_grad():
        return seen[0], base, model.lm_head(norm(h))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_formula(kind):
    host = cw.Host(make(kind)[0])
    tenant = stir(host.add("t", "pema", rank=4, alpha=2.0, share=0.7, dropout=0.0))
    pools = {n: p.detach() for n, p in tenant.pools.items()}
    f, base, second = parts(host, texts(), pools, 0.5)
    want = (0.3 * base.softmax(-1) + 0.7 * second.softmax(-1)).log()
    torch.testing.assert_close(said(host, "t", texts()), want)
    whole = stir(host.add("all", "pema", rank=4, share=1.0))
    assert said(host, "all", texts()).isfinite().all() and whole.count() == 3 * 4 * 32
    with host.listening() as heard, host.route("t"):  # training: the second one alone, and the reconstruction
        host.model.lm_head.train()  # the site alone: GPT-2 has a dropout of its own
        out = host.model(texts()).logits
        told = heard.loss(tenant)
    torch.testing.assert_close(out, second)
    R = pools["lm_head.R"]
    rebuilt = 0.5 * f @ pools["lm_head.A"].T @ R.T
    torch.testing.assert_close(told, 0.2 * F.mse_loss(rebuilt, f))
    g = torch.autograd.grad(out.square().sum(), tenant.pools["lm_head.B"])[0]
    B = pools["lm_head.B"].clone().requires_grad_()
    h = 0.5 * f @ pools["lm_head.A"].T @ B.T
    norm = host.model.model.norm if kind == "llama" else host.model.transformer.ln_f
    by_hand = torch.autograd.grad(host.model.lm_head(norm(h)).square().sum(), B)[0]
    torch.testing.assert_close(g, 0.8 * by_hand, rtol=1e-4, atol=1e-4)


def test_the_share_falls_with_each_token_of_an_answer():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "pema", **FALLS))
    _, base, second = parts(host, texts(), {n: p.detach() for n, p in tenant.pools.items()}, 1.0)
    got = said(host, "t", texts())
    for row, says in ((0, 4), (1, 7), (2, 99), (3, 3)):  # the token whose scores are of the answer's first
        for t in range(9):
            share = max(0.0, 0.6 * (1 - (t - says) / 3)) if t >= says else 0.0
            if not share:
                assert torch.equal(got[row, t], base[row, t])
                continue
            want = ((1 - share) * base[row, t].softmax(-1) + share * second[row, t].softmax(-1)).log()
            torch.testing.assert_close(got[row, t], want)


@torch.no_grad()
def test_a_row_is_that_row_alone_padded_cached_and_generated():
    host = cw.Host(make("llama")[0])
    for i, (name, options) in enumerate((("t", FALLS), ("u", FALLS), ("c", SMALL))):
        stir(host.add(name, "pema", seed=i, **options), i)
    stir(host.add("l", "lora", rank=2), 9)
    ids, mask = texts(), torch.ones(4, 9, dtype=torch.long)
    mask[0, :2] = mask[3, :1] = 0
    more = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    for readers in (["t", "u", "c", "l"], ["t", "t", "u", None], ["c", "c", "c", "c"]):
        got = said(host, readers, ids, **more)
        last = said(host, readers, ids, **more, logits_to_keep=2)
        torch.testing.assert_close(last, got[:, -2:])
        for i, name in enumerate(readers):
            keep = mask[i].bool()
            torch.testing.assert_close(got[i, keep], said(host, name, ids[i : i + 1, keep])[0], rtol=1e-4, atol=1e-5)
        with host.route(readers):
            first = host.model(ids[:, :6], use_cache=True)
            rest = host.model(ids[:, 6:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(rest, said(host, readers, ids)[:, 6:], rtol=1e-4, atol=1e-5)
        with host.route(readers):
            new = host.model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        for i, name in enumerate(readers):
            so_far = ids[i : i + 1]
            for _ in range(4):
                so_far = torch.cat([so_far, said(host, name, so_far)[:, -1:].argmax(-1)], 1)
            assert new[i].tolist() == so_far[0].tolist()


def test_stages_and_what_is_stored():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "pema", **SMALL, first=0.5))
    way = tenant.method.schedule(tenant.config, tenant.plan)
    pools = {n: p.detach().clone() for n, p in tenant.pools.items()}
    state, edit = way.begin(tenant.plan, pools, 8)
    assert edit.resting == {"lm_head.B"} and edit.values["lm_head.kappa"].item() == 1
    assert way.after(Moment(3, 8, pools, {}, {}), state)[1].values == {} and not way.settled(4, 8)
    _, edit = way.after(Moment(4, 8, pools, {}, {}), state)
    assert edit.resting == {"lm_head.R"} and edit.values["lm_head.kappa"].item() == pytest.approx(0.2)
    A = edit.values["lm_head.A"]
    assert not torch.equal(A, pools["lm_head.A"]) and A.std() == pytest.approx(1 / (3 * 32) ** 0.5, rel=0.2)
    assert not edit.moments["lm_head.A"].any() and way.settled(5, 8)
    before = said(host, "t", texts())
    host.compact("t")
    assert {*host["t"].pools} == {"lm_head.A", "lm_head.B"} and host["t"].count() == 2 * 4 * 32
    assert torch.equal(said(host, "t", texts()), before)


def test_no_gradient_goes_through_the_blocks():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "pema", **SMALL))
    host.model.train()
    seen = []
    host.model.model.layers[-1].register_forward_hook(lambda m, a, out: seen.append(out))
    with host.route("t"):
        host.model(texts()).logits.sum().backward()
    out = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert not out.requires_grad and tenant.pools["lm_head.B"].grad.abs().sum() > 0


def test_a_vocabulary_that_grows_changes_nothing():
    host = cw.Host(make("llama")[0])
    stir(host.add("t", "pema", **SMALL))
    host.add("l", "lora", rank=2)
    for readers in ("t", ["t", "l", None, "t"]):
        before = said(host, readers, texts()).softmax(-1)
        host.resize_vocabulary(before.shape[-1] + 3)
        after = said(host, readers, texts())
        torch.testing.assert_close(after[..., : before.shape[-1]].softmax(-1), before)
        assert after[..., -3:].isneginf().all()


def test_length_goes_with_an_invocation():
    with pytest.raises(cw.CommonweightError, match="give both, or neither"):
        cw.plan("pema", [cw.Site("n", 8, 1, "norm"), cw.Site("h", 20, 8)], length=4)


def test_wanted_sites():
    with pytest.raises(cw.CommonweightError, match="wanted the head that scores the vocabulary"):
        cw.plan("pema", [cw.Site("n", 8, 1, "norm"), cw.Site("h", 20, 16)])


def test_a_model_that_scores_no_vocabulary_is_told_what_is_read():
    with pytest.raises(
        cw.CommonweightError, match=r"pema reads sites .* the head that scores the vocabulary .* --task lm"
    ):
        cw.Host(make("bert")[0]).add("t", "pema")


def test_the_share_does_not_ask_for_the_answer():
    """The released decoding takes the length from the reference answer and stops mixing behind it, so that the same
    text has other scores under another reference; with a least share of 0, as its README has it, it divides by zero."""

    def official(reference, least=None, most=0.6, steps=6):
        shares, at = [], most
        for _ in range(min(steps, reference)):
            shares.append(at if least is None else at**2 / least + (least - 1) / least)
            at = max(0.0, at - most / reference)
        return shares + [0.0] * (steps - len(shares))

    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "pema", **FALLS))
    ids = texts()[:1]
    _, base, second = parts(host, ids, {n: p.detach() for n, p in tenant.pools.items()}, 1.0)
    got = said(host, "t", ids)[0, 4:].log_softmax(-1)
    answers = {}
    for reference in (3, 5):
        s = torch.tensor(official(reference)[:5])[:, None]
        answers[reference] = ((1 - s) * base[0, 4:].softmax(-1) + s * second[0, 4:].softmax(-1)).log()
    torch.testing.assert_close(got, answers[3])
    assert (answers[3] - answers[5]).abs().max() > 1e-3
    with pytest.raises(ZeroDivisionError):
        official(3, least=0)


def test_no_square_matrix_is_kept():
    """The released class allocates a Linear of d x d that nothing reads, and saves it: 2 r d here."""
    host = cw.Host(make("llama")[0])
    stir(host.add("t", "pema", **SMALL))
    held = sum(p.numel() for p in host.compact("t").pools.values())
    assert held == 2 * 4 * 32 < 2 * 4 * 32 + 32 * 32
