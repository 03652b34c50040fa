"""Choosing the next tokens of a step, each row as its own request asks; pure functions of scores and requests.

Row by row and in a fixed order, so that what a request gets does not depend on who else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .request import Logprob, Request

_COLD = 1e-5  # temperatures below draw the likeliest token, as with vLLM; their quotients would be no numbers
_FIRST = 1024  # of the likeliest tokens that are looked at before all of them are sorted


@dataclass
class Row:
    """A request at one position. prompt: its tokens; tokens: those of its answer so far; allowed: True where a grammar
    lets a token be, or None. barred: tokens that may not come yet."""

    request: Request
    seed: int
    prompt: Sequence[int]
    tokens: Sequence[int]
    allowed: Tensor | None = None
    barred: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chosen:
    """What a row got; bad: its scores are no numbers."""

    token: int
    logprob: Logprob | None = None
    bad: bool = False


def choose(scores: Tensor, rows: Sequence[Row]) -> list[Chosen]:
    """scores (n, V) float32, of the model itself -> one token a row."""
    best, at = scores.max(1)
    best, likeliest = best.tolist(), at.tolist()
    out = []
    for i, row in enumerate(rows):
        if not np.isfinite(best[i]):  # a NaN is the maximum of its row
            out.append(Chosen(0, bad=True))
            continue
        token = likeliest[i] if greedy(row) else _choose(scores[i], row)
        out.append(Chosen(token, _logprob(scores[i], token, row.request.logprobs)))
    return out


def greedy(row: Row) -> bool:
    """Whether the likeliest token of the model's own scores is what it asks for."""
    r = row.request
    plain = r.repetition_penalty == 1 and not (r.presence_penalty or r.frequency_penalty or r.logit_bias)
    return r.temperature == 0 and plain and row.allowed is None and not row.barred


def _choose(scores: Tensor, row: Row) -> int:
    r = row.request
    scores = adjusted(scores, row)
    if r.temperature < _COLD:
        return int(scores.argmax())
    if not bool((scores.max() / r.temperature).isfinite()):  # a small penalty, or a small temperature
        scores = scores.clamp(max=torch.finfo(scores.dtype).max / 2)
        scores = scores - scores.max()
    return draw(narrowed(scores / r.temperature, r), uniform(row.seed, len(row.tokens)))


def adjusted(scores: Tensor, row: Row) -> Tensor:
    """Penalties, bias, grammar and what is barred. As in the OpenAI and vLLM interfaces: repetition looks at
    prompt and answer, presence and frequency at the answer alone."""
    r = row.request
    plain = r.repetition_penalty == 1 and not (r.presence_penalty or r.frequency_penalty)
    if plain and not r.logit_bias and row.allowed is None and not row.barred:
        return scores
    scores = scores.clone()
    if r.repetition_penalty != 1 and (seen := sorted({*row.prompt, *row.tokens})):
        at = torch.tensor(seen, device=scores.device)
        s = scores[at]
        scores[at] = torch.where(s > 0, s / r.repetition_penalty, s * r.repetition_penalty)
    if (r.presence_penalty or r.frequency_penalty) and row.tokens:
        counts = Counter(row.tokens)
        at = torch.tensor(list(counts), device=scores.device)
        times = torch.tensor(list(counts.values()), device=scores.device, dtype=scores.dtype)
        scores[at] -= r.frequency_penalty * times + r.presence_penalty
    for token, by in r.logit_bias.items():
        if token < len(scores):
            scores[token] += by
    if row.allowed is not None:
        some = len(row.allowed)  # a head may be wider than the vocabulary
        scores[:some].masked_fill_(~row.allowed[: len(scores)].to(scores.device), float("-inf"))
        scores[some:] = float("-inf")
    if barred := [t for t in row.barred if t < len(scores)]:
        scores[barred] = float("-inf")
    return scores


def narrowed(scores: Tensor, request: Request) -> Tensor:
    """Scores (V,) after temperature -> probabilities (V,) of what may be drawn, not summing to one."""
    if request.top_k and request.top_k < len(scores):
        least = scores.topk(request.top_k).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    p = torch.softmax(scores, 0)
    if request.top_p < 1:
        p = p.masked_fill(p < _nucleus(p, request.top_p), 0)
    if request.min_p:
        p = p.masked_fill(p < request.min_p * p.max(), 0)
    return p


def _nucleus(p: Tensor, mass: float) -> float:
    """The smallest probability that stays: of the likeliest tokens as many as reach the mass, at least one."""
    for k in (min(_FIRST, len(p)), len(p)):
        top = p.topk(k).values
        sums = top.cumsum(0)
        if float(sums[-1]) >= mass or k == len(p):
            at = int((sums < mass).sum())
            return float(top[min(at, k - 1)])
    raise AssertionError


def draw(p: Tensor, u: float) -> int:
    """The token whose share of the sum holds u in [0, 1); in the order of ids, so that a last bit moves little."""
    sums = p.double().cumsum(0)
    at = int(torch.searchsorted(sums, sums[-1] * u, right=True))
    return min(at, int(p.nonzero()[-1]))


def uniform(seed: int, position: int) -> float:
    """In [0, 1): by (seed, position) alone, Philox of NumPy."""
    raw = np.random.Philox(key=seed % (1 << 64), counter=position).random_raw(1)
    return float(int(raw[0]) >> 11) * 2.0**-53


def _logprob(scores: Tensor, token: int, top: int | None) -> Logprob | None:
    if top is None:
        return None
    logs = torch.log_softmax(scores, 0)
    best = logs.topk(min(top, len(logs))) if top else None
    pairs = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist()))
    return Logprob(token, float(logs[token]), pairs)
