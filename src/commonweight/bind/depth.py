"""Which tokens a block of a loop runs for: chosen by capacity, by a depth of their own, or until they leave."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import serial


@serial
@dataclass(frozen=True)
class Place:
    """Where a block of a loop stands: number `at` of `of` in loop number `loop` of `loops`. slot: where a cache keeps
    which tokens ran. ends: blocks before the first loop."""

    loop: int
    loops: int
    at: int
    of: int
    slot: int
    ends: int


@serial
@dataclass(frozen=True)
class ExpertChoice:
    """A loop runs the tokens with the highest router score w x; y = x + g (f(x) - x), g = alpha sigmoid(w x).

    Shapes: router (1, d), read by the first block of the loop alone. In training the int(capacity T) highest of those
    that ran the loop before; otherwise, since that sees later tokens, those with w x > 0, which `weight` times the
    binary cross entropy teaches. whole: y = x + g f(x), as the official code has it.
    Source: arXiv 2507.10524, section 2.2.
    """

    where: Place
    capacity: float = 1.0
    alpha: float = 2.0
    whole: bool = False
    weight: float = 0.001

    @property
    def taken(self) -> tuple[str, float]:
        """(what of the site, the share of tokens that it runs for)."""
        return "", self.capacity


@serial
@dataclass(frozen=True)
class TokenChoice:
    """A token's number of loops is chosen before the first: the likeliest of p = softmax(w x), w (loops, d).

    After its last loop y = x0 + g (f(x) - x0), g = alpha p of that number; whole: y = x0 + g f(x). Loss: `weight`
    loops sum f_i P_i, f the shares of tokens, P the mean probabilities. Source: arXiv 2507.10524, section 2.2.
    """

    where: Place
    alpha: float = 1.0
    whole: bool = False
    weight: float = 0.1

    @property
    def taken(self) -> tuple[str, float]:
        return "", 1 - self.where.loop / self.where.loops


@serial
@dataclass(frozen=True)
class Exit:
    """A token leaves before a loop where w x / rms(x) + b > threshold. Shapes: router (1, d), bias (1,).

    In training all tokens run all loops, those that would leave hidden from the others; w learns whether the head says
    before the loop what it says in the end, and the head's loss there counts `weight`.
    Source: early exits of arXiv 2410.20672, section 3.3, by a classifier as in CALM, arXiv 2207.07061, section 3.2.
    """

    where: Place
    threshold: float = 2.0
    weight: float = 0.1


@serial
@dataclass(frozen=True)
class Halt:
    """Before step l > 0 a token halts with probability a_l = never halt(h_l), halt = softmax(W2 relu(W1 h) + (0, b)).

    Shapes: halt_in (d, d), halt_out (2, d), halt_bias (1,). Where never < 1 - done it is no longer computed. Its state,
    for the others and in the end, is sum a_l h_l + never h. weight: of the mean of sum a_l l + never loops.
    Source: SUT, arXiv 2310.07096, section 2.3 and the authors' code.
    """

    where: Place
    done: float = 0.999
    weight: float = 0.0


@serial
@dataclass(frozen=True)
class Expecting:
    """Of a norm before attention: it norms the states that are expected of tokens (`Halt`) as well."""


@serial
@dataclass(frozen=True)
class Expected:
    """Of a layer of keys or values: its input is what is expected of tokens, in the place of their own states."""
