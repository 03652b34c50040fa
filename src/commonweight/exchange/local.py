"""How a client trains between two messages, and how rounds are run: numbers only, with their ranges."""

from __future__ import annotations

import math
from typing import Literal

from ..core import config, option, unknown

KINDS = (
    "int8",
    "int4",
    "bfloat16",
    "compeft",
    "l-greco",
)  # those with a bound on their bytes, whatever the numbers are
OF_CHANGES = ("compeft", "l-greco")  # which leave most numbers of a change out


@config
class Local:
    """A client's own training. The same numbers for all clients of a run."""

    epochs: float = option(1.0, "passes over a client's rows in a round", gt=0, le=1000)
    steps: int | None = option(None, "optimiser steps of a client in a round, in place of epochs", ge=1)
    batch_size: int = option(8, "rows of a step; a client with fewer shows all of them", ge=1)
    lr: float | None = option(None, "learning rate of the first round; none: the adapter's own", gt=0)
    schedule: Literal["constant", "linear"] = option("linear", "learning rate over the rounds: linear falls to a tenth")
    optimizer: Literal["adamw", "sgd"] = option("adamw", "of the clients; it works entry by entry, so clients mix")
    momentum: float = option(0.0, "of sgd", ge=0, le=0.999)
    weight_decay: float = option(0.0, "of adamw", ge=0)
    clip: float = option(1.0, "largest norm of a client's gradient; 0: no clipping", ge=0)
    max_length: int | None = option(None, "tokens per row; none: 128, for language modelling 512", ge=2)

    def of(self, rows: int) -> tuple[int, int]:
        """(steps of a round, rows of a step) of a client with so many rows."""
        batch = min(self.batch_size, rows)
        return self.steps or max(1, math.ceil(self.epochs * math.ceil(rows / batch))), batch

    def rate(self, base: float, round: int, rounds: int) -> float:
        """The learning rate of a round; base: the adapter's own."""
        start = base if self.lr is None else self.lr
        return start if self.schedule == "constant" else start * (1 - 0.9 * min(1.0, round / max(1, rounds - 1)))


@config
class Rounds:
    """Who takes part in a round, and how long it waits. What a simulated client does wrong is drawn from the seed."""

    clients: int = option(16, "how many there are", ge=1)
    rounds: int = option(20, "how often the server gathers", ge=1)
    sample: int | None = option(None, "clients of a round, drawn anew each time; none: all of them", ge=1)
    minimum: int = option(1, "replies below which a round changes nothing", ge=1)
    split: str = option("iid", "who has which rows: iid, dirichlet:0.3, labels:2, column:NAME, files")
    weigh: Literal["rows", "clients"] = option("rows", "how replies are weighed: by their rows, or all alike")
    shown: int = option(
        64, "rows of the first client from whose gradient a method begins that asks for data; what comes of it is sent "
        "once to each client", ge=1,
    )  # fmt: skip
    dp_noise: float | None = option(
        None, "differential privacy: the noise of the server's sum over dp_clip; all clients then weigh the same", ge=0
    )
    dp_clip: float | None = option(None, "differential privacy: largest norm of a client's change in a round", gt=0)
    dp_delta: float = option(1e-5, "differential privacy: delta of (epsilon, delta)", gt=0, le=0.1)
    codec: str | None = option(
        None, "what clients send, coded: int8, int4, bfloat16 or compeft:density=0.1; l-greco: one of these for each "
        "pool, so that together they err as int4 and take the fewest bytes"
    )  # fmt: skip
    codec_down: str | None = option(None, "the same of what comes down to them")
    codec_feedback: Literal["none", "clients", "both"] = option(
        "clients", "what a codec lost is made up for: by a client in its next answer; both: by the server too, whose "
        "broadcast is then the coded change of what clients have heard; none: it is lost"
    )  # fmt: skip
    private: str | None = option(None, "pattern of pools that stay with a client, such as *head*")
    vanish: float = option(0.0, "simulated: the share of clients of a round that never answer", ge=0, le=1)
    spread: float = option(0.0, "simulated: how much clients differ in speed (sigma of a log-normal)", ge=0, le=10)
    deadline: float | None = option(
        None, "simulated: a round ends after so many times the median client's time; who comes later is left out", gt=0
    )
    mixed: int = option(
        256,
        "rows of one mixed batch at most, of several clients, and 4,096 tokens; 1: one client after the other",
        ge=1,
    )
    eval_every: int = option(1, "rounds between measurements on the eval rows", ge=1)
    seed: int = option(0, "seed of everything that is drawn", ge=0)

    def check(self) -> str | None:
        if self.dp_noise is not None and self.dp_clip is None:
            return f"dp_noise={self.dp_noise:g} without dp_clip: noise is a multiple of the largest change; give it too"
        if self.sample is not None and self.sample > self.clients:
            own = self.split.partition(":")[0] in ("column", "files")  # whose number is not known yet
            more = "; where the split brings its own number, give that as clients" if own else ""
            return f"sample={self.sample} of {self.clients} clients; wanted at most {self.clients}{more}"
        if why := coded_wrong(self.codec, self.codec_down, self.codec_feedback):
            return why
        most = self.sample or self.clients
        return f"minimum={self.minimum}, but a round has {most} clients" if self.minimum > most else None


def of_codec(name: str) -> str | None:
    """What is wrong with the name of a codec, its options aside; None: nothing."""
    kind = name.partition(":")[0]
    return None if kind in KINDS else str(unknown("codec of exchange", kind, KINDS))


def coded_wrong(up: str | None, down: str | None, feedback: str) -> str | None:
    """What is wrong with the codecs of both ways; None: nothing."""
    for codec in (up, down):
        if codec is not None and (why := of_codec(codec)):
            return why
    if feedback == "both" and down is None:
        return "codec_feedback=both without codec_down: nothing that the server sends is coded; give it too"
    if down is not None and down.partition(":")[0] in OF_CHANGES and feedback != "both":
        return (
            f"codec_down={down} leaves most numbers out, so that it is one of changes; wanted codec_feedback=both, "
            "which sends them, or int8, int4, bfloat16"
        )
    return None
