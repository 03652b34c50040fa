"""Finding the sites of a model: which modules can be read from, what they do, what they are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Site

Pattern = str | Callable[[str, nn.Module], bool] | None

_ROLES = (  # first match wins; the projection's name in the architectures that transformers carries
    (
        "attn_out",
        r"(attention\.output\.dense|(attn|attention|Attention)\w*\.(o_proj|out_proj|c_proj|o|dense|out_lin|wo|proj))$",
    ),
    ("qkv", r"(c_attn|qkv_proj|query_key_value|qkv|Wqkv|in_proj)$"),
    ("query", r"(q_proj|query|\bq|q_lin|q_a_proj|q_b_proj|wq)$"),
    ("key", r"(k_proj|key|\bk|k_lin|wk)$"),
    ("value", r"(v_proj|value|\bv|v_lin|wv)$"),
    ("gate", r"(gate_proj|wi_1|w3)$"),
    ("up", r"(up_proj|intermediate\.dense|fc1|wi|wi_0|c_fc|lin1|w1|dense_h_to_4h|gate_up_proj)$"),
    ("down", r"(down_proj|output\.dense|fc2|\bwo|mlp\.c_proj|lin2|w2|dense_4h_to_h)$"),
)


def role(name: str) -> str:
    return next((r for r, pattern in _ROLES if re.search(pattern, name)), "")


class Physical:
    """One module as binds see it (`core.Base`): weight as (out, inp), whatever the module's own layout.

    Cost: `weight` is a view. `call` runs the module's own mathematics with other numbers, hooks left aside.
    """

    def __init__(self, name: str, module: nn.Module, kind: str, transposed: bool):
        self.name, self.module, self.kind, self.transposed = name, module, kind, transposed

    @property
    def training(self) -> bool:
        return self.module.training

    @property
    def weight(self) -> Tensor:
        w = self.module.weight
        return w.T if self.transposed else w  # type: ignore[return-value,union-attr]

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, "bias", None)

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kind == "linear":
            return torch.nn.functional.linear(x, weight, bias)
        bare = object.__new__(type(self.module))
        bare.__dict__ = {**self.module.__dict__, "_forward_hooks": {}, "_forward_pre_hooks": {}}
        bare._parameters = {**self.module._parameters, "weight": weight, "bias": bias}  # type: ignore[dict-item]
        if "bias" not in self.module._parameters:
            del bare._parameters["bias"]
        return type(self.module).forward(bare, x)

    def rows(self, rows: tuple[int, int] | None) -> Physical:
        return self if rows is None else Rows(self, rows)


class Rows(Physical):
    """A row range of a fused weight."""

    def __init__(self, whole: Physical, rows: tuple[int, int]):
        super().__init__(whole.name, whole.module, whole.kind, whole.transposed)
        self.range = slice(*rows)

    @property
    def weight(self) -> Tensor:
        return super().weight[self.range]

    @property
    def bias(self) -> Tensor | None:
        b = super().bias
        return None if b is None else b[self.range]


def _is_norm(module: nn.Module) -> bool:
    w = getattr(module, "weight", None)
    return isinstance(w, Tensor) and w.dim() == 1 and type(module).__name__.endswith("Norm")


def blocks(model: nn.Module) -> list[str]:
    """Names of the transformer blocks: the outermost list members that hold two or more linear layers."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(b + ".") for b in found):
            continue
        for i, child in enumerate(module):  # type: ignore[arg-type]
            linears = sum(_linear(m) is not None for m in child.modules())
            if linears >= 2 and not isinstance(child, nn.Linear):
                found.append(f"{name}.{i}")
    return found


