"""What PEFT calls the modules of a host's model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from ...core import Site
from ...formats import peft
from ...formats.peft.keys import bare
from ..hooked import HookedModel
from ..names import named
from .renamed import old_names


class View(NamedTuple):
    """A way from the host's names to those of a file: `add` in place of `strip` before them. old: modules that the file
    calls as they were called before."""

    strip: str = ""
    add: str = ""
    old: Mapping[str, str] = MappingProxyType({})

    def __call__(self, name: str) -> str:
        name = bare(name)
        return self.old.get(name) or self.add + name.removeprefix(self.strip)


def sites(base: HookedModel, view: View) -> dict[str, Site]:
    """The host's sites by the names of a file; a head that a classifier put there has none."""
    return {view(s.name): s for s in base.every if s.kind != "head"}


def parameters(base: HookedModel, view: View) -> dict[str, Tensor]:
    """The base's parameters by the names of a file, those that modules share under each of their names."""
    return {
        f"{view(n)}.{k}" if n else k: p
        for n, m in named(base.model, once=False)
        for k, p in m._parameters.items()
        if p is not None
    }


def view_of(base: HookedModel, tensors: Mapping[str, Tensor]) -> View:
    """The view whose names fit most keys.

    An adapter may have been trained on the model with a head that it does not have here, or the other way about:
    ``model.layers.0`` of a language model is ``layers.0`` of its body.
    """
    prefix, body = within(base), _body(base.inner)
    views = [View(prefix), View()]
    if body:
        views += [View(prefix, f"{body}."), View(f"{prefix}{body}.")]
    parts = [key.removeprefix(peft.PREFIX).split(".") for key in tensors]

    modules = [n for n, _ in base.model.named_modules() if n]

    def fitting(view: View) -> list[int]:
        """How much of each key is a module's name."""
        known = {view(n) for n in modules}
        return [max((i for i in range(1, len(p)) if ".".join(p[:i]) in known), default=0) for p in parts]

    view = max(views, key=lambda v: sum(fitting(v)))
    leaves = {bare(n) for n, m in base.model.named_modules() if m._parameters}
    known = {view(n) for n in leaves}
    unknown = [p for p, i in zip(parts, fitting(view)) if ".".join(p[:i]) not in known]
    return view._replace(old=old_names(base, unknown)) if unknown else view


def within(base: HookedModel) -> str:
    """Where the model that PEFT would see stands inside the host's: "" unless something was put around it.

    ``module.`` of a wrapper. A head beside the model: of an encoder-decoder a classifier keeps the encoder alone, under
    the name that it has in the whole model.
    """
    names = [bare(s.name) for s in base.every if s.kind == "linear"]
    wrapped = "module." if names and all(n.startswith("module.") for n in names) else ""
    whole = getattr(getattr(base.inner, "config", None), "is_encoder_decoder", False)
    if whole or not any(s.kind == "head" for s in base.every):
        return wrapped
    homes = {n.removeprefix(wrapped).split(".")[0] for n in names}
    return f"{wrapped}{homes.pop()}." if len(homes) == 1 else wrapped


def tops(names: Iterable[str]) -> set[str]:
    """First parts of names."""
    return {n.split(".")[0] for n in names}


def _body(model: nn.Module) -> str:
    """The attribute under which models with a head hold this one, for example "model" or "bert"."""
    return next((m.base_model_prefix for m in model.modules() if getattr(m, "base_model_prefix", "")), "")  # type: ignore
