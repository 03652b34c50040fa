"""Finding the sites of a model: which modules can be read from, what they do, what they are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Site
from .names import named, unwrapped
from .weights import dense, known, packed, stored, widths

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
    """One module as binds see it (`core.Base`): weight as (out, inp), whatever the module's own layout and storage.

    slot, bias_slot: the attributes that hold them; None for a bias that is not the site's own. Cost: `weight` is a view
    where the storage is plain, else see `weights.dense`. `call` runs the module's own mathematics with other numbers,
    hooks left aside.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        kind: str,
        transposed: bool,
        slot: str = "weight",
        bias_slot: str | None = "bias",
    ):
        self.name, self.module, self.kind, self.transposed = name, module, kind, transposed
        self.slot, self.bias_slot = slot, bias_slot

    @property
    def training(self) -> bool:
        return self.flagged.training

    @property
    def flagged(self) -> nn.Module:
        """The module whose training mode is the site's; of attention's own parameters the output projection."""
        return self.module.out_proj if isinstance(self.module, nn.MultiheadAttention) else self.module

    @property
    def key(self) -> str:
        """The weight's name in a state dict."""
        return f"{self.home}{self.slot}"

    @property
    def home(self) -> str:
        """What stands before the names of its parameters."""
        name = self.name if self.slot == "weight" else self.name.rpartition(".")[0]
        return f"{name}." if name else ""

    @property
    def weight(self) -> Tensor:
        w = dense(self.module, self.slot, self.name)
        return w.T if self.transposed else w

    @property
    def bias(self) -> Tensor | None:
        if self.bias_slot is None or not isinstance(stored(self.module, self.bias_slot), Tensor):
            return None
        return dense(self.module, self.bias_slot, self.name)

    def steady(self, places: Tensor) -> Tensor:
        """Numbers of the weight, read row after row, for fingerprints."""
        w = dense(self.module, self.slot, self.name, steady=True)
        return numbers(w.T if self.transposed else w, places)

    @property
    def exact(self) -> bool:
        """Whether the layer computes with `weight` itself; a packed one does with codes, and may round its input."""
        return self.kind != "linear" or self.slot != "weight" or not packed(self.module)

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kind == "linear":
            return torch.nn.functional.linear(x, weight, bias)
        plain = getattr(type(self.module), "commonweight_plain", type(self.module))  # without a door before its weight
        bare = object.__new__(plain)
        bare.__dict__ = {**self.module.__dict__, "_forward_hooks": {}, "_forward_pre_hooks": {}}
        bare._parameters = {**self.module._parameters, "weight": weight, "bias": bias}  # type: ignore[dict-item]
        if "bias" not in self.module._parameters:
            del bare._parameters["bias"]
        return plain.forward(bare, x)

    def rows(self, rows: tuple[int, int] | None) -> Physical:
        return self if rows is None else Rows(self, rows)


class Rows(Physical):
    """A row range of a fused weight."""

    def __init__(self, whole: Physical, rows: tuple[int, int]):
        super().__init__(whole.name, whole.module, whole.kind, whole.transposed, whole.slot, whole.bias_slot)
        self.range = slice(*rows)

    @property
    def weight(self) -> Tensor:
        return super().weight[self.range]

    @property
    def bias(self) -> Tensor | None:
        b = super().bias
        return None if b is None else b[self.range]

    def steady(self, places: Tensor) -> Tensor:
        w = dense(self.module, self.slot, self.name, steady=True)
        return numbers((w.T if self.transposed else w)[self.range], places)


def numbers(weight: Tensor, places: Tensor) -> Tensor:
    """Those at these places of a vector, or of a matrix row after row."""
    places = places.to(weight.device)
    return weight[places] if weight.dim() == 1 else weight[places // weight.shape[1], places % weight.shape[1]]


def _is_norm(module: nn.Module) -> bool:
    w = getattr(module, "weight", None)
    return isinstance(w, Tensor) and w.dim() == 1 and type(module).__name__.endswith("Norm")


def blocks(model: nn.Module) -> list[str]:
    """Names of the transformer blocks: the outermost list members that hold two or more linear layers."""
    return _blocks(dict(named(model)))


def _blocks(names: Mapping[str, nn.Module]) -> list[str]:
    linears = [n for n, m in names.items() if _linear(m) is not None]
    found: list[str] = []
    for name, module in names.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(b + ".") for b in found):
            continue
        start = f"{name}." if name else ""
        for key in module._modules:
            if sum(n.startswith(f"{start}{key}.") for n in linears) >= 2:
                found.append(f"{start}{key}")
    return found


