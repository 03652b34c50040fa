"""The same messages over torchft: processes come and go, and a new one is told what the others know."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, TCPStore
from torchft import Manager, ProcessGroupGloo
from torchft.checkpointing.http_transport import HTTPTransport

from .carrier import Wait, framed, unframed


class Torchft:
    """A member of a group that a Lighthouse keeps. Every process is a replica of its own, with one rank.

    A process that dies while messages are on their way: the round is sent again among those that are left. A new one
    begins with the others' server state and the round that they are in, and its optimiser is new. Only the order of
    messages is torchft's; the mean is made by `engine`, since torchft's would add up floats that are no longer small.
    lighthouse: its address, http://HOST:PORT. Raises: what torchft raises where there is none.
    """

    patient = False

    def __init__(self, client: int, clients: int, lighthouse: str, *, minimum: int = 1, seconds: float = 30.0):
        self.client, self.clients = client, clients
        self.known: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] | None = None
        limit = timedelta(seconds=seconds)
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.group = ProcessGroupGloo(timeout=limit)
        self.manager = Manager(
            pg=self.group, load_state_dict=self._load, state_dict=lambda: self.known, min_replica_size=minimum,
            use_async_quorum=False, timeout=limit, quorum_timeout=limit * 4, connect_timeout=limit, rank=0,
            world_size=1, store_addr="127.0.0.1", store_port=self.store.port, lighthouse_addr=lighthouse,
            replica_id=f"client-{client}-", hostname=socket.gethostname(), init_sync=False,
            checkpoint_transport=HTTPTransport(timeout=limit, num_chunks=0),
        )  # fmt: skip

    def _load(self, given: dict[str, Tensor]) -> None:
        self.given = given

    def begin(self, round: int, known: dict[str, Tensor]) -> dict[str, Tensor] | None:
        self.known, self.given = known, None
        self.manager.start_quorum()
        return self.given

    def send(self, data: bytes, most: int) -> Wait:
        frame = framed(data, most)

        def wait() -> list[bytes]:
            found = [torch.empty_like(frame) for _ in range(self.group.size())]
            try:
                self.group.allgather([found], [frame], AllgatherOptions()).wait()
            except Exception as e:  # any error of a dead peer: the round does not count
                self.manager.report_error(e)
                return []
            return [unframed(f) for f in found]

        return wait

    def ended(self) -> bool:
        return self.manager.should_commit()

    def part(self) -> None:
        pass

    def agree(self, rounds: int) -> int:
        return rounds  # `begin` brings who is behind to where the others are

    def close(self) -> None:
        self.manager.shutdown(wait=False)
