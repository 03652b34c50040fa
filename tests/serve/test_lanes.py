"""Who sits where, and that each reads what is its own: ranks, commons, many requests of one tenant, and who leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import commonweight as cw
from commonweight.serve import Engine
from commonweight.serve.bank import Bank, together
from commonweight.serve.frozen import frozen
from commonweight.serve.pooled import Commons
from commonweight.serve.readers import Lead, Step

from .served import add, ask, make, right, stir


def engine_of(host: cw.Host, **more: object) -> Engine:
    return Engine(host, **{"max_requests": 8, "max_batch_tokens": 32, "page_size": 8, **more})  # type: ignore[arg-type]


def banks(engine: Engine, kind: type) -> list:
    return [b for b in engine._router.lanes.banks.values() if isinstance(b, kind)]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mos", {}),
        ("mos", {"core": "scale"}),
        ("mos", {"core": "matrix", "rank": 4}),
        ("mos", {"rank": 16, "shards": 2}),  # more vectors than there are public ones: some are read twice
        ("lora-xs", {"rank": 4, "factors": "common"}),
    ],
)
def test_tenants_of_one_common_share_what_is_read(method: str, options: dict):
    host = cw.Host(make())
    for i in range(5):
        add(host, f"t{i}", method, common="c", seed=i, **options)
    asked = [ask(t, i) for i, t in enumerate([None, "t0", "t1", "t2", "t3", "t4", "t2", "t2"])]
    with engine_of(host) as engine:
        right(host, asked, engine.generate(asked))
        assert len(banks(engine, Commons)) == 1 and not banks(engine, Bank)


def test_a_common_that_changes_is_read_as_it_was_asked():
    host = cw.Host(make())
    for i in range(2):
        add(host, f"t{i}", "mos", common="c", seed=i)
    asked = [ask(f"t{i}", i) for i in range(2)]
    with engine_of(host) as engine:
        before = engine.generate(asked)
        right(host, asked, before)
        stir(host, "t1")
        after = engine.generate(asked)
        right(host, asked, after)
        assert [a.tokens for a in before] != [a.tokens for a in after]


def test_more_commons_than_have_a_bank_are_served_alike():
    host = cw.Host(make())
    for i in range(6):
        add(host, f"t{i}", "mos", common=f"c{i}", seed=i)
    asked = [ask(f"t{i}", i) for i in range(6)]
    with engine_of(host) as engine:
        right(host, asked, engine.generate(asked))
        assert len(banks(engine, Commons)) == 4 and len(banks(engine, Bank)) == 1


def test_half_precision_reads_commons_too():
    host = cw.Host(make().bfloat16())
    for i in range(3):
        add(host, f"t{i}", "mos", common="c", seed=i, core="matrix")
    asked = [ask(f"t{i}", i, logprobs=0) for i in range(3)]
    with engine_of(host) as engine:
        for request, answer in zip(asked, engine.generate(asked), strict=True):
            ids = torch.tensor([[*request.prompt, *answer.tokens[:-1]]])  # type: ignore[misc]
            with torch.no_grad(), host.route(request.tenant):
                logs = torch.log_softmax(host.model(input_ids=ids, use_cache=False).logits[0].float(), -1)
            want = logs[len(request.prompt) - 1 :].gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
            got = torch.tensor([x.logprob for x in answer.logprobs or ()])
            assert torch.allclose(got, want, atol=0.2)


def test_a_small_rank_does_not_pay_for_a_large_one():
    host = cw.Host(make())
    for i, rank in enumerate((1, 4, 8, 9, 32)):
        add(host, f"t{i}", "lora", rank=rank)
    add(host, "scales", "ia3")
    asked = [ask(t, i) for i, t in enumerate(["t0", "t4", "t1", "scales", "t3", "t2", None, "t4"])]
    with engine_of(host) as engine:
        right(host, asked, engine.generate(asked))
        assert sorted(b.rank for b in banks(engine, Bank)) == [0, 8, 16, 32]


def test_layers_with_one_input_are_one_product():
    host = cw.Host(make())
    add(host, "a")
    with engine_of(host) as engine:
        right(host, [ask("a")], engine.generate([ask("a")]))
        (bank,) = banks(engine, Bank)
        assert sorted(len(g.members) for g in bank._groups.values()) == [1, 1, 1, 1, 2, 2, 3, 3]


def test_many_requests_of_one_tenant_and_few_of_others():
    host = cw.Host(make())
    for i in range(6):
        add(host, f"t{i}", rank=2)
    asked = [ask(t, i) for i, t in enumerate(["t0"] * 6 + ["t1", "t2", None, "t3", "t4", "t4", "t5", "t0"])]
    with engine_of(host, max_requests=16) as engine:
        right(host, asked, engine.generate(asked))


def test_seats_are_close_whoever_comes_and_goes():
    host = cw.Host(make())
    for i in range(12):
        add(host, f"t{i}", rank=2)
    with engine_of(host, max_requests=4) as engine:
        for first in (0, 5, 8, 3):
            asked = [ask(f"t{i % 12}", i, max_new_tokens=2 + i % 4) for i in range(first, first + 7)]
            right(host, asked, engine.generate(asked))
            (bank,) = banks(engine, Bank)
            assert bank.size <= 8


def test_a_step_is_divided_so_that_little_is_padded():
    bank, other = object(), object()
    readers = [(None, 0, 1), *((bank, s, 1) for s in (0, 1, 2)), *((other, s, 1) for s in (0, 0, 0, 0, 0, 1, 2, 3))]
    step = Step([*readers, (bank, 1, 7)], torch.device("cpu"))
    assert step.length == len(readers) + 7
    first, second = step.parts
    assert [(d.first, d.end, d.places) for d in first.leads] == [(1, 4, None)] and first.spans == [(12, 19, 1)]
    assert [(d.first, d.end, d.low, d.high) for d in second.leads] == [(9, 12, 1, 4)] and second.spans == [(4, 9, 0)]


def test_tokens_are_laid_beside_their_seats():
    x = torch.arange(8.0).view(4, 2)
    lead = Lead(0, [3, 1, 1, 4], torch.device("cpu"))
    beside = lead.beside(x)
    assert beside.shape == (4, 2, 2) and torch.equal(lead.back(beside), x)
    assert torch.equal(beside[0], x[1:3]) and torch.equal(beside[2, 0], x[0]) and torch.equal(beside[3, 0], x[3])


def test_layers_are_together_that_see_the_very_same_input():
    x, y = torch.zeros(1), torch.zeros(1)
    seen = [("q", x), ("k", x), ("o", y), ("up", x)]
    assert together(seen) == {"q": "q", "k": "q", "o": "o", "up": "up"}


def test_what_left_is_kept_nowhere(tmp_path: Path):
    host = cw.Host(make())
    for i in range(2):
        add(host, f"t{i}", "mos", common="c", seed=i)
    with engine_of(host) as engine:
        engine.generate([ask("t0"), ask("t1")])
        for name in ("t0", "t1"):
            assert engine.unload(name)
        engine.generate([ask(None)])
        engine.generate([ask(None)])
        assert not engine._router.lanes.known() and not engine._router.lanes.banks


def test_factors_are_kept_as_a_bank_reads_them():
    host = cw.Host(make())
    add(host, "a")
    form = frozen(host["a"], host.base.modules)
    assert form and all(x.T.is_contiguous() for f in form.values() for x in (f.A, f.B) if x is not None)
