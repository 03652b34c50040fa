"""How messages get from every process to every other one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from ...core import CommonweightError

Wait = Callable[[], list[bytes]]


class Carrier(Protocol):
    """send: (a message, the most bytes that one can have) -> a function that waits for those of all processes.

    begin: at the start of a round, (its number, what this process knows) -> what it shall go on from: the same, or
    what another process knows, of a later round. ended: whether the round counts, after its messages were heard; where
    it does not, they are sent again. part: after the last round, waits until all have heard it.
    agree: of the rounds that each process has on disk the least, where all begin together.
    """

    client: int
    clients: int
    patient: bool  # whether a message may still be on its way while the next round has begun

    def begin(self, round: int, known: dict[str, Tensor]) -> dict[str, Tensor] | None: ...

    def send(self, data: bytes, most: int) -> Wait: ...

    def ended(self) -> bool: ...

    def part(self) -> None: ...

    def agree(self, rounds: int) -> int: ...

    def close(self) -> None: ...


class Alone:
    """One process, one client."""

    client, clients, patient = 0, 1, True

    def begin(self, round: int, known: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return None

    def send(self, data: bytes, most: int) -> Wait:
        return lambda: [data]

    def ended(self) -> bool:
        return True

    def part(self) -> None:
        pass

    def agree(self, rounds: int) -> int:
        return rounds

    def close(self) -> None:
        pass


class Gloo:
    """The processes of `torchrun`, over torch.distributed alone: one that dies ends the run,
    which can go on from disk.

    Cost: a process receives the messages of all others, (n - 1) of them, and sends its own as often.
    """

    patient = True

    def __init__(self) -> None:
        self.mine = not dist.is_initialized()
        if self.mine:
            dist.init_process_group("gloo")
        self.group: Any = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self.client, self.clients = dist.get_rank(), dist.get_world_size()

    def begin(self, round: int, known: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return None

    def send(self, data: bytes, most: int) -> Wait:
        frame = framed(data, most)
        found = [torch.empty_like(frame) for _ in range(self.clients)]
        work = dist.all_gather(found, frame, group=self.group, async_op=True)

        def wait() -> list[bytes]:
            try:
                work.wait()  # type: ignore[union-attr]
            except RuntimeError as e:
                raise CommonweightError(
                    f"a process is gone, and the others cannot go on without it ({str(e).splitlines()[0]}); "
                    "with --lighthouse they can; with --state, --resume goes on after the last whole round"
                ) from e
            return [unframed(f) for f in found]

        return wait

    def ended(self) -> bool:
        return True

    def part(self) -> None:
        dist.barrier(self.group)

    def agree(self, rounds: int) -> int:
        least = torch.tensor([rounds])
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return int(least)

    def close(self) -> None:
        if self.mine:
            dist.destroy_process_group()


def carrier() -> Carrier:
    """That of the environment: what `torchrun` has started, or one process alone."""
    return Gloo() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()


def framed(data: bytes, most: int) -> Tensor:
    """A message with its length before it, in a tensor that is as long for all."""
    out = torch.zeros(most + 8, dtype=torch.uint8)
    out[:8] = torch.tensor(list(len(data).to_bytes(8, "little")), dtype=torch.uint8)
    out[8 : 8 + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return out


def unframed(frame: Tensor) -> bytes:
    size = int.from_bytes(bytes(frame[:8].tolist()), "little")
    return frame[8 : 8 + size].numpy().tobytes()
