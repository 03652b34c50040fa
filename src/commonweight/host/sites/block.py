"""Outputs of the transformer blocks, and where a task's classifier reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ...core import CommonweightError, Site
from ..names import named, unwrapped
from . import linear, parameter
from .found import Found, Whole
from .norm import is_norm
from .physical import Physical


class Block(Physical):
    """The output of a block or of a part of one: of several, the one that is shaped as its input is.

    entry: the layer whose input is the part's, where the part is no module and `module` is its last layer.
    frame: the module that calls that layer. What it hands on may have tokens before rows (Longformer's).
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        width: int,
        kind: str = "block",
        entry: nn.Module | None = None,
        frame: nn.Module | None = None,
    ):
        super().__init__(name, module, kind, False)
        self.width, self.entry, self.frame = width, entry, frame

    def main(self, x: Tensor, y: Any) -> int | None:
        """Which of the outputs holds the states (None: y itself does). Blocks of two streams give the text's first.

        Raises: CommonweightError where none of them has features of the block's width last.
        """
        outputs = y if isinstance(y, tuple | list) else [y]
        fits = [i for i, t in enumerate(outputs) if isinstance(t, Tensor) and t.dim() > 1 and t.shape[-1] == self.width]
        if not fits:
            shapes = ", ".join(str(tuple(t.shape)) if isinstance(t, Tensor) else type(t).__name__ for t in outputs)
            raise CommonweightError(
                f"{self.name}: this {self.kind} gives {shapes}; wanted states with {self.width} features last. Leave "
                "it out, or take a method that changes weights, such as lora"
            )
        if outputs is not y:
            return None
        return next((i for i in fits if y[i].shape == x.shape), fits[0])


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    """The output of a block, and what parameters the block has of its own."""
    if name not in whole.blocks or not (width := _width(whole.model, module)):
        return []
    role = "causal" if _causal(module, whole.model) else ""
    block = Found(Block(name, module, width), Site(name, width, width, "block", role, False), True)
    return [block, *parameter.find(name, module, whole)]


def lists(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """The blocks among the sites, by the list that they stand in, in order."""
    found: dict[str, list[Site]] = {}
    for s in sites:
        if s.kind == "block":
            found.setdefault(s.name.rpartition(".")[0], []).append(s)
    return found


def find_head(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if not getattr(module, "is_head_site", False):
        return []
    site = Site(name, 0, module.width, "head", "", False)  # type: ignore[arg-type]
    return [Found(Physical(name, module, "head", False), site, True)]


def blocks(model: nn.Module) -> list[str]:
    """Names of the transformer blocks: the outermost list members that hold two or more linear layers."""
    return blocks_of(dict(named(model)))


def blocks_of(names: Mapping[str, nn.Module], *kinds: Callable[[nn.Module], object]) -> list[str]:
    """kinds: what counts beside linear layers; each gives None for a module that is not of it."""
    linears = [n for n, m in names.items() if any(k(m) is not None for k in (linear.shape, *kinds))]
    found: list[str] = []
    for name, module in names.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(b + ".") for b in found):
            continue
        start = f"{name}." if name else ""
        for key in module._modules:
            if sum(n.startswith(f"{start}{key}.") for n in linears) >= 2:
                found.append(f"{start}{key}")
    return found


def _causal(block: nn.Module, model: nn.Module) -> bool:
    """Whether a token sees those before it alone: as attention says it, else where a model of one stack speaks."""
    if any(getattr(m, "is_causal", False) is True or getattr(m, "is_decoder", False) is True for m in block.modules()):
        return True
    inner: Any = unwrapped(model)
    speaks = getattr(inner, "can_generate", None)
    paired = getattr(getattr(inner, "config", None), "is_encoder_decoder", False)
    return bool(speaks is not None and speaks() and not paired)


def _width(model: nn.Module, block: nn.Module) -> int:
    """Hidden width of a block's output: as the model says it, else by a norm inside that is as wide as what some layer
    gives. 0 for blocks of images, which have their channels first."""
    inner = unwrapped(model)
    config = getattr(inner, "config", None)
    said = [getattr(config, n, None) for n in ("hidden_size", "d_model")] + [getattr(inner, "inner_dim", None)]
    if size := next((s for s in said if isinstance(s, int) and s), 0):
        return size
    if any(isinstance(m, nn.Conv2d | nn.Conv3d) for m in block.modules()):
        return 0
    norms: list[int] = [m.weight.shape[0] for m in block.modules() if is_norm(m)]  # type: ignore[union-attr,index,misc]
    given = {found[0] for m in block.modules() if (found := linear.shape(m)) is not None}
    return next((w for w in norms if w in given), next(iter(norms), 0))
