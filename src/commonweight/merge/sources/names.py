"""Modules and their weights in a checkpoint, by name."""

from __future__ import annotations

from ...core import CommonweightError
from ..architecture.blank import NoModel, blank
from ..architecture.naming import homes
from .source import Source, config_of


def bias_of(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def turned(base: Source) -> frozenset[str]:
    """Matrices that lie as (inp, out), as in GPT-2's Conv1D: a bias tells, and in such models a Conv1D has one."""
    pairs = {
        n: (s, base.shapes[bias_of(n)]) for n, s in base.shapes.items() if len(s) == 2 and bias_of(n) in base.shapes
    }
    if not any(b == (w[1],) and w[0] != w[1] for w, b in pairs.values()):
        return frozenset()
    return frozenset(n for n, (w, b) in pairs.items() if b == (w[1],))


def names_in(label: str, base: Source, modules: set[str]) -> dict[str, str]:
    """Module -> its weight in the checkpoint, see `found_in`. Raises: CommonweightError where there is none."""
    found = found_in(base, modules)
    for module in sorted(modules - found.keys()):
        raise lacking(f"{module}.weight", label, base)
    return found


def lacking(weight: str, label: str, base: Source) -> CommonweightError:
    return CommonweightError(
        f"{weight}: {label} has a tenant or adapter that reads it, but {base.label} has no such weight; "
        "give its own base"
    )


def found_in(base: Source, modules: set[str]) -> dict[str, str]:
    """Module -> its weight in the checkpoint, where one has its name; a model in a wrapper, or saved from one, has one
    name more in front.

    Where a file has other names than the modules, as of vision-language models, its config.json tells how transformers
    renames them.
    """
    short = {n.partition(".")[2]: n for n in base.shapes}
    out, renamed = {}, None
    for module in sorted(modules):
        name = f"{module}.weight"
        tail = name.partition(".")[2]
        found = next((x for x in (name, short.get(name), tail, short.get(tail)) if x in base.shapes), None)
        if found is None:
            renamed = _renamed(base) if renamed is None else renamed
            found = renamed.get(name, renamed.get(tail))
        if found is not None:
            out[module] = found
    return out


def _renamed(base: Source) -> dict[str, str]:
    """Tensor of the model that the base's config.json describes -> its name in the files, where it is one of theirs."""
    try:
        model = blank(config_of(base.files[0])) if base.files else None
    except NoModel:
        model = None
    found = {} if model is None else homes(model, base.shapes)
    return {home.module: name for name, home in found.items() if home.whole}
