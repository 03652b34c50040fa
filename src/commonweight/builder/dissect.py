"""What share reads of a model: its blocks and their weights by name and shape, no tensors."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import CommonweightError
from ..host.names import unwrapped
from ..host.sites import blocks as block_names
from ..host.sites import role
from ..host.sites.linear import shape as linear_shape
from ..host.sites.norm import is_norm


class Weight(NamedTuple):
    """One parameter of a block. name: within the block, as ``self_attn.q_proj.weight``.

    kind: "linear" (a matrix of a linear layer) | "bias" (of one) | "norm" | "parameter" (anything else).
    role: of a linear layer, see `core.Site`. out, inp: of a linear layer's matrix, whichever way it is stored.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    role: str = ""
    dtype: str = "float32"
    transposed: bool = False

    @property
    def out(self) -> int:
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def inp(self) -> int:
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def module(self) -> str:
        """The name of the module that holds it, within the block."""
        return self.name.rpartition(".")[0]

    @property
    def part(self) -> str:
        """ "attention" | "ffn" | "" of what is neither, by the role or the name."""
        if self.role in ("query", "key", "value", "qkv", "attn_out") or "attn" in self.name:
            return "attention"
        return "ffn" if self.kind != "norm" and (self.role or "mlp" in self.name) else ""


@dataclass(frozen=True)
class Anatomy:
    """blocks: the weights of each, in the order of depth. rest: every parameter outside of the blocks, tied ones once.
    path: the name of the list of blocks. width: of the hidden states. table, head: the names of the modules of input
    embeddings and of the output layer, "" where there is none; a table that several modules hold is none. takes: the
    names of what a block is given. windows: whether attention is to the last tokens alone, in some of them."""

    blocks: tuple[tuple[Weight, ...], ...]
    rest: tuple[Weight, ...]
    path: str
    width: int
    table: str = ""
    head: str = ""
    takes: tuple[str, ...] = ()
    windows: bool = False

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def masked(self, method: str) -> None:
        """Raises: CommonweightError where attention has more than a mask to say which tokens see which."""
        more = [n for n in ("position_bias", "alibi") if n in self.takes]
        if self.windows or more:
            what = "windows" if self.windows else f"a bias by position ({more[0]})"
            raise CommonweightError(f"{method}: the attention of these blocks has {what}; wanted one to all tokens")


def anatomy(model: nn.Module) -> Anatomy:
    """Of a model, on the meta device too.

    Raises: CommonweightError for a model without a list of blocks, with several of them (an encoder and a decoder), and
    for blocks whose weights are packed.
    """
    if not isinstance(model, nn.Module):
        raise CommonweightError(
            f"{str(model)[:60]!r} is a {type(model).__name__}; wanted a model (of a host, its .model)"
        )
    inner = unwrapped(model)
    path = stack(inner)
    list_ = inner.get_submodule(path)
    if (
        peft := next((n for n, m in list_.named_modules() if type(m).__module__.startswith("peft.")), None)
    ) is not None:
        raise CommonweightError(
            f"{path}.{peft} is a layer of PEFT's, which no config tells of; merge_and_unload() first"
        )
    found = tuple(tuple(_weights(b, f"{path}.{i}")) for i, b in enumerate(list_))  # type: ignore[arg-type,misc]
    inside = {id(p) for p in list_.parameters()}
    rest = {id(p): _weight(n, p, inner) for n, p in inner.named_parameters() if id(p) not in inside}
    config: Any = getattr(inner, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    said = getattr(text, "num_hidden_layers", len(found))
    if said != len(found):
        hint = "; it runs them again and again already: share.depths(model) gives each depth a module of its own"
        raise CommonweightError(
            f"{type(inner).__name__}: its config says {said} layers, it has {len(found)} blocks"
            f"{hint if said > len(found) else ''}"
        )
    width = getattr(text, "hidden_size", None) or max((w.shape[0] for w in found[0] if w.kind == "norm"), default=0)
    head, table = (_named(inner, getattr(inner, f"get_{which}_embeddings", None)) for which in ("output", "input"))
    table = "" if _held_elsewhere(inner, table, head) else table
    takes = tuple(inspect.signature(list_[0].forward).parameters)  # type: ignore[index]
    return Anatomy(found, tuple(rest.values()), path, int(width), table, head, takes, _windows(text))


def _held_elsewhere(model: nn.Module, table: str, head: str) -> bool:
    """Whether a third module holds the table of input tokens, as in T5, so that a change of the one is none of it."""
    own = getattr(model.get_submodule(table), "weight", None) if table else None
    others = ((n, m) for n, m in model.named_modules() if n not in (table, head))
    return own is not None and any(p is own for _, m in others for p in m._parameters.values())


def _windows(text: Any) -> bool:
    kinds = getattr(text, "layer_types", None)
    return bool("sliding_attention" in kinds if kinds else getattr(text, "sliding_window", None))


def _named(model: nn.Module, get: Any) -> str:
    """The name of the module that `get` gives."""
    try:
        module = None if get is None else get()
    except NotImplementedError:
        return ""
    return next((n for n, m in model.named_modules() if m is module and m is not model), "")


def stack(model: nn.Module) -> str:
    """The name of the list of blocks."""
    lists = Counter(n.rpartition(".")[0] for n in block_names(model))
    kind = type(model).__name__
    if not lists:
        raise CommonweightError(f"{kind} has no list of blocks that could be shared")
    if len(lists) > 1:
        told = ", ".join(f"{n} ({k} blocks)" for n, k in lists.items())
        raise CommonweightError(f"{kind} has {len(lists)} lists of blocks, {told}; share reads models with one")
    (path,) = lists
    here = model.get_submodule(path)
    if len(here._modules) != lists[path]:
        raise CommonweightError(
            f"{kind}: {path} has {len(here._modules)} members, of which {lists[path]} are blocks; all of them must be"
        )
    return path


def _weights(block: nn.Module, where: str) -> Iterator[Weight]:
    seen: set[int] = set()
    for name, module in block.named_modules():
        for key, p in module._parameters.items():
            if p is None or id(p) in seen:
                continue
            seen.add(id(p))
            if not p.is_floating_point():
                raise CommonweightError(
                    f"{where}.{name}: its {key} is packed ({p.dtype}); share reads models in floating point"
                )
            yield _one(f"{name}.{key}" if name else key, p, module, name)


def _one(full: str, p: nn.Parameter, module: nn.Module, name: str) -> Weight:
    dtype, form = str(p.dtype).removeprefix("torch."), linear_shape(module)
    key = full.rpartition(".")[2]
    if form is not None and key == "weight" and p.dim() == 2:
        return Weight(full, tuple(p.shape), "linear", role(f".{name}"), dtype, form[2])
    if form is not None and key == "bias":
        return Weight(full, tuple(p.shape), "bias", role(f".{name}"), dtype)
    return Weight(full, tuple(p.shape), "norm" if is_norm(module) else "parameter", "", dtype)


def _weight(name: str, p: torch.Tensor, model: nn.Module) -> Weight:
    home = model.get_submodule(name.rpartition(".")[0])
    return Weight(name, tuple(p.shape), "norm" if is_norm(home) else "parameter", "", str(p.dtype).split(".")[1])
