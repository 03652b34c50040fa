"""Which sites a pattern names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from ...core import CommonweightError, Site, fits
from ...methods import Method
from ..names import named
from ..packs import is_experts, packed_in, runs, slots
from ..weights import known, plain
from .families import FAMILIES, families
from .physical import Physical

Pattern = str | Callable[[str, nn.Module], bool] | None
USUAL, NOT = "...", "!"


class Parts(NamedTuple):
    """Of a pattern that says more than names. usual: whether what is read without a pattern is among it. named: what
    else it names, and without: what it takes away, as patterns of their own; None where it has no such part."""

    usual: bool
    named: str | None
    without: str | None


def without(glob: str) -> str:
    """A glob as it is, where it says what is left out."""
    return glob.removeprefix(NOT).strip()


def parted(pattern: Pattern) -> Parts | None:
    """None where a pattern names its sites and nothing more. One that takes away alone takes it from the usual ones."""
    globs = [g.strip() for g in pattern.split("|")] if isinstance(pattern, str) else []
    less = [without(g) for g in globs if g.startswith(NOT)]
    more = [g for g in globs if g != USUAL and not g.startswith(NOT)]
    if not less and USUAL not in globs:
        return None
    return Parts(USUAL in globs or not more, "|".join(more) if more else None, "|".join(less) if less else None)


def experts(model: nn.Module) -> list[str]:
    """Modules with fused expert weights (a three-dimensional parameter)."""
    return [
        name
        for name, module in named(model)
        if any(p.dim() == 3 for p in module.parameters(recurse=False)) and "expert" in name
    ]


def select(
    pattern: Pattern, every: list[Site], default: list[Site], model: nn.Module, usual: list[Site] | None = None
) -> list[Site]:
    """The sites a pattern names: None is the default set; globs and words of `families` joined by ``|``, among them
    ``...`` for the default set and ``!`` before what is left out; or a callable(name, module).

    usual: what is read without a pattern, where it is less than the default set."""
    usual = default if usual is None else usual
    if pattern is None:
        return usual
    if (parts := parted(pattern)) is not None:
        more = [] if parts.named is None else select(parts.named, every, default, model)
        return joined(parts, [*(usual if parts.usual else []), *more], every, default, model)
    if callable(pattern):
        inner = dict(named(model))
        return [s for s in every if s.kind == "head" or pattern(s.name, _module(inner, s.name.split("[")[0]))]
    if not isinstance(pattern, str):
        raise CommonweightError(f"sites={pattern!r}: wanted None, a pattern such as '*.q_proj|*.v_proj', or a callable")
    globs = [p.strip() for p in pattern.split("|")]
    words = families(model, every, default) if any(g in FAMILIES for g in globs) else {}
    named_so = {s.name for g in globs for s in words.get(g, ())}
    empty = [g for g in globs if g in words and not words[g] and not any(fits(s.name, g) for s in every)]
    if empty:
        there = ", ".join(w for w, found in words.items() if found)
        raise CommonweightError(f"sites={pattern!r}: this model has no {empty[0]} sites; it has {there}")
    chosen = [s for s in every if s.kind == "head" or s.name in named_so or any(fits(s.name, g) for g in globs)]
    if not any(s.kind != "head" for s in chosen):
        for name in experts(model):
            if any(fits(name, g) or fits(f"{name}.gate_up_proj", g) or fits(f"{name}.down_proj", g) for g in globs):
                if packed_fused(name, module := dict(named(model))[name]):
                    raise CommonweightError(
                        f"{name}: its weights are packed ({type(module).__name__}), and packed experts of this form "
                        f"are no sites; {UNPACK}, or adapt other layers, such as '*.q_proj|*.v_proj'"
                    )
                raise CommonweightError(
                    f"{name}: fused expert weights (three-dimensional) are sites by their parameters, for example "
                    "sites='*.experts.gate_up_proj|*.experts.down_proj'; attention has '*.q_proj|*.v_proj'"
                )
        tails = sorted({s.name.rsplit(".", 1)[-1] for s in every if s.kind in ("linear", "expert", "router")})
        words = ", ".join(w for w, found in families(model, every, default).items() if found)
        raise CommonweightError(
            f"the pattern {pattern!r} matches no site; the linear layers end in {', '.join(tails[:12])}; "
            f"words are {words}"
        )
    return chosen


def joined(parts: Parts, found: list[Site], every: list[Site], default: list[Site], model: nn.Module) -> list[Site]:
    """What was found, without what a pattern takes away, in the model's order. Heads of classes stay.

    Raises: CommonweightError where nothing is left.
    """
    away = set() if parts.without is None else {s.name for s in select(parts.without, every, default, model)}
    names = {s.name for s in found if s.kind == "head" or s.name not in away}
    kept = [s for s in every if s.name in names]
    if not any(s.kind != "head" for s in kept):
        raise CommonweightError(
            f"the pattern leaves no site: {parts.without!r} after {NOT!r} takes away all {len(found)} that it has else"
        )
    return kept


def misfit(method: Method, site: Site) -> str:
    """The option of a method's config that does not fit the widths of a site of its kinds; "" where all do."""
    return "" if method.misfit is None or site.kind not in method.kinds else method.misfit(site)


def fitting(method: Method, sites: list[Site]) -> list[Site]:
    """Those whose widths the config fits; where it fits none, or less than half of what is no convolution, all of them,
    for the plan to say so: another option is wanted there, not a tenant of a few layers."""
    kept = [s for s in sites if not misfit(method, s)]
    layers, rest = (sum(s.kind != "conv" for s in found) for found in (sites, kept))
    return kept if kept and 2 * rest >= layers else sites


UNPACK = "load the model with its quantisation config's dequantize=True"


def packed_fused(name: str, module: nn.Module) -> bool:
    """Whether a module holds fused experts that are no plain numbers, in a form that cannot be read here."""
    if not is_experts(name, module):
        return False
    held = {n: module._parameters.get(n) for n in slots(module)}
    odd = [n for n, p in held.items() if p is None or not (plain(p) or p.device.type == "meta")]
    return any(not runs(module) or packed_in(module, n) is None for n in odd)


def unknown_kind(modules: Mapping[str, Physical], site: Site) -> bool:
    """Whether a site is a layer of a class that nobody here has heard of, and that packs its weight."""
    at = modules[site.name.split("[")[0]]
    return at.kind == "linear" and not isinstance(at.module, nn.Linear) and not at.exact and not known(at.module)


def strangers(modules: Mapping[str, Physical], sites: list[Site], method: str) -> CommonweightError:
    """What is said of default sites of an unknown kind."""
    kind = type(modules[sites[0].name.split("[")[0]].module).__name__
    more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
    named = "|".join(f"*{s}" for s in sorted({f".{s.name}".rsplit(".", 1)[-1] for s in sites})[:4])
    return CommonweightError(
        f"{sites[0].name}{more}: {kind} says widths as a linear layer does, but packs its weight in a way that is not "
        f"known here. Name what to adapt, for example sites={named!r}: {method} then works on the outputs there, and a "
        "weight is read by the layer's answers to unit vectors"
    )


def _module(names: Mapping[str, nn.Module], site: str) -> nn.Module:
    """That of a site; for parameters of attention and of experts theirs."""
    return names[site] if site in names else names[site.rpartition(".")[0]]
