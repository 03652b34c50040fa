"""Which tensors of a checkpoint are linear layers, told by the model's own modules: those that PEFT's LoRA wraps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ...core import CommonweightError
from ...host.sites import discover
from ..architecture.blank import NoModel, blank
from ..architecture.naming import homes
from ..sources.names import turned
from ..sources.source import Source, config_of

_NO_LINEAR = re.compile(r"embed|(^|\.)(wte|wpe)\.")


class Linear(NamedTuple):
    """A linear layer. turned: its weight lies as (inp, out), as in GPT-2's Conv1D."""

    module: str
    turned: bool


class Linears(NamedTuple):
    """known: a weight's name in the checkpoint -> its layer. modules: every module's name. guessed: why names and
    shapes had to tell which are linear, "" where the model's modules did. absent: how many linear layers of the model
    have no tensor in the checkpoint, and how many it has."""

    known: Mapping[str, Linear]
    modules: frozenset[str]
    guessed: str = ""
    absent: tuple[int, int] = (0, 0)


def linears(source: Source, *given: Any) -> Linears:
    """source: the checkpoint. given: what may tell, the first that does: a module, or a folder with a config.json, of
    which the model is made on the meta device: no weight is read, nothing is downloaded, no code of a model's own runs.

    A module in the config's architecture has another name than in the file where one of them has the name of the body
    in front. Where nothing tells, every matrix called ``weight`` counts as linear whose name is not that of an
    embedding; a bias tells which way it lies.
    Raises: CommonweightError where no linear layer of the model has a tensor in the checkpoint.
    """
    reasons = []
    for one in given:
        made = one if isinstance(one, nn.Module) else _made(one)
        if isinstance(made, nn.Module):
            return _of(made, source)
        reasons.append(made)
    names = [n for n, s in source.shapes.items() if n.endswith(".weight") and len(s) == 2 and not _NO_LINEAR.search(n)]
    lying = turned(source)
    modules = {n.removesuffix(".weight") for n in source.shapes if n.endswith(".weight")}
    known = {n: Linear(n.removesuffix(".weight"), n in lying) for n in names}
    return Linears(known, frozenset(modules), next((r for r in reasons if r), "there is no config.json"))


def _made(model: Any) -> nn.Module | str:
    """The model on the meta device, or why there is none."""
    config = config_of(Path(model)) if isinstance(model, str | Path) else {}
    try:
        return blank(config) if config else ""
    except NoModel as e:
        folder = Path(model) if Path(model).is_dir() else Path(model).parent
        return f"{folder.name}/{e}"


def _of(model: nn.Module, source: Source) -> Linears:
    found, _, _ = discover(model)
    layers = {n: at.transposed for n, at in found.items() if at.kind == "linear"}
    view = {n: h.module for n, h in homes(model, source.shapes).items() if h.whole}
    known = {}
    for name in source.shapes:
        module = view.get(name, "").removesuffix(".weight")
        if module in layers and name.endswith(".weight") and len(source.shapes[name]) == 2:
            known[name] = Linear(module, layers[module])
    names: dict[int, list[str]] = {}
    for n, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(n)
    own = {ns[0].removesuffix(".weight") for ns in names.values() if len(ns) == 1} & layers.keys()  # no tied head
    absent = own - {layer.module for layer in known.values()}
    if own and absent == own and not known:
        raise CommonweightError(
            f"{source.label}: no tensor is a linear layer of {type(model).__name__}, which has {len(own)}, {min(own)} "
            "among them; give the config.json of this model, or a module whose names are the file's"
        )
    return Linears(known, frozenset(n for n, _ in model.named_modules() if n), absent=(len(absent), len(own)))
