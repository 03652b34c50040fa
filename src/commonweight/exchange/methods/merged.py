"""The server merges its clients' pools by a method of `merge`; variance-corrected averaging, if not told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core import CommonweightError, config, option
from ...merge import get
from ..averaging import AVERAGING, weights
from ..registry import Reply, Setting, State, method


@config
class Merged:
    by: str = option("variance_corrected", "a merge method with its usual options: any of `commonweight merge list`")
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")

    def check(self) -> str | None:
        try:
            get(self.by)
        except CommonweightError as e:
            return str(e)
        return None


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """theta <- merge of the theta_n, weighted as an average is; the server's last pools are the base where one is
    wanted. One reply of a method that wants two stays as it is."""
    by, models = get(setting.config.by), [dict(r.tensors) for r in replies]
    if len(models) == 1:
        return state._replace(tensors=models[0])
    base = None if by.base == "none" else state.tensors
    return state._replace(tensors=by(models, base, weights=weights(replies, setting.weigh), threads=1))


@method(
    "merged",
    Merged,
    paper="Vanishing Variance Problem in Fully Decentralized Neural-Network Systems, arXiv 2404.04616",
    id=531,
    **{**AVERAGING, "gather": gather, "noise": "its factors depend on every client, and noise is for a mean"},
)
def adapter(config: Merged) -> tuple[str, dict[str, Any]]:
    """theta <- mu + (mean - mu) sqrt(mean of the clients' variances / variance of the mean), pool by pool.

    Source: arXiv 2404.04616, algorithm 3; `merge` has it, and every other method that can be used in its place.
    """
    return config.adapter, dict(config.options)
