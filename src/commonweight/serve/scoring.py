"""How likely a model finds a text that is there already: what `echo` with log probabilities asks for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from ..core import CommonweightError
from ..host import Host
from ..host.route import Route
from .blend import several
from .device import entry
from .edition import Edition
from .request import Logprob

MOST = 512 << 20  # bytes of the scores of one text
_ONE = threading.Lock()  # at a time, for their memory


@torch.no_grad()
def score(host: Host, edition: Edition | None, tokens: Sequence[int], top: int) -> list[Logprob]:
    """Of each token but the first its log probability after those before it, and of the `top` likeliest ones there.
    By the tenant as it is now, in a pass of its own beside the running batch.

    Memory: len(tokens) times the vocabulary, twice.
    Raises: CommonweightError for a text that is too long for that, and for a sum of tenants or a multiple of one;
    FloatingPointError where the scores are no finite numbers.
    """
    model: Any = host.model
    vocabulary = model.get_input_embeddings().num_embeddings
    if (longest := MOST // (4 * vocabulary)) < len(tokens):
        raise CommonweightError(f"prompt has {len(tokens)} tokens; log probabilities are given of {longest} at most")
    if edition is not None and several(edition.name):
        raise CommonweightError(
            f"prompt: log probabilities of a prompt are given by one tenant as it is, not by {edition.name}"
        )
    first = None if edition is None else edition.tenants[0]
    ids = torch.tensor([list(tokens)], device=entry(model))
    route = None if first is None else Route(single=first)
    with _ONE, host.base.current.within(route):
        logs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), -1)
        mine = logs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        best = logs.topk(min(top, vocabulary)) if top else None
        finite = bool(logs.max(-1).values.isfinite().all())
    if not finite:
        whose = "the model" if edition is None else f"tenant {edition.name!r}"
        raise FloatingPointError(f"{whose} gave scores that are no finite numbers")
    pairs = [()] * len(mine) if best is None else [
        tuple(zip(i, v)) for i, v in zip(best.indices.tolist(), best.values.tolist())
    ]  # fmt: skip
    return [Logprob(t, p, found) for t, p, found in zip(tokens[1:], mine, pairs)]
