"""Which client has which rows, and which clients a round has. Everything is drawn from (seed, name) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapt.rows import LABEL, Row, column
from ..core import CommonweightError, Rng, natural, unknown

KINDS = ("iid", "dirichlet", "labels", "column", "files")
BRINGS = ("column", "files")  # their own number of clients


def split(
    rows: Sequence[Row], clients: int | None, spec: str, *, seed: int = 0, label_column: str | None = None,
    files: Sequence[int] | None = None,
) -> list[list[int]]:  # fmt: skip
    """The places of each client's rows. Every row has one client, every client at least one row.

    spec: ``iid``; ``dirichlet:0.3`` (for each label, shares of the clients from Dirichlet(alpha), arXiv 1909.06335);
    ``labels:2`` (each client has so many shards, cut from the rows sorted by label, arXiv 1602.05629); ``column:NAME``
    (a client for each of its values); ``files`` (a client for each file; files: of each row its file's number).
    clients: None for column and files, which bring their own number.
    Raises: CommonweightError for another spec, or more clients than rows.
    """
    kind, value = known(spec)
    if kind in BRINGS:
        found = by_column(rows, value, spec) if kind == "column" else by_file(files, spec)
        if clients is not None and clients != len(found):
            raise CommonweightError(f"split {spec}: it makes {len(found)} clients, not {clients}; leave clients out")
        return found
    if clients is None:
        raise CommonweightError(f"split {spec}: wanted the number of clients")
    if clients > len(rows):
        raise CommonweightError(f"split {spec}: {clients} clients for {len(rows)} rows; each wants one at least")
    if kind == "iid":
        order = Rng(seed, "split").permutation(len(rows)).tolist()
        return [sorted(order[i::clients]) for i in range(clients)]
    name = column(rows, label_column, LABEL, "label")
    labels: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        labels.setdefault(str(row.get(name)), []).append(i)
    groups = [labels[k] for k in sorted(labels, key=natural)]
    if kind == "labels":
        return shards(groups, clients, value, seed)
    return dirichlet(groups, clients, value, seed)


def dealt(
    rows: Sequence[Row], clients: int, spec: str, *, seed: int = 0, label_column: str | None = None,
    files: Sequence[int] | None = None, asked: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """`split`, where column and files bring their own number of clients and the others make `clients`. asked: the
    number that a person named, which must then be that of the column or the files."""
    brings = spec.partition(":")[0] in BRINGS
    return split(rows, asked if brings else clients, spec, seed=seed, label_column=label_column, files=files)


def known(spec: str) -> tuple[str, Any]:
    """The kind of a split and its value, before any row is read. Raises: CommonweightError for another spec."""
    kind, colon, value = spec.partition(":")
    if kind not in KINDS:
        raise unknown("split", spec, ("iid", "dirichlet:0.3", "labels:2", "column:NAME", "files"))
    if kind in ("iid", "files") and colon:
        raise CommonweightError(f"split {spec}: {kind} takes no value; wanted {kind}")
    if kind == "column" and not value:
        raise CommonweightError(f"split {spec}: wanted column:NAME, with the name of a column that every row has")
    if kind in ("dirichlet", "labels"):
        return kind, _number(spec, value, whole=kind == "labels")
    return kind, value


def by_column(rows: Sequence[Row], name: str, spec: str = "column") -> list[list[int]]:
    """A client for each value of a column, in the order of the alphabet, numbers in theirs."""
    if not name or any(name not in r for r in rows):
        known = ", ".join(sorted(rows[0])) if rows else "none"
        raise CommonweightError(f"split {spec}: wanted column:NAME of a column that every row has; there: {known}")
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(str(row[name]), []).append(i)
    return [found[k] for k in sorted(found, key=natural)]


def by_file(files: Sequence[int] | None, spec: str) -> list[list[int]]:
    """A client for each file that a row came from."""
    if files is None or len(set(files)) < 2:
        raise CommonweightError(f"split {spec}: wanted rows of several files, one for each client")
    return [[i for i, f in enumerate(files) if f == k] for k in sorted(set(files))]


def shards(groups: Sequence[Sequence[int]], clients: int, each: int, seed: int) -> list[list[int]]:
    """Rows sorted by label, cut into clients * each pieces of like length; each client gets `each` of them."""
    order = [i for g in groups for i in g]
    n = clients * each
    if n > len(order):
        raise CommonweightError(f"split labels:{each}: {n} shards of {len(order)} rows; lower one of the two")
    cuts = [round(k * len(order) / n) for k in range(n + 1)]
    drawn = Rng(seed, "split").permutation(n).tolist()
    return [sorted(i for k in drawn[c::clients] for i in order[cuts[k] : cuts[k + 1]]) for c in range(clients)]


def dirichlet(groups: Sequence[Sequence[int]], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """For each label, its rows are dealt out by shares ~ Dirichlet(alpha, ..., alpha): a small alpha gives clients few
    labels each. A client without a row gets one from the client with the most."""
    out: list[list[int]] = [[] for _ in range(clients)]
    for g, rows in enumerate(groups):
        rng = Rng(seed, f"split/{g}")
        share = torch.softmax(log_gammas(rng, clients, alpha), 0)
        ends = (share.cumsum(0) / share.sum() * len(rows)).round().long().tolist()
        order = rng.permutation(len(rows)).tolist()
        for c, (a, b) in enumerate(zip([0, *ends], ends)):
            out[c] += [rows[i] for i in order[a:b]]
    for c in range(clients):
        if not out[c]:
            most = max(range(clients), key=lambda i: len(out[i]))
            out[c].append(out[most].pop())
    return [sorted(rows) for rows in out]


def log_gammas(rng: Rng, n: int, alpha: float) -> Tensor:
    """float64 (n,), the logarithms of Gamma(alpha, 1), which are numbers where these themselves would be 0 or infinite:
    at an alpha of 1e-4 nearly all clients' shares are below 1e-300.

    Source: Marsaglia and Tsang, ACM TOMS 26 (2000); alpha < 1 by a power of a uniform. Written here: a library's own
    sampler may change its numbers with its version."""
    d = max(alpha, alpha + 1 if alpha < 1 else alpha) - 1 / 3
    c = 1 / math.sqrt(9 * d)
    out = torch.zeros(n, dtype=torch.float64)
    todo = torch.arange(n)
    while len(todo):
        x = rng.normal((len(todo),)).double()
        u = rng.uniform((len(todo),)).double().clamp(min=2.0**-25)
        v = (1 + c * x) ** 3
        good = (v > 0) & (u.log() < 0.5 * x * x + d - d * v + d * v.clamp(min=1e-300).log())
        out[todo[good]] = math.log(d) + v[good].log()
        todo = todo[~good]
    if alpha < 1:
        out += rng.uniform((n,)).double().clamp(min=2.0**-25).log() / alpha
    return out


def sampled(clients: int, sample: int | None, round: int, seed: int) -> list[int]:
    """The clients of a round, in the order of their numbers."""
    if sample is None or sample == clients:
        return list(range(clients))
    return sorted(Rng(seed, f"round/{round}").permutation(clients)[:sample].tolist())


def _number(spec: str, value: str, whole: bool = False) -> Any:
    try:
        found = int(value) if whole else float(value)
    except ValueError:
        found = 0
    if not 0 < found < math.inf:
        raise CommonweightError(f"split {spec}: wanted {'labels:2' if whole else 'dirichlet:0.3'}, a number above 0")
    return found
