"""Every method on causal models as transformers builds them: mixtures, states, convolutions, windows.

One test a kind, of a minute each: `pytest -m slow tests/laws/test_kinds.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import commonweight as cw
from commonweight.methods import available
from tests.host.test_sweep import KINDS, made
from tests.laws.subjects import small, stir
from tests.mixtures import MIXTURES, minimax, mixture

NO_GRADIENT = {"rwkv"}  # by itself: in eval mode transformers writes over its state
WIDE = {"aligner": {"first": 0}, "road": {"group_size": 8}}  # what two layers of width 32 take


def causal(kind: str) -> Any:
    return made(kind) if kind in KINDS else mixture(kind)[0]


def logits(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return model(input_ids=ids, **({} if mask is None else {"attention_mask": mask})).logits


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / (1 + b.abs().max()))


def sides(ids: Tensor) -> Iterator[tuple[str, Tensor, Tensor, slice]]:
    more, ones = torch.zeros(len(ids), 3, dtype=ids.dtype), torch.ones_like(ids)
    yield "left", torch.cat([more, ids], 1), torch.cat([more, ones], 1), slice(3, None)
    yield "right", torch.cat([ids, more], 1), torch.cat([ones, more], 1), slice(0, ids.shape[1])


def faults(host: Any, ids: Tensor) -> Iterator[str]:
    """What is wrong of tenant "t": several rows, padding, a mixed batch, generation, gradients. What is refused is
    not wrong."""
    model, n = host.model, len(ids)
    mixed = ["t", None] * (n // 2)
    with torch.no_grad():
        base = logits(model, ids)
        with host.route("t"):
            alone = torch.cat([logits(model, row[None]) for row in ids])
            if (far := off(logits(model, ids), alone)) > 1e-4:
                yield f"several rows {far:.0e}"
        every_other = torch.stack([(alone, base)[i % 2][i] for i in range(n)])
        for side, long, mask, own in sides(ids):
            if off(logits(model, long, mask)[:, own], base) > 1e-4:
                continue  # the model's own padding is seen
            for route, wanted in (("t", alone), (mixed, every_other)):
                try:
                    with host.route(route):
                        found = logits(model, long, mask)[:, own]
                except cw.CommonweightError:
                    continue
                if (far := off(found, wanted)) > 1e-4:
                    yield f"padded on the {side}, {'mixed' if route is mixed else 'alone'} {far:.0e}"
        try:
            with host.route("t"):
                found = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False
                )
                for _ in range(3 if model.can_generate() else 0):
                    scores = logits(model, ids)[:, -1]
                    scores[:, model.generation_config.eos_token_id or 0] = -torch.inf
                    ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
            if not torch.equal(found, ids):
                yield "generates otherwise with a cache"
        except cw.CommonweightError:
            pass
    ids, mine = ids[:, : alone.shape[1]], [p for p in host["t"].parameters() if p.requires_grad]
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(5))

    def gradients(rows: slice) -> list[Tensor | None]:
        with host.route("t"):
            loss = (logits(model, ids[rows]) * weights[rows]).sum()
        return [*torch.autograd.grad(loss, mine, allow_unused=True)]

    try:
        together, each = gradients(slice(None)), [gradients(slice(i, i + 1)) for i in range(n)]
    except cw.CommonweightError:
        return
    for whole, *parts in zip(together, *each, strict=True):
        there = [p for p in parts if p is not None]
        if there and (whole is None or off(whole, torch.stack(there).sum(0)) > 1e-3):
            yield "gradients"
            return


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted({*KINDS, *MIXTURES, minimax.__name__} - NO_GRADIENT))
def test_every_method_on_a_kind_of_model(kind):
    ids = torch.randint(3, 60, (4, 6), generator=torch.Generator().manual_seed(1))
    wrong, ran = {}, 0
    for method in available():
        host = cw.Host(causal(kind))
        options = {**small(method), **WIDE.get(method, {})}
        try:
            try:
                host.add("t", method, **options)
            except cw.CommonweightError as e:
                if "rows=" not in str(e):
                    raise
                host.add("t", method, rows=[{"input_ids": ids, "labels": ids}], **options)
        except cw.CommonweightError:
            continue  # said by name: it reads nothing here, or not so
        if not any(p.requires_grad for p in host["t"].parameters()):
            continue
        stir(host["t"], std=0.05)
        ran += 1
        if found := [*faults(host, ids)]:
            wrong[method] = found
        host.close()
    assert not wrong
    assert ran > 60
