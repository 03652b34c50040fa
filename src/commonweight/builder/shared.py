"""Models whose depths read each other's parameters, as classes of transformers.

The functions and the class here, and the forms, are what a folder saved as remote code carries: they need torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Record = dict[str, Any]


def stack_of(model: nn.Module, path: str) -> tuple[str, nn.Module]:
    """(name, list of blocks). path: as the base model has it; a model with a head has the base model inside."""
    inner = str(getattr(model, "base_model_prefix", ""))
    full = f"{inner}.{path}" if inner and hasattr(model, inner) else path
    return full, model.get_submodule(full)


def form(module: nn.Module, kind: type, told: Record, held: Record) -> None:
    """Puts the class of a form before the module's own, and makes its parameters. without: those it has no more.
    held: those that another module has already."""
    like = next(module.parameters())
    own = type(module)
    if not issubclass(own, kind):
        module.__class__ = type(f"{kind.__name__}{own.__name__}", (kind, own), {"__module__": kind.__module__})
    if "options" in told:
        module.grow(**told["options"])  # type: ignore[operator]
    for name in told.get("without", ()):
        delattr(module, name)
    for name, shape in told["parameters"].items():
        if name in held:  # an array that all layers read is there once, also before its numbers are
            setattr(module, name, held[name])
            continue
        number: torch.dtype = getattr(torch, told.get("dtypes", {}).get(name, ""), like.dtype)
        made = torch.zeros(shape, dtype=number, device=like.device)
        trains = name not in told.get("frozen", ())
        setattr(module, name, nn.Parameter(nn.init.normal_(made, std=0.02) if trains else made, requires_grad=trains))


def here(model: nn.Module, name: str) -> str:
    """The name of a module that the model with its head calls `name`; "" where this one has none."""
    names, inner = dict(model.named_modules()), getattr(model, "base_model_prefix", "")
    return next((n for n in (name, name.removeprefix(f"{inner}.")) if n in names), "")


def homes(model: nn.Module, sharing: Record, told: Record) -> dict[str, nn.Module]:
    """The modules that a form is of, by name: one at each depth, or one outside of the blocks."""
    if "depths" not in told:
        return {name: model.get_submodule(name)} if (name := here(model, told["at"])) else {}
    path, _ = stack_of(model, sharing["path"])
    names = [f"{path}.{d}.{told['at']}".rstrip(".") for d in told["depths"]]
    return {n: model.get_submodule(n) for n in names}


def arrange(model: nn.Module, sharing: Record, kinds: dict[str, type]) -> None:
    """Gives the layers of a model their forms. kinds: the classes by name."""
    owners, made = ties(model, sharing), dict[str, Any]()
    for told in (*sharing["forms"], *sharing.get("outside", ())):
        for at, module in homes(model, sharing, told).items():
            own = {key: f"{at}.{key}" for key in told["parameters"]}
            held = {key: made[owners[n]] for key, n in own.items() if owners.get(n) in made}
            form(module, kinds[told["form"]], told, held)
            made |= {n: getattr(module, key) for key, n in own.items()}
    shared: dict[type, Any] = {}
    for module in model.modules():  # what forms tell each other in a forward pass: one object for the whole model
        if (kind := getattr(type(module), "together", None)) is not None:
            module.walk = shared.setdefault(kind, kind())


def ties(model: nn.Module, sharing: Record) -> dict[str, str]:
    """{name: the name it is another one of} for every parameter that an earlier depth, or module, has."""
    path, _ = stack_of(model, sharing["path"])
    out = {}
    for name, owners in sharing["tied"].items():
        for depth, owner in enumerate(owners):
            if owner not in (depth, None):
                there = owner if isinstance(owner, str) else f"{owner}.{name}"
                out[f"{path}.{depth}.{name}"] = f"{path}.{there}"
    for told in sharing.get("outside", ()):
        for name, (home, key) in told.get("like", {}).items():
            if (mine := here(model, told["at"])) and (there := here(model, home)):
                out[f"{mine}.{name}"] = f"{there}.{key}"
    names = dict(model.named_parameters(remove_duplicate=False)) if "also" in sharing else {}
    return {**out, **{a: b for a, b in sharing.get("also", {}).items() if a in names and b in names}}


def freeze(model: nn.Module, sharing: Record) -> None:
    """What layers read and do not train. still: parameters that no depth trains."""
    _, blocks = stack_of(model, sharing["path"])
    for name, p in blocks.named_parameters(remove_duplicate=False):
        if name.partition(".")[2] in sharing.get("still", ()):
            p.requires_grad_(False)
    for told in (*sharing["forms"], *sharing.get("outside", ())):
        for module in homes(model, sharing, told).values() if "frozen" in told else ():
            for name in told["frozen"]:
                module.get_parameter(name).requires_grad_(False)


class Shared:
    """A model of transformers whose depths share parameters as ``config.sharing`` says: path of the blocks; tied,
    {parameter: for each depth the one that has it, or the name there}; forms of layers."""

    kinds: dict[str, type] = {}  # noqa: RUF012
    arranged = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        # some heads ask an Auto class for their base, which is to be the plain one and is arranged below
        own, auto = type(config), config.__dict__.pop("auto_map", None)
        config.__class__ = next(k for k in own.__mro__ if k.__module__.startswith("transformers."))
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        config.__class__ = own
        if auto is not None:
            config.auto_map = auto
        arrange(self, config.sharing, self.kinds)  # type: ignore[arg-type]
        self.know()
        self.tie_weights()

    def know(self) -> None:
        """Tells transformers what is tied: when it loads, and when it saves."""
        self.arranged = True
        found = ties(self, self.config.sharing)  # type: ignore[arg-type,attr-defined]
        self._tied_weights_keys = {**(type(self)._tied_weights_keys or {}), **found}  # type: ignore[attr-defined]
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        if any(hasattr(m, "walk") for m in self.modules()):  # type: ignore[attr-defined]
            self._is_stateful = True  # no cache is cut back: its slots hold different tokens

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Also after loading, when every parameter is a new one."""
        super().tie_weights(*args, **kwargs)  # type: ignore[misc]
        if self.arranged:
            freeze(self, self.config.sharing)  # type: ignore[arg-type,attr-defined]

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Ours hold whatever the config says of embeddings."""
        others = super().get_expanded_tied_weights_keys(all_submodels=all_submodels)  # type: ignore[misc]
        if not self.arranged:  # transformers asks before the forms are there
            return others
        return {**others, **ties(self, self.config.sharing)}  # type: ignore[arg-type,attr-defined]

    def _adjust_bias(self, output_embeddings: Any, input_embeddings: Any) -> None:
        """Of the head alone: transformers would cut the bias of a tied Conv1D, whose weight is (in, out)."""
        if output_embeddings is self.get_output_embeddings():  # type: ignore[attr-defined]
            super()._adjust_bias(output_embeddings, input_embeddings)  # type: ignore[misc]
