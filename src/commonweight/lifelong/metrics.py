"""What a stream of tasks is judged by, from the matrix of scores: pure functions.

scores[t][i] is the score on task i after stage t, None where nobody measured it; T tasks, T stages. more: whether more
of the score is better. All figures are of the last stage, and larger where the learner is better, but for forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence

Scores = Sequence[Sequence[float | None]]


def average(scores: Scores) -> float | None:
    """A_T = 1/T sum_i a_{T,i}. Source: arXiv 1706.08840, eq. (2)."""
    last = scores[-1]
    return _mean([last[i] for i in range(len(scores))])


def incremental(scores: Scores) -> float | None:
    """The mean over stages t of the mean score on the tasks up to t. Source: iCaRL, arXiv 1611.07725, section 4."""
    return _mean([_mean([row[i] for i in range(t + 1)]) for t, row in enumerate(scores)])


def forgetting(scores: Scores, more: bool = True) -> float | None:
    """F_T = 1/(T-1) sum_{i<T} (max_{i<=t<T} a_{t,i} - a_{T,i}); of what is better when it is less, the mirror image.

    Source: arXiv 1801.10112, eq. (3), whose a_{t,i} is of tasks that were learned, i <= t. None for one task.
    """
    best, sign = (max, 1.0) if more else (min, -1.0)
    out = []
    for i in range(len(scores) - 1):
        seen = [row[i] for row in scores[i:-1] if row[i] is not None]
        last = scores[-1][i]
        out.append(None if not seen or last is None else sign * (best(seen) - last))  # type: ignore[type-var]
    return _mean(out)


def backward(scores: Scores, more: bool = True) -> float | None:
    """BWT = 1/(T-1) sum_{i<T} (a_{T,i} - a_{i,i}). Source: GEM, arXiv 1706.08840, eq. (3)."""
    sign = 1.0 if more else -1.0
    return _mean([_minus(scores[-1][i], scores[i][i], sign) for i in range(len(scores) - 1)])


def forward(scores: Scores, untrained: Sequence[float | None], more: bool = True) -> float | None:
    """FWT = 1/(T-1) sum_{i>1} (a_{i-1,i} - b_i), b_i the score before anything was trained.

    Source: GEM, arXiv 1706.08840, eq. (4).
    """
    sign = 1.0 if more else -1.0
    return _mean([_minus(scores[i - 1][i], untrained[i], sign) for i in range(1, len(scores))])


def learning(scores: Scores, alone: Sequence[float | None], more: bool = True) -> float | None:
    """Intransigence, I = mean_i (a*_i - a_{i,i}): what learning in a row costs a task when it is learned, against a
    model that was trained on it alone. Source: arXiv 1801.10112, eq. (6), whose reference is joint training."""
    sign = 1.0 if more else -1.0
    return _mean([_minus(alone[i], scores[i][i], sign) for i in range(len(scores))])


def summary(scores: Scores, untrained: Sequence[float | None], more: bool = True) -> dict[str, float | None]:
    """All of them that can be told from one stream, by name."""
    return {
        "average": average(scores), "incremental": incremental(scores), "forgetting": forgetting(scores, more),
        "backward_transfer": backward(scores, more), "forward_transfer": forward(scores, untrained, more),
    }  # fmt: skip


def _minus(a: float | None, b: float | None, sign: float) -> float | None:
    return None if a is None or b is None else sign * (a - b)


def _mean(values: Sequence[float | None]) -> float | None:
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found and len(found) == len(values) else None