def _linear(module: Any) -> tuple[int, int, bool] | None:
    """(out, inp, transposed) of a layer that says its widths as linear ones do, packed ones too, else None."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features, False
    if type(module).__name__ == "Conv1D" and isinstance(w := stored(module), Tensor):
        return w.shape[1], w.shape[0], True
    if (shape := widths(module)) is None or any(widths(m) for m in module.modules() if m is not module):
        return None
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    own += [v for v in vars(module).values() if isinstance(v, Tensor)]
    return (*shape, False) if own and all(t.dim() < 3 for t in own) else None


def _attention(name: str, module: nn.MultiheadAttention) -> list[tuple[Physical, Site]]:
    """What torch's attention multiplies its input with: parameters of its own, which are no modules."""
    out = []
    for slot, bias in (
        ("in_proj_weight", "in_proj_bias"), ("q_proj_weight", None), ("k_proj_weight", None), ("v_proj_weight", None)
    ):  # fmt: skip
        w = module._parameters.get(slot)
        if w is None:
            continue
        label = f"{name}.{slot.removesuffix('_weight')}" if name else slot.removesuffix("_weight")
        at = Physical(label, module, "linear", False, slot, bias)
        has_bias = bias is not None and module._parameters.get(bias) is not None
        out.append((at, Site(label, w.shape[0], w.shape[1], "linear", role(label), has_bias)))
    return out


def discover(
    model: nn.Module, fused: Mapping[str, int] | None = None
) -> tuple[dict[str, Physical], list[Site], list[Site]]:
    """(modules by name, every site, the default ones).

    Default: linear projections, norms and outputs of the transformer blocks; all linear layers of a model that
    has no blocks; routers of experts are left out. fused: {pattern: parts} splits a fused weight's rows evenly.
    Names are those of the plain model, whatever is wrapped around it or its layers; adapters of PEFT are no sites.
    """
    names = dict(named(model))
    layers = _blocks(names)
    modules: dict[str, Physical] = {}
    every: list[Site] = []
    default: list[Site] = []

    def split(at: Physical, site: Site) -> list[Site]:
        parts = next((n for p, n in (fused or {}).items() if fnmatchcase(site.name, p)), 1)
        if site.out % parts:
            raise CommonweightError(f"{site.name}: {site.out} rows do not split into {parts} equal parts")
        modules[site.name], step = at, site.out // parts
        if parts == 1:
            return [site]
        ranges = [(i * step, (i + 1) * step) for i in range(parts)]
        return [site._replace(name=f"{site.name}[{i}]", out=step, rows=r) for i, r in enumerate(ranges)]

    for name, module in names.items():
        inside = not layers or any(name.startswith(b + ".") for b in layers)
        found: list[Site] = []
        if (shape := _linear(module)) is not None:
            out, inp, transposed = shape
            has_bias = isinstance(stored(module, "bias"), Tensor)
            at = Physical(name, module, "linear", transposed)
            found += split(at, Site(name, out, inp, "linear", role(name), has_bias))
            inside = inside and not re.search(r"(\.experts\.|\.router|\.gate$|shared_expert_gate$)", name)
        elif isinstance(module, nn.MultiheadAttention):
            found += [s for pair in _attention(name, module) for s in split(*pair)]
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
    config = getattr(unwrapped(model), "config", None)
    size = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    if size:
        return int(size)
    return next((m.weight.shape[0] for m in block.modules() if _is_norm(m)), 0)  # type: ignore[union-attr,index,misc]


def experts(model: nn.Module) -> list[str]:
    """Modules with fused expert weights (a three-dimensional parameter)."""
    return [
        name
        for name, module in named(model)
        if any(p.dim() == 3 for p in module.parameters(recurse=False)) and "expert" in name
    ]


def select(pattern: Pattern, every: list[Site], default: list[Site], model: nn.Module) -> list[Site]:
    """The sites a pattern names: None is the default set; globs joined by ``|``; or a callable(name, module)."""
    if pattern is None:
        return default
    if callable(pattern):
        inner = dict(named(model))
        return [s for s in every if s.kind == "head" or pattern(s.name, _module(inner, s.name.split("[")[0]))]
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


def unknown_kind(modules: Mapping[str, Physical], site: Site) -> bool:
    """Whether a site is a layer of a class that nobody here has heard of, and that packs its weight."""
    at = modules[site.name.split("[")[0]]
    return site.kind == "linear" and not isinstance(at.module, nn.Linear) and not at.exact and not known(at.module)


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


def _match(name: str, glob: str) -> bool:
    literal = re.sub(r"\[(\d+)\]$", r"[[]\1]", glob)  # c_attn[1] is a part of a fused weight, not a set of letters
    return fnmatchcase(name, literal) or fnmatchcase(name.split("[")[0], glob)
