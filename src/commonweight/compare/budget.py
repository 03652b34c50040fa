"""Which config of a method fits into so many bytes: read off the plan, nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ..core import CommonweightError, Site, parse_bytes
from ..formats.codecs.onebit import refuse
from ..methods import Method, get, plan, resolve
from .size import nbytes, stored

LARGEST = 1 << 24  # of a whole-number option
FINE = 4  # values of a share between one and its half
GAP = 64  # so many values in a row may be impossible, such as widths that do not divide a site's

Options = Mapping[str, Any]


def parse_budget(text: str) -> int:
    """Bytes of "4KB", "1.5 MB" or "4096"; a KB has 1,024 bytes. Raises: CommonweightError for anything else."""
    return parse_bytes(text, "budget")


class Fit(NamedTuple):
    """A config and what it costs. nbytes: saved pools, without a head. own: those of them that a further tenant would
    bring (scope "tenant"). count: trainable numbers, as it begins to train. within: whether it is inside the budget."""

    method: str
    options: dict[str, Any]
    nbytes: int
    own: int
    count: int
    within: bool = True

    def __str__(self) -> str:
        told = " ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.method} {told}".rstrip()


def fit(
    method: str, sites: Sequence[Site], budget: int, options: Options | None = None, codec: str | None = None
) -> Fit:
    """The largest config of a method inside a budget, in bytes.

    Varies the options that the method declares as its size, except those given in `options`. The first is varied over
    its whole range (a share in steps of a fifth, down to a millionth of the largest); the others are lowered from their
    defaults, step by step, only if nothing fits.
    sites: those that the method reads. codec: by which the pools are stored; see `Host.save`.
    If none fits, returns the smallest config, with within=False. Cost: some ten plans; no tensor is made.
    Raises: CommonweightError for an unknown method or option, when no config is possible on these sites, and with codec
    onebit for a method that has no two levels.
    """
    if codec == "onebit":
        refuse(method, get(method).levels)
    search = _Search(get(method), sites, dict(options or {}), codec)
    names = [n for n in search.method.sizes if n.lstrip("-") not in search.given]
    if not names:
        search.measure({})
    for lowered in _lowerings(search.method, sites, names[1:]):
        if names and search.largest(names[0], lowered, budget):
            break
    found = search.best(budget)
    if found is None:
        raise CommonweightError(search.wrong if search.wrong.startswith(method) else f"{method}: {search.wrong}")
    size, turned = found
    chosen = {**search.given, **turned}
    _, config = resolve(method, chosen)
    own = nbytes(stored(search.method, sites, chosen), codec, own=True)
    return Fit(method, chosen, size, own, plan(config, sites).count(), size <= budget)


class _Search:
    """What was measured so far: options -> bytes, None where such a config is impossible."""

    def __init__(self, method: Method, sites: Sequence[Site], given: dict[str, Any], codec: str | None):
        self.method, self.sites, self.given, self.codec = method, tuple(sites), given, codec
        self.seen: dict[tuple[tuple[str, Any], ...], int | None] = {}
        self.wrong = "no config of it is possible on these sites"

    def measure(self, turned: Options) -> int | None:
        key = tuple(turned.items())
        if key not in self.seen:
            try:
                self.seen[key] = nbytes(stored(self.method, self.sites, {**self.given, **turned}), self.codec)
            except CommonweightError as e:
                self.seen[key], self.wrong = None, str(e)
        return self.seen[key]

    def best(self, budget: int) -> tuple[int, dict[str, Any]] | None:
        """The largest that fits, else the smallest of all; of equal ones the first seen."""
        possible = [(size, dict(key)) for key, size in self.seen.items() if size is not None]
        inside = [p for p in possible if p[0] <= budget]
        if inside:
            return max(inside, key=lambda p: p[0])
        return min(possible, key=lambda p: p[0], default=None)

    def largest(self, name: str, fixed: Options, budget: int) -> bool:
        """Turns one option to the largest size inside the budget; False when none of its values fits."""
        values = self._values(name, fixed, budget)

        def size(i: int) -> int | None:
            return self.measure({**fixed, name.lstrip("-"): values[i]})

        low, high, found = -1, len(values), False  # high does not fit, or is impossible and so is all above it
        while high - low > 1:
            middle = (low + high) // 2
            at = next((i for i in range(middle, max(low, middle - GAP), -1) if size(i) is not None), None)
            if at is None:
                high = middle
            elif (size(at) or 0) <= budget:
                low, found = middle, True
            else:
                high = at
        return found

    def _values(self, name: str, fixed: Options, budget: int) -> Sequence[Any]:
        """The option's values, smallest config first."""
        field = next(f for f in fields(self.method.config) if f.name == name.lstrip("-"))
        hint = get_type_hints(self.method.config)[field.name]
        if get_origin(hint) is Literal:
            return get_args(hint)[::-1] if name[0] == "-" else get_args(hint)
        if hint is float:
            top = field.metadata.get("le") or 1.0
            return sorted({float(f"{top * 2 ** (-i / FINE):.3g}") for i in range(20 * FINE)})
        low = int(field.metadata.get("ge") or 1)
        if name[0] == "-":  # the fewest bytes at the smallest width: what counts is how often the value goes into it
            widest = min(min(s.out, s.inp) for s in self.sites)
            return sorted({max(low, -(-widest // n)) for n in range(1, widest + 1)}, reverse=True)
        top, possible = low, False
        while top < min(LARGEST, field.metadata.get("le") or LARGEST):
            size = self.measure({**fixed, name: top})
            if possible if size is None else size > budget:
                break
            possible = possible or size is not None
            top = max(top + 1, 2 * top)
        return range(low, top + 1)


def _lowerings(method: Method, sites: Sequence[Site], names: Sequence[str]) -> list[dict[str, Any]]:
    """{} first, the defaults; then one option after the other lowered step by step, those before it at their least."""
    out: list[dict[str, Any]] = [{}]
    for name in names:
        field: Any = next(f for f in fields(method.config) if f.name == name.lstrip("-"))
        before = out[-1]
        out += [{**before, field.name: value} for value in _smaller(method, sites, field, name[0] == "-")]
    return out


def _smaller(method: Method, sites: Sequence[Site], field: Any, inverse: bool) -> list[Any]:
    """The option's values below its default in bytes, the largest first: whole numbers by halves (or doubled)."""
    hint = get_type_hints(method.config)[field.name]
    if get_origin(hint) is Literal:
        values = get_args(hint)[:: 1 if inverse else -1]
        return list(values[values.index(field.default) + 1 :])
    value, least = field.default or 64, int(field.metadata.get("ge") or 0)
    widest = max(max(s.out, s.inp) for s in sites)
    out = []
    while value < widest if inverse else value > least:
        value = 2 * value if inverse else max(least, value // 2)
        out.append(value)
    return out
