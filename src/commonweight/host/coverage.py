"""How much of a model a tenant reads, and how to read the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..core import WEIGHTLESS, Plan, Site, Use
from ..methods import Method, available
from .experts import Stacked
from .hooked import HookedModel
from .names import named
from .sites import UNPACK, families, misfit, packed_fused
from .sites.families import towers
from .weights import packed

_WORDS = {
    "embedding": "embeddings", "expert": "experts", "router": "routers", "conv": "convolutions", "norm": "norms",
    "parameter": "parameters", "linear": "layers",
}  # fmt: skip

_BIASES, _OF_BIASES = "biases of {}", ("bitfit", "full")  # what they are called; methods that read them


@dataclass(frozen=True)
class Left:
    """A family that is not read. numbers: its weights, as they are stored. sites: what `sites=` adds it, or "".
    methods: those that read it, where this one cannot. todo: what else makes it readable."""

    family: str
    numbers: int
    sites: str = ""
    methods: tuple[str, ...] = ()
    todo: str = ""


@dataclass(frozen=True)
class Coverage:
    """read, total: weights by number. left: families that are not read, the largest first. of: whose sites they are.
    behind: no weight changes; what the layers with the `read` weights give is acted on."""

    of: str
    read: int
    total: int
    left: tuple[Left, ...]
    behind: bool = False

    @property
    def share(self) -> float:
        return self.read / max(1, self.total)

    @property
    def _told(self) -> str:
        if self.behind:
            return f"{self.of} changes no weight; it acts on what layers with {self.share:.1%} of the weights give"
        return f"{self.of} reads {self.share:.1%} of the weights"

    @property
    def line(self) -> str:
        """In one line: the share, and the families that make a hundredth of the model or more."""
        parts = [f"{x.family} {x.numbers / self.total:.0%}" for x in self.left if x.numbers >= 0.01 * self.total]
        words = (w for x in self.left if x.numbers >= 0.01 * self.total for w in x.sites.split("|") if w)
        named = [*dict.fromkeys(words)]
        add = f" (add them: sites='...|{'|'.join(named)}')" if named else ""
        out = self._told
        out += f"; left out: {', '.join(parts)}{add}" if parts else ""
        return "; ".join([out, *dict.fromkeys(x.todo for x in self.left if x.todo and x.numbers >= 0.01 * self.total)])

    def __str__(self) -> str:
        lines = [f"{self._told}: {self.read:,} of {self.total:,}"]
        for x in self.left:
            how = f"add them with sites='...|{x.sites}'" if x.sites else ""
            how = how or x.todo or (f"read by {', '.join(x.methods)}" if x.methods else "no method reads them")
            lines.append(f"  left out: {x.family}, {x.numbers / max(1, self.total):.1%} ({x.numbers:,}); {how}")
        return "\n".join(lines)


def coverage(
    base: HookedModel, of: str, sites: Iterable[Site], method: Method | None, plan: Plan | None = None
) -> Coverage:
    """sites: those that are read. method: whose kinds they are of; None for all kinds. plan: how much of each is read,
    where it is less than all: biases, entries of a table."""
    owned = _owned(base)
    parts = {} if plan is None else _parts(plan)
    taken = {s.name for s in sites}
    narrow = bool(parts) and all(p == (0, True) for p in parts.values())
    tower = towers(base.inner)
    several = len({tower(s.name) for s in base.every}) > 1
    words = {s.name: w for w, found in families(base.inner, base.every, base.default).items() for s in found}
    covered: set[int] = set()
    read, left = 0, dict[tuple[str, bool], int]()
    kinds: dict[tuple[str, bool], tuple[str, dict[str, None]]] = {}
    todos: dict[tuple[str, bool], str] = {}

    def leave(s: Site, n: int, told: str = "{}") -> None:
        """told: how it is called, where no pattern adds it for this method."""
        if not n:
            return
        word, todo = words.get(s.name, ""), ""
        if method is not None and told == "{}" and s.name not in taken and (why := misfit(method, s)):
            told, todo = f"{{}} whose widths do not fit {why}", f"for them say another {why.partition('=')[0]}"
        home = f" ({tower(s.name)})" if several and s.kind not in ("embedding",) else ""
        label = ("heads" if word == "heads" else _WORDS.get(s.kind, s.kind)) + home
        key = told.format(label), told != "{}"
        left[key], todos[key] = left.get(key, 0) + n, todo
        kinds.setdefault(key, (s.kind, {}))[1][word or _glob(s)] = None

    for s in (s for s in base.every if s.name in taken):
        w, b = _count(base, s, owned, covered)
        part, bias = parts.get(s.name, (None, True))
        mine = (w if part is None else min(w, part)) + (b if bias else 0)
        read += mine
        leave(s, w + b - mine, _BIASES if mine == w and not bias else "the rest of {}")
    follows = {other for table, others in base.ties.items() if table in taken for other, _ in others}
    for s in (s for s in base.every if s.name not in taken):
        w, b = _count(base, s, owned, covered)
        told = _BIASES if s.name in follows and not w else "{} without biases" if narrow and not b else "{}"
        leave(s, w + b, told)
    found = [
        _left(label, n, *kinds[label, rest], method, rest, todos[label, rest]) for (label, rest), n in left.items()
    ]
    for kind, n in _packed_experts(base).items():
        found.append(Left(f"packed experts ({kind})", n, todo=f"{kind} is no site: {UNPACK}"))
    total = sum(owned.values())
    more = total - read - sum(x.numbers for x in found)
    if more > 0:
        found.append(Left(f"what is no site ({_unknown(base, covered)})", more))
    behind = plan is not None and bool(read) and not any(_changes(u) for u in plan.uses)
    return Coverage(of, read, total, tuple(sorted(found, key=lambda x: -x.numbers)), behind)


def in_float(base: HookedModel) -> dict[str, float]:
    """What share of the weights a quantised base keeps in floating point, by kind of site, the largest first."""
    owned, kinds = _owned(base), dict[int, str]()
    heads = {s.name for s in families(base.inner, base.every, base.default).get("heads", ())}
    packs = {id(x) for at in base.modules.values() for x in (at, at.module)}
    for at in base.modules.values():
        kinds.setdefault(
            id(at.module._parameters.get(at.slot)), "heads" if at.name in heads else _WORDS.get(at.kind, "")
        )
    # a tied head is an embedding, whichever of the two is met first
    kinds |= {
        id(at.module._parameters.get(at.slot)): "embeddings" for at in base.modules.values() if at.kind == "embedding"
    }
    out: dict[str, int] = {}
    for key, n in owned.items():
        if key not in packs:
            kind = kinds.get(key) or "others"
            out[kind] = out.get(kind, 0) + n
    total = max(1, sum(owned.values()))
    return {k: n / total for k, n in sorted(out.items(), key=lambda x: -x[1])}


def _changes(use: Use) -> bool:
    """Whether a weight changes there; a classification head is a tenant's own and changes none."""
    return any(hasattr(use.bind, form) for form in ("weight", "bias"))


