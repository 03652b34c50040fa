"""Rows of a mixed batch beside the same rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import commonweight as cw
from tests.models import answer

PAD = (2, 0, 0, 3)  # tokens of padding on the left of each row
Route = Sequence[str | None]


def are_alone(host: cw.Host, batch: dict[str, Tensor], route: Route) -> None:
    """One pass of a mixed batch, row by row."""
    with torch.no_grad():
        with host.route(route):
            mixed = answer(host.model, batch)
        for i, name in enumerate(route):
            with host.route(name):
                alone = answer(host.model, {k: v[i : i + 1] for k, v in batch.items()})
            torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def generate_alone(host: cw.Host, ids: Tensor, route: Route, *ways: dict[str, Any]) -> None:
    """What rows padded on the left generate together, in each way of asking, is what each generates by itself in the
    plain way; with as many beams, where it is a way with beams."""
    mask = torch.stack([(torch.arange(ids.shape[1]) >= n).long() for n in PAD])

    def new(who: Any, ids: Tensor, mask: Tensor, **how: Any) -> list[list[int]]:
        with host.route(who):
            out: Any = host.model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, **how
            )
        return out[:, -4:].tolist()

    for how in ({}, *ways):
        own = {k: v for k, v in how.items() if k == "num_beams"}
        each = [new(r, ids[i : i + 1, n:], mask[i : i + 1, n:], **own)[0] for i, (r, n) in enumerate(zip(route, PAD))]
        assert new(route, ids, mask, **how) == each, how
