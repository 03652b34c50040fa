"""The nouns: Site, Pool, Address, Read, Bind, Use, Plan. Everything else is a function of these."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .init import Init
from .serial import dump, load, serial

# kinds of sites that are no weight
WEIGHTLESS = frozenset(
    {"block", "attention", "ffn", "prefix", "aside", "prompt", "positions", "state", "trunk", "queries", "head"}
)


class Site(NamedTuple):
    """A logical reader: one weight (out, inp) of the model, or a row range of a fused one.

    kind: "linear" | "expert" and "router" (of a mixture) | "conv" (inp: the numbers of a patch) | "embedding" (the
    table (inp, out), out its width) | "norm" (inp = 1) | "parameter" (what a module computes with by itself; inp = 1 of
    a vector) | "block" (a whole layer's output) | "attention" and "ffn" (parts of a layer: what they are given, inp,
    and what they give before it is added, out) | "prefix" (keys and values in front of those of an attention; out:
    the width of either over all heads, inp: of one head) | "aside" (tokens that an attention reads in a softmax of
    their own; out: its heads, inp: the width that its keys are made of) | "prompt" (tokens in front of a row of a
    causal decoder, as vectors) | "positions" (the vectors of a row's tokens, by their positions) | "state" (what a
    state-space layer reads of its states; out: its channels, inp: the numbers of a channel's state) | "trunk" (what all
    blocks of a list give, and whether a token is no padding, inp; what the last of them gives, out) | "queries" (what
    the blocks of a list answer to queries, side by side, inp) | "head" (where a task's classifier reads).
    role: what the projection does ("query", "key", "value", "attn_out", "up", "gate", "down") where the name tells; of
    a block and of what stands ahead of an attention "causal" where a token sees those before it alone.
    """

    name: str
    out: int
    inp: int
    kind: str = "linear"
    role: str = ""
    bias: bool = True
    rows: tuple[int, int] | None = None


@serial
@dataclass(frozen=True)
class Pool:
    """A named tensor that exists once, however many sites read it.

    train: gets gradients. save: False when it is rebuilt from (seed, name) or from the base.
    scope: "tenant" is private; "shared" may be read by many tenants. lr: factor on the method's learning rate.
    optimizer: by what it is trained in place of a run's own optimizer, at the run's rates: "stiefel" keeps the columns
    of its matrices orthonormal.
    """

    shape: tuple[int, ...]
    init: Init
    train: bool = True
    save: bool = True
    scope: Literal["tenant", "shared"] = "tenant"
    dtype: str = "float32"
    lr: float = 1.0
    optimizer: str = ""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * getattr(torch, self.dtype).itemsize


class Address(Protocol):
    """LINEAR in its first pool, given the coefficients. A frozen dataclass in `commonweight.address`."""

    # (pool, *coef) -> slot; said this way because every address takes its own number of coefficients
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


class Read(NamedTuple):
    """One named slot of one site. pools: values first, then coefficient pools."""

    address: Address
    pools: tuple[str, ...]


class Base(Protocol):
    """What a Bind may see of the frozen module it changes."""

    training: bool

    @property
    def weight(self) -> Tensor: ...  # (out, inp), or (out,) for a norm
    @property
    def bias(self) -> Tensor | None: ...
    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    @property
    def active(self) -> Tensor | None: ...  # of a bind with `invocation`: the tokens from there on, (..., T, 1)
    @property
    def there(self) -> Tensor: ...  # of a bind with `whole`: which tokens of each row are no padding, bool (rows, T)
    @property
    def context(self) -> Tensor: ...  # of a bind with `context` and `whole`: each row's mean embedding, (rows, d)
    @property
    def place(
        self,
    ) -> Tensor: ...  # of a bind with `placed`: which token of its row each is, padding aside, (..., T, 1)
    def scaled(self, t: Tensor) -> Tensor: ...  # what a table of embeddings multiplies its entries by
    def many(self, x: Tensor, weight: Tensor) -> Tensor: ...  # call of n at once: weight (n, o, inp) -> (n, T, o)


class Bind(Protocol):
    """What a reader does with the numbers that it reads. Pure functions; at least one of the first three is needed.

    weight(w, **slots) -> w'           the reference form; float32, (out, inp)
    input(x, base, **slots) -> x'      the fast form of a change on the input side
    output(x, y, base, **slots) -> y'  the fast form of a change on the output side
    trained(x, y, base, weight, **slots) -> y'  `output` where gradients are recorded and y may be written over; weight:
                                       the frozen one, (out, inp), where y = x weight^T + a constant and nobody else
                                       reads y, so that one node may stand for both; else None
    bias(b, **slots) -> b'             when the bias changes too
    reads(shapes) -> (n, b)            of a bind that reads less than all of a weight: how many of its numbers, None for
                                       all, and whether the bias; shapes: of what each slot reads
    opens(x, base, there, **slots) -> g (..., T)  at a block or a part of one: what share of it each token gets. y is
                                       then g y of a part, x + g (y - x) of a block, before `output`; where g is 0 it is
                                       not computed. there: which tokens are no padding, bool (..., T), or None
    ahead(**slots) -> (K, V)           at a prefix site alone: m keys, behind their rotation, and values, (m, out). Of a
                                       bind with `asks` ahead(query, **slots) -> (B, m, out), each row's own; query:
                                       (B, d), what the plain base makes of each row, see `host.queries`
    cosines(query, **slots) -> (B, M)  of such a bind: what it goes by, for a loss of the method
    front(**slots) -> E (m, d)         at a prompt site alone: vectors of m tokens
    tokens(**slots) -> E (N, d)        at an aside site alone: what keys and values, (heads, N, w), are made of
    aside(query, keys, values, scale, **slots) -> what is added to each head's answer, as query, (B, heads, T, w)
    queries(**slots) -> P (n, T, d)    at a site of queries alone: T for each of its n blocks. Of a bind with `follows`
                                       those of the first block; the others are asked what the one before answered
    places(**slots) -> int             of those, by how many positions the tokens behind them move; 0 where it lacks
    grouped(x, y, base, **slots) -> y' `output` for n groups at once: every tensor has a leading n; where no gradients
                                       are recorded it may write over y. A bind with `input` has none
    factors(**slots) -> (A, B)         when w' = w + B A exactly; leading dimensions of the slots stay. Where `draws`
                                       is true, training draws other ones

    anywhere: "output" where the fast forms read y alone, "through" where they read x through `base.call` and
    `base.many` alone: they hold at convolutions and embeddings too. Else the weight form is used there.
    """


class Use(NamedTuple):
    site: str
    bind: Any
    reads: Mapping[str, Read]


class Plan(NamedTuple):
    """A method applied to sites: data that can be counted, printed, compared, written and read back."""

    pools: Mapping[str, Pool]
    uses: tuple[Use, ...]
    seed: int = 0

    def count(self) -> int:  # type: ignore[override]
        """Trainable numbers."""
        return sum(p.numel for p in self.pools.values() if p.train)

    @property
    def nbytes(self) -> int:
        """Bytes of the saved pools, in their own dtypes."""
        return sum(p.nbytes for p in self.pools.values() if p.save)

    def readers(self) -> Counter[str]:
        """The number of reads of each pool; its gradient is a sum of as many terms."""
        return Counter(name for use in self.uses for read in use.reads.values() for name in read.pools)

    def to_json(self) -> str:
        uses = [
            [u.site, dump(u.bind), {k: [dump(r.address), list(r.pools)] for k, r in u.reads.items()}] for u in self.uses
        ]
        return json.dumps({"seed": self.seed, "pools": dump(dict(self.pools)), "uses": uses}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        raw = json.loads(text)
        uses = tuple(
            Use(site, load(bind), {k: Read(load(a), tuple(p)) for k, (a, p) in reads.items()})
            for site, bind, reads in raw["uses"]
        )
        return cls(load(raw["pools"]), uses, raw["seed"])

    def digest(self) -> str:
        """16 hex digits; two plans have the same digest only if they are equal."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def __add__(self, other: Plan) -> Plan:  # type: ignore[override]
        """Both plans' uses, in order, over both plans' pools."""
        if clash := self.pools.keys() & other.pools.keys():
            raise ValueError(f"both plans own the pool {min(clash)!r}")
        return Plan({**self.pools, **other.pools}, self.uses + other.uses, self.seed)