def _takes_bias(use: Use) -> bool:
    """Of a bind that changes no weight the whole layer counts, whose output it acts on."""
    return hasattr(use.bind, "bias") or not hasattr(use.bind, "weight")


def _parts(plan: Plan) -> dict[str, tuple[int | None, bool]]:
    """What each site is read of that is not read whole: (numbers of its weight, None for all; whether its bias)."""
    out: dict[str, tuple[int | None, bool]] = {}
    for use in plan.uses:
        ask = getattr(use.bind, "reads", None)
        shapes = {slot: plan.pools[r.pools[0]].shape for slot, r in use.reads.items()}
        n, bias = (None, _takes_bias(use)) if ask is None else ask(shapes)
        most, before = out.get(use.site, (0, False))
        weight = None if n is None or most is None else max(n, most)
        out[use.site] = weight, bias or before
    return out


def _packed_experts(base: HookedModel) -> dict[str, int]:
    """Stored numbers of fused experts that are no plain ones, by the class of their module."""
    out: dict[str, int] = {}
    for name, module in named(base.model):
        own = [p for p in module._parameters.values() if p is not None]
        if packed_fused(name, module):
            out[_name(module)] = out.get(_name(module), 0) + sum(p.numel() for p in own)
    return out


def _left(
    label: str,
    numbers: int,
    kind: str,
    words: dict[str, None],
    method: Method | None,
    rest: bool = False,
    todo: str = "",
) -> Left:
    if todo:
        return Left(label, numbers, todo=todo)
    if not rest and (method is None or kind in (*method.kinds, *method.named)):
        return Left(label, numbers, "|".join(words))
    known = [available()[n] for n in _OF_BIASES] if label.startswith(_BIASES[:-2]) else available().values()
    whole = [m for m in known if (method is None or m.name != method.name) and kind in (*m.kinds, *m.named)]
    return Left(label, numbers, "", tuple(m.name for m in whole)[:3])


