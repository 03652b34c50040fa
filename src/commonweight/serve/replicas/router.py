"""Which replica a call goes to: Ray Serve's ring of consistent hashes, with a bound on what each has to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

EVERY = 1 << 20  # replicas of the ring that may stand in for one that is full


def order(loads: Sequence[int], bound: float) -> list[int]:
    """Places of the ring in the order in which they are asked: as they stand, those with their full share at the end.

    loads: calls of each. The share is `bound` times the mean, with the call that comes counted.
    Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", arXiv 1608.01350.
    """
    share = math.ceil(bound * (sum(loads) + 1) / len(loads))
    return sorted(range(len(loads)), key=lambda i: loads[i] >= share)


class Bounded(ConsistentHashRouter):
    """Calls of one session go to one replica while that has no more than `bound` times the mean of all, then to the
    next one of the ring. Those without a session go by chance, under the same bound."""

    def initialize_state(self, bound: float = 1.25, **kwargs: Any) -> None:
        super().initialize_state(**{"num_fallback_replicas": EVERY, **kwargs})
        self._bound = bound
        self._routed: Counter[Any] = Counter()  # calls that this router has under way, by replica

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        ranks = [r for r in await super().choose_replicas(candidate_replicas, pending_request) if r]
        if pending_request is None or len(ranks) < 2:
            return ranks
        loads = [self._routed[rank[0].replica_id] for rank in ranks]
        return [ranks[i] for i in order(loads, self._bound)]

    def on_send_request(self, replica_id: Any) -> None:
        super().on_send_request(replica_id)
        self._routed[replica_id] += 1

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        super().on_request_completed(replica_id, internal_request_id)
        self._routed[replica_id] -= 1
        if self._routed[replica_id] <= 0:
            del self._routed[replica_id]
