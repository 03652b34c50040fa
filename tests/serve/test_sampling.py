"""What a row asks for is what it gets: against the rules written out, and by counting draws."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from commonweight.serve import Request
from commonweight.serve.sampling import Row, adjusted, choose, draw, narrowed, uniform

SCORES = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5])


def row(tokens: list[int] | None = None, prompt: list[int] | None = None, seed: int = 0, **asked: object) -> Row:
    return Row(Request([0], **asked), seed, prompt or [], tokens or [])  # type: ignore[arg-type]


def test_temperature_zero_is_the_likeliest():
    assert choose(SCORES[None], [row(temperature=0)])[0].token == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_said_of_their_row_alone(bad: float):
    scores = SCORES.repeat(3, 1)
    scores[1, 3] = bad
    found = choose(scores, [row(temperature=0)] * 3)
    assert [f.bad for f in found] == [False, True, False]


def test_top_k_top_p_and_min_p():
    p = torch.softmax(SCORES, 0)
    keeps = lambda **asked: (narrowed(SCORES, Request([0], **asked)) > 0).tolist()  # noqa: E731
    assert keeps(top_k=2) == [False, True, True, False, False]
    assert keeps(top_p=float(p[1]) - 0.01) == [False, True, False, False, False]
    assert keeps(top_p=float(p[1]) + 0.01) == [False, True, True, False, False]
    assert keeps(min_p=float(p[2] / p[1]) - 0.01) == [False, True, True, False, False]
    assert keeps() == [True] * 5


def test_the_nucleus_of_a_flat_distribution_reaches_beyond_the_first_thousand():
    kept = (narrowed(torch.arange(5000) * -1e-4, Request([0], top_p=0.5)) > 0).sum()
    p = torch.softmax(torch.arange(5000) * -1e-4, 0).double().cumsum(0)
    assert abs(int(kept) - int((p < 0.5).sum()) - 1) <= 1 and kept > 1024


def test_penalties_and_bias():
    r = row([1, 1, 2], [0, 3], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={4: 7})
    want = [1.0 / 2, 3.0 / 2 - 0.5 - 0.5, 2.0 / 2 - 0.5 - 0.25, -1.0 * 2, 7.5]
    assert adjusted(SCORES, r).tolist() == pytest.approx(want)
    assert SCORES[1] == 3.0  # what other rows read is left alone


def test_a_grammar_decides_even_at_temperature_zero():
    r = Row(Request([0], temperature=0), 0, [], [], torch.tensor([True, False, False, True, False]))
    assert choose(SCORES[None], [r])[0].token == 0


def test_draws_follow_the_probabilities():
    n, p = 20_000, torch.softmax(SCORES, 0)
    counts = Counter(draw(p, uniform(seed, 3)) for seed in range(n))
    for token, share in enumerate(p.tolist()):
        spread = math.sqrt(share * (1 - share) * n)
        assert abs(counts[token] - share * n) < 5 * spread


def test_a_draw_never_takes_what_is_left_out():
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    assert {draw(p, u) for u in (0.0, 0.25, 0.5, 0.999999999)} == {1, 3}


def test_log_probabilities_are_the_models_own():
    found = choose(SCORES[None], [row(temperature=0.1, logprobs=2, seed=3, logit_bias={3: 50})])[0]
    logs = torch.log_softmax(SCORES, 0)
    assert found.token == 3 and found.logprob is not None
    assert found.logprob.logprob == pytest.approx(float(logs[3]))
    assert [t for t, _ in found.logprob.top] == [1, 2]


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 1e-300},
        {"temperature": 1e-40},
        {"temperature": 2e-5},
        {"temperature": 1, "repetition_penalty": 1e-42},
        {"temperature": 2e-5, "logit_bias": {4: 100}},
    ],
)
def test_scores_that_grow_without_end_are_still_numbers(more):
    scores = torch.tensor([[0.5, -1.0, 2.0, 1e36, 3e36, 0.0]])
    row = Row(Request(prompt=[1, 4], **more), 7, [1, 4], [])
    (got,) = choose(scores, [row])
    assert got.token == 4
