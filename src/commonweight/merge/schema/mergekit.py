"""mergekit's recipe files (version 0.1.5), by their documentation and by what it does with them.

Read: its 20 methods with their parameters and defaults; models, slices; base_model; parameters at every level with
gradients and filters; dtype, out_dtype; tokenizer_source and tokenizer. A method is run in its mergekit form.
Differs: all arithmetic is in float32, whatever dtype says. Not read: modules, residual_weight, and those in NOTICED,
which are named in a notice. `model+adapter` is a model with a LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core import CommonweightError, unknown
from .. import registry
from .fields import keys, listed, mapping, padding, precision, text
from .settings import Cases, Gradient, Required
from .types import WEIGHT, Input, Recipe, Slice, Vocabulary

KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "modules", "name", "random_seed", "allow_negative_weights",
)  # fmt: skip
NOTICED = {
    "chat_template": "the template of the tokenizer that is taken stays",
    "name": "mergekit-multi's name of a step",
    "random_seed": "what is drawn goes by a method's own seed",
    "allow_negative_weights": "negative weights are taken as they are",
}
_IDLE = {  # parameters that no method of 0.1.5 reads
    "int8_mask": "it saves memory there and changes nothing",
    "embed_slerp": "how rows of embeddings are mapped is said by tokenizer",
    "tokenizer_source": "it stands beside parameters, not in them",
}
_SUM = {"lambda": 1.0, "normalize": False}
_TIES = {"lambda": 1.0, "normalize": True, "density": 1.0}
_DARE = {"lambda": 1.0, "normalize": False, "density": 1.0, "rescale": True}
_CRUMBS = {"lambda": 1.0, "normalize": False, "density": 1.0, "gamma": 0.01}
# method -> its parameters beside weight, with their defaults (...: it has none)
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "slerp": {"t": ...},
    "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    "multislerp": {"normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "task_arithmetic": _SUM,
    "ties": _TIES,
    "dare_linear": _DARE,
    "dare_ties": _DARE,
    "della": {**_DARE, "normalize": True, "epsilon": 0.15},
    "della_linear": {**_DARE, "epsilon": 0.15},
    "breadcrumbs": _CRUMBS,
    "breadcrumbs_ties": _CRUMBS,
    "model_stock": {"filter_wise": False},
    "nearswap": {"t": ...},
    "arcee_fusion": {},
    "passthrough": {"scale": 1.0},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
    "sce": {"select_topk": 1.0},
}
WEIGHTED = {"linear", "nuslerp", "multislerp", *(m for m, p in METHODS.items() if "lambda" in p)}
_EVERY = {WEIGHT, *_IDLE, "density", "rescale", *(p for ps in METHODS.values() for p in ps)}


def read(body: Mapping[str, Any]) -> Recipe:
    """Raises: CommonweightError for what it does not read, by name."""
    keys("recipe", body, KEYS)
    method = body["merge_method"]
    if not isinstance(method, str) or method not in METHODS:
        raise unknown("merge_method", str(method), METHODS)
    if "modules" in body:
        raise CommonweightError(
            "modules: this is not read: which tensors a module has is told by mergekit's own tables. Write a recipe of "
            "ours: method and models for the whole model, and for each module a rule over its tensors' names, as in "
            'rules: [{tensors: "vision_tower.*", method: linear, weights: [0.5, 0.5]}, '
            '{tensors: "model.audio.*", take: ./a}]'
        )
    if ("models" in body) == ("slices" in body):
        raise CommonweightError("recipe: give either models or slices")
    notices = [f"{k} is not used: {NOTICED[k]}" for k in NOTICED if k in body]
    p = _Parameters(method, notices)
    base = _model("base_model", body.get("base_model"))
    if "models" in body:
        inputs = p.inputs("models", body["models"], False)
        # theirs puts the base among the models, where it is none of them
        slices: tuple[Slice, ...] = (
            Slice(inputs if base is None or base in _named(inputs) else (*inputs, Input(base))),
        )
    else:
        slices = tuple(_slice(p, i, s) for i, s in enumerate(listed("slices", body["slices"])))
    if method == "slerp" and base is None:
        raise CommonweightError("slerp: base_model is missing; it is the model at t = 0")
    for where, part in zip(["models"] if "models" in body else [f"slices[{i}]" for i in range(len(slices))], slices):
        _once(where, part, base if method == "slerp" or registry.get(method).base != "none" else None)
    settings = p.settings("parameters", body.get("parameters"))
    dtypes = {key: precision(key, body.get(key)) for key in ("dtype", "out_dtype")}
    if dtypes["dtype"]:
        notices.append(f"dtype: {dtypes['dtype']} is the result's; the arithmetic is in float32")
    return Recipe(
        method, slices, base, settings, dtype=dtypes["out_dtype"] or dtypes["dtype"],
        vocabulary=_vocabulary(body), roles=True, defaults=p.defaults(), notices=tuple(dict.fromkeys(notices)),
    )  # fmt: skip


class _Parameters:
    """Their parameters' names and values as our options'."""

    def __init__(self, method: str, notices: list[str]):
        self.method, self.known, self.notices = method, METHODS[method], notices

    def defaults(self) -> dict[str, Any]:
        found = {k: Required(f"{k} of {self.method}") if v is ... else v for k, v in self.known.items()}
        return {**self._ours("defaults", found), "compat": "mergekit"}

    def settings(self, where: str, body: Any) -> dict[str, Any]:
        if body is None:
            return {}
        found = {}
        for key, value in mapping(where, body).items():
            if key not in _EVERY:
                raise unknown(f"parameter in {where}", str(key), [*self.known, WEIGHT])
            if key in _IDLE:
                self.notices.append(f"{key} is not used: {_IDLE[key]}")
            elif key == "rescale" and key not in self.known and value not in (False, None):
                raise CommonweightError(f"{where}: rescale is {value!r}; {self.method} is not rescaled here")
            elif key not in self.known and not (key == WEIGHT and self.method in WEIGHTED):
                self.notices.append(f"{where}: {key} is not used by {self.method}")
            else:
                found[key] = _setting(f"{where}.{key}", value)
        return self._ours(where, found)

    def inputs(self, where: str, body: Any, layers: bool) -> tuple[Input, ...]:
        out = []
        for i, entry in enumerate(listed(where, body)):
            here = f"{where}[{i}]"
            keys(here, mapping(here, entry), ("model", "parameters", *(("layer_range",) if layers else ())))
            span = entry.get("layer_range")
            if layers and not _is_span(span):
                raise CommonweightError(f"{here}: layer_range is {span!r}; wanted [first, last + 1]")
            model = _model(f"{here}.model", entry.get("model"))
            if model is None:
                raise CommonweightError(f"{here}: model is missing")
            settings = self.settings(f"{here}.parameters", entry.get("parameters"))
            out.append(Input(model, settings, (span[0], span[1]) if span else None))
        return tuple(out)

    def _ours(self, where: str, found: dict[str, Any]) -> dict[str, Any]:
        out = {{"lambda": "scale"}.get(k, k): v for k, v in found.items() if not k.startswith("nuslerp_")}
        if self.method == "nuslerp" and found.keys() & METHODS["nuslerp"]:
            flags = {**METHODS["nuslerp"], **found}
            if not all(isinstance(flags[k], bool) for k in METHODS["nuslerp"]):
                raise CommonweightError(f"{where}: nuslerp_flatten and nuslerp_row_wise must be true or false")
            by_part = "column" if flags["nuslerp_row_wise"] else "row"
            out["over"] = "tensor" if flags["nuslerp_flatten"] else by_part
        return out


def _model(where: str, value: Any) -> str | None:
    """A model by its name, or as mergekit writes it out: {model: {path: P, revision: R}, lora: {path: ...}}."""
    if not isinstance(value, Mapping):
        return text(where, value)
    if "path" in value:
        return _path(where, value)
    keys(where, value, ("model", "lora", "override_architecture"))
    if value.get("override_architecture") is not None:
        raise CommonweightError(
            f"{where}.override_architecture: this is not read; write it into the model's config.json"
        )
    base, lora = (_path(f"{where}.{k}", value.get(k)) for k in ("model", "lora"))
    if base is None:
        raise CommonweightError(f"{where}: model is missing in it")
    return base if lora is None else f"{base}+{lora}"


def _path(where: str, value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return text(where, value)
    keys(where, value, ("path", "revision"))
    path, revision = text(f"{where}.path", value.get("path")), text(f"{where}.revision", value.get("revision"))
    if path is None:
        raise CommonweightError(f"{where}: path is missing in it")
    return path if revision is None else f"{path}@{revision}"


def _is_span(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value) and 0 <= value[0] < value[1]
    )


def _slice(p: _Parameters, i: int, body: Any) -> Slice:
    where = f"slices[{i}]"
    keys(where, mapping(where, body), ("sources", "parameters", "base_model", "residual_weight"))
    for key in ("base_model", "residual_weight"):
        if body.get(key) is not None:
            raise CommonweightError(f"{where}: {key} is not read in a slice")
    return Slice(
        p.inputs(f"{where}.sources", body.get("sources"), True),
        p.settings(f"{where}.parameters", body.get("parameters")),
    )


def _once(where: str, part: Slice, base: str | None) -> None:
    """Theirs knows inputs by their names: each may be there once, and a base that is used must be."""
    names = _named(part.inputs)
    for name in names:
        if names.count(name) > 1:
            raise CommonweightError(f"{where}: {name} appears twice; a mergekit recipe has each model once")
    if base is not None and base not in names:
        raise CommonweightError(
            f"{where}: base_model {base} is not among the sources; list it there with the layer_range to read"
        )


def _named(inputs: tuple[Input, ...]) -> list[str]:
    return [x.model for x in inputs]


def _setting(where: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return _number(value)
    if any(isinstance(v, Mapping) for v in value):
        cases = []
        for i, v in enumerate(value):
            keys(f"{where}[{i}]", mapping(f"{where}[{i}]", v), ("filter", "value"))
            part = v.get("filter")
            cases.append((None if part in (None, "*") else str(part), _setting(f"{where}[{i}].value", v.get("value"))))
        return Cases(tuple(cases))
    return Gradient(tuple(map(_number, value))) if value else None


def _number(value: Any) -> Any:
    """YAML reads 1e-5, without a point, as a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _vocabulary(body: Mapping[str, Any]) -> Vocabulary | None:
    if (source := _model("tokenizer_source", body.get("tokenizer_source"))) is not None:
        return Vocabulary(source)
    found = body.get("tokenizer")
    if found is None:
        return None
    keys("tokenizer", mapping("tokenizer", found), ("source", "tokens", "pad_to_multiple_of"))
    tokens = {}
    for token, entry in mapping("tokenizer.tokens", found.get("tokens") or {}).items():
        source = mapping(f"tokenizer.tokens.{token}", entry).get("source")
        if isinstance(source, Mapping) and "kind" not in source:
            source = _model(f"tokenizer.tokens.{token}.source", source)
        if not isinstance(source, str) or entry.get("force"):
            raise CommonweightError(f"tokenizer.tokens.{token}: only `source: MODEL` is read, without force")
        tokens[str(token)] = source
    source = _model("tokenizer.source", found.get("source")) or "union"
    multiple = padding("tokenizer.pad_to_multiple_of", found.get("pad_to_multiple_of") or 1)
    return Vocabulary(source, tokens, multiple, mean=True)
