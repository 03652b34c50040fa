"""A mixed batch of an encoder whose first row is padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import commonweight as cw


@torch.no_grad()
def rows_are_those_alone(host: cw.Host, ids: Tensor, readers: Sequence[str | None], there: int = 4) -> None:
    """Each row's states are its reader's alone on the row without padding. there: tokens of the first row."""
    mask = torch.ones_like(ids)
    mask[0, there:] = 0
    with host.route(list(readers)):
        mixed = host.model(input_ids=ids, attention_mask=mask).last_hidden_state
    for i, name in enumerate(readers):
        n = there if i == 0 else ids.shape[1]
        with host.route(name):
            alone = host.model(input_ids=ids[i : i + 1, :n]).last_hidden_state
        torch.testing.assert_close(mixed[i : i + 1, :n], alone, rtol=1e-4, atol=1e-5)
