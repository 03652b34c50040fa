"""LoReFT against the paper's formula, its R made by an independent QR."""

from types import SimpleNamespace

import pytest
import torch

import commonweight as cw
from commonweight.bind.intervene import Edit, orthonormal_rows
from commonweight.host.current import NOWHERE
from tests.laws.subjects import stir
from tests.models import T, answer, make

SMALL = {"rank": 3}
VARIANTS = [{"layers": (0,)}, {"layers": (-1,), "direct": True, "prefix": 2}]


def rows_by_qr(raw):
    q, r = torch.linalg.qr(raw.double().T)
    return (q * torch.sign(torch.diagonal(r))).T.float()


def edited(h, RW, b, direct=False):
    """One position at a time."""
    out = torch.empty_like(h)
    R, W = (RW[0] if direct else rows_by_qr(RW[0])), RW[1]
    for i in range(h.shape[0]):
        for t in range(h.shape[1]):
            v = h[i, t]
            out[i, t] = v + R.T @ (W @ v + b if direct else W @ v + b - R @ v)
    return out


def run_with_hooks(model, batch, edits):
    """The model with plain hooks that edit the blocks' outputs."""
    handles = []
    for i, f in edits.items():
        block = model.encoder.layer[i]
        handles.append(
            block.register_forward_hook(lambda m, a, y, f=f: (f(y[0]), *y[1:]) if isinstance(y, tuple) else f(y))
        )
    with torch.no_grad():
        out = answer(model, batch)
    for h in handles:
        h.remove()
    return out


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("prefix", [0, 2, T + 3])
@pytest.mark.parametrize("layers", [(), (-1,)])
def test_formula(layers, prefix, direct):
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "loreft", rank=3, layers=layers, prefix=prefix, direct=direct), std=0.3)
    edits = {}
    for i in (1,) if layers else (0, 1):
        RW, b = (tenant.pools[f"encoder.layer.{i}.{k}"].detach() for k in ("RW", "b"))

        def edit(h, RW=RW, b=b):
            k = prefix or h.shape[1]
            return torch.cat([edited(h[:, :k], RW, b, direct), h[:, k:]], 1)

        edits[i] = edit
    assert len(tenant.plan.uses) == len(edits)
    with torch.no_grad(), host.route("t"):
        got = answer(model, batch)
    torch.testing.assert_close(got, run_with_hooks(model, batch, edits), rtol=1e-4, atol=1e-5)


def test_rows_are_orthonormal_and_those_of_qr():
    raw = torch.randn(4, 50, requires_grad=True)
    R = orthonormal_rows(raw)
    torch.testing.assert_close(R @ R.T, torch.eye(4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(R, rows_by_qr(raw.detach()), rtol=1e-4, atol=1e-5)
    assert torch.autograd.gradcheck(orthonormal_rows, torch.randn(2, 5, dtype=torch.double, requires_grad=True))


def test_a_prefix_is_the_first_tokens_that_are_no_padding():
    bind, RW, b = Edit(prefix=2), torch.randn(2, 3, 8), torch.randn(3)
    y = torch.randn(2, 5, 8)
    base = SimpleNamespace(place=torch.tensor([[0, 1, 2, 3, 4], [NOWHERE, 0, 1, 2, NOWHERE]])[..., None])
    out = bind.output(y, y, base, RW=RW, b=b)
    torch.testing.assert_close(out[:1, :2], edited(y[:1, :2], RW, b), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1:, 1:3], edited(y[1:, 1:3], RW, b), rtol=1e-4, atol=1e-5)
    assert torch.equal(out[0, 2:], y[0, 2:]) and torch.equal(out[1, [0, 3, 4]], y[1, [0, 3, 4]])


def test_half_precision_and_autocast_keep_the_rows_orthonormal():
    RW, b, y = torch.randn(2, 3, 64), torch.randn(3), torch.randn(2, 5, 64)
    want = edited(y.bfloat16().float(), RW, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = Edit().output(None, y.bfloat16(), None, RW=RW, b=b)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-2)


def test_count_is_the_papers():
    """R and W have r d each, b has r: r = 8 at every layer of LLaMA-7B is the paper's 0.031%."""
    sites = [cw.Site(f"layers.{i}", 4096, 4096, "block") for i in range(32)]
    plan = cw.plan("loreft", sites, rank=8)
    assert plan.count() == 32 * (2 * 8 * 4096 + 8)
    assert round(100 * plan.count() / 6_738_415_616, 3) == 0.031
    assert cw.plan("loreft", sites, rank=8, layers=(0, -1, 31)).count() == 2 * (2 * 8 * 4096 + 8)


def test_packed_tokens_have_no_positions():
    model, batch = make("bert")
    host = cw.Host(model)
    stir(host.add("t", "loreft", prefix=2))
    stir(host.add("all", "loreft"))
    ids = {k: v[:1] for k, v in batch.items()}
    number = {n: host[n].number for n in ("t", "all")}
    with (
        host.route(torch.tensor([number["t"]] * 3 + [-1] * 3)),
        pytest.raises(
            cw.CommonweightError, match=r"tenant 't' \(loreft\) edits positions of a sequence; route it per row"
        ),
    ):
        answer(model, ids)
    with host.route(torch.tensor([number["all"]] * T)):
        packed = answer(model, ids)
    with host.route("all"):
        torch.testing.assert_close(packed, answer(model, ids), rtol=1e-5, atol=1e-5)
    plans = {n: host[n].plan.uses[0].bind for n in number}
    assert not plans["t"].tokenwise and plans["all"].tokenwise


@torch.no_grad()
def test_steps_with_a_cache_and_padding_on_the_left():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "loreft", rank=3, prefix=2), std=0.3)
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    mask[0, :2] = 0
    for route in ("t", ["t", None, "t", "t"]):
        with host.route(route):
            whole = model(input_ids=ids, attention_mask=mask).logits
            alone = [model(input_ids=ids[:, :3], attention_mask=mask[:, :3], use_cache=True)]
            for i in range(3, 6):
                more = {"past_key_values": alone[-1].past_key_values, "attention_mask": mask[:, : i + 1]}
                alone.append(model(input_ids=ids[:, i : i + 1], **more))
        torch.testing.assert_close(torch.cat([a.logits for a in alone], 1), whole, rtol=1e-4, atol=1e-5)
        with host.route("t"):
            torch.testing.assert_close(model(input_ids=ids[:1, 2:]).logits[0], whole[0, 2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (3,)}, "loreft: layers names block 3, but there are 2; choose from 0 to 1"),
        ({"layers": (0, "1")}, r"LoReFT: layers is \(0, '1'\); wanted tuple\[int, \.\.\.\]"),
        ({"rank": 9}, "loreft: layers.0: rank=9 is more than the width 8; lower the rank"),
    ],
)
def test_errors(options, message):
    with pytest.raises(cw.CommonweightError, match=message):
        cw.plan("loreft", [cw.Site(f"layers.{i}", 8, 8, "block") for i in range(2)], **options)