def _glob(site: Site) -> str:
    """A pattern for a site and its like in other layers."""
    parts = site.name.split("[")[0].split(".")
    kept = parts[-2:] if site.kind == "parameter" and not parts[-2:][0].isdigit() else parts[-1:]
    return ("*." if len(parts) > 1 else "*") + ".".join(kept)


def _owned(base: HookedModel) -> dict[int, int]:
    """Weights of the base, each once: id -> how many numbers; of a packed layer those that it stands for."""
    out: dict[int, int] = {}
    for at in base.modules.values():
        if at.kind == "linear" and at.slot == "weight" and packed(at.module):
            site = next(s for s in base.every if s.name.split("[")[0] == at.name)
            out[id(at.module)] = site.inp * sum(s.out for s in base.every if s.name.split("[")[0] == at.name)
    skip = {id(p) for at in base.modules.values() if id(at.module) in out for p in at.module._parameters.values()}
    for at in base.modules.values():
        if isinstance(at, Stacked) and at.pack is not None:
            out[id(at)] = at.count * at.out * at.inp
            skip |= {id(p) for n, p in at.module.named_parameters() if n not in _beside(base, at)}
    for p in base.model.parameters():
        if id(p) not in skip:
            out[id(p)] = p.numel()
    return out


def _count(base: HookedModel, site: Site, owned: dict[int, int], covered: set[int]) -> tuple[int, int]:
    """Numbers of a site's weight, and of its bias, that nobody counted yet. Rows of one weight count by their rows."""
    at = base.modules[site.name.split("[")[0]]
    if at.kind in WEIGHTLESS:
        return 0, 0
    out = [0, 0]
    for i, slot in enumerate((at.slot, at.bias_slot)):
        p = at.module._parameters.get(slot) if slot else None
        whole = next((k for k in (id(at), id(at.module)) if k in owned), None)
        key = whole if slot == at.slot and whole is not None else id(p)
        if key not in owned:
            continue
        if site.rows is not None:
            out[i] += (site.out * site.inp) if slot == at.slot else site.out
        elif key not in covered:
            out[i] += owned[key]
        covered |= {key, id(at.module)} if key == id(at) else {key}
    return out[0], out[1]


def _beside(base: HookedModel, at: Stacked) -> set[str | None]:
    """What packed experts' module holds in floating point: biases, and experts that are not packed."""
    mine = [a for a in base.modules.values() if a.module is at.module]
    return {a.bias_slot for a in mine} | {a.slot for a in mine if getattr(a, "pack", None) is None}


def _unknown(base: HookedModel, covered: set[int]) -> str:
    """Classes of the modules whose parameters no site reads."""
    kinds: dict[str, None] = {}
    for m in base.model.modules():
        if any(p is not None and id(p) not in covered for p in m._parameters.values()) and id(m) not in covered:
            kinds[_name(m)] = None
    return ", ".join([*kinds][:4]) + (", ..." if len(kinds) > 4 else "")


def _name(module: nn.Module) -> str:
    return type(module).__name__