def _linear(module: Any) -> tuple[int, int, bool] | None:
    """(out, inp, transposed) of a linear layer, else None."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features, False
    if type(module).__name__ == "Conv1D" and getattr(module, "weight", None) is not None:
        return module.weight.shape[1], module.weight.shape[0], True
    return None


def discover(
    model: nn.Module, fused: Mapping[str, int] | None = None
) -> tuple[dict[str, Physical], list[Site], list[Site]]:
    """(modules by name, every site, the default ones).

    Default: linear projections, norms and outputs of the transformer blocks; all linear layers of a model that
    has no blocks; routers of experts are left out. fused: {pattern: parts} splits a fused weight's rows evenly.
    """
    layers = blocks(model)
    modules: dict[str, Physical] = {}
    every: list[Site] = []
    default: list[Site] = []
    fed_directly = {  # torch's attention reads this weight itself and never calls the module
        f"{name}.out_proj" for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)
    }
    for name, module in model.named_modules():
        if name in fed_directly:
            continue
        inside = not layers or any(name.startswith(b + ".") for b in layers)
        found: list[Site] = []
        if (shape := _linear(module)) is not None:
            out, inp, transposed = shape
            parts = next((n for p, n in (fused or {}).items() if fnmatchcase(name, p)), 1)
            if out % parts:
                raise CommonweightError(f"{name}: {out} rows do not split into {parts} equal parts")
            step = out // parts
            modules[name] = Physical(name, module, "linear", transposed)
            has_bias = getattr(module, "bias", None) is not None
            for i in range(parts):
                rows = None if parts == 1 else (i * step, (i + 1) * step)
                label = name if parts == 1 else f"{name}[{i}]"
                found.append(Site(label, step, inp, "linear", role(name), has_bias, rows))
            inside = inside and not re.search(r"(\.experts\.|\.router|\.gate$|shared_expert_gate$)", name)
        elif _is_norm(module):
            width: int = module.weight.shape[0]  # type: ignore[union-attr,index,assignment]
            modules[name] = Physical(name, module, "norm", False)
            found.append(Site(name, width, 1, "norm", "", getattr(module, "bias", None) is not None))
        elif name in layers and (width := _width(model, module)):
            modules[name] = Physical(name, module, "block", False)
            found.append(Site(name, width, width, "block", "", False))
            inside = True
        elif getattr(module, "is_head_site", False):
            modules[name] = Physical(name, module, "head", False)
            found.append(Site(name, 0, module.width, "head", "", False))  # type: ignore[arg-type]
            inside = True
        every += found
        default += found if inside else []
    return modules, every, default


def _width(model: nn.Module, block: nn.Module) -> int:
    """Hidden width of a block's output: the norms inside it, else the configuration's hidden_size."""
    config = getattr(model, "config", None)
    size = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    if size:
        return int(size)
    return next((m.weight.shape[0] for m in block.modules() if _is_norm(m)), 0)  # type: ignore[union-attr,index,misc]


def experts(model: nn.Module) -> list[str]:
    """Modules with fused expert weights (a three-dimensional parameter)."""
    return [
        name
        for name, module in model.named_modules()
        if any(p.dim() == 3 for p in module.parameters(recurse=False)) and "expert" in name
    ]


def select(pattern: Pattern, every: list[Site], default: list[Site], model: nn.Module) -> list[Site]:
    """The sites a pattern names: None is the default set; globs joined by ``|``; or a callable(name, module)."""
    if pattern is None:
        return default
    if callable(pattern):
        inner = dict(model.named_modules())

        def home(name: str) -> nn.Module:  # experts lie in a parameter of their module
            return inner[name] if name in inner else inner[name.rpartition(".")[0]]

        return [s for s in every if s.kind == "head" or pattern(s.name, home(s.name.split("[")[0]))]
    if not isinstance(pattern, str):
        raise CommonweightError(f"sites={pattern!r}: wanted None, a pattern such as '*.q_proj|*.v_proj', or a callable")
    globs = [p.strip() for p in pattern.split("|")]
    chosen = [s for s in every if s.kind == "head" or any(_match(s.name, g) for g in globs)]
    if not any(s.kind != "head" for s in chosen):
        for name in experts(model):
            if any(
                _match(name, g) or _match(f"{name}.gate_up_proj", g) or _match(f"{name}.down_proj", g) for g in globs
            ):
                raise CommonweightError(
                    f"{name}: fused expert weights (three-dimensional) are sites by their parameters, for example "
                    "sites='*.experts.gate_up_proj|*.experts.down_proj'; attention has '*.q_proj|*.v_proj'"
                )
        tails = sorted({s.name.rsplit(".", 1)[-1] for s in every if s.kind == "linear"})
        raise CommonweightError(
            f"the pattern {pattern!r} matches no site; the linear layers end in {', '.join(tails[:12])}"
        )
    return chosen


def _match(name: str, glob: str) -> bool:
    literal = re.sub(r"\[(\d+)\]$", r"[[]\1]", glob)  # c_attn[1] is a part of a fused weight, not a set of letters
    return fnmatchcase(name, literal) or fnmatchcase(name.split("[")[0], glob)
