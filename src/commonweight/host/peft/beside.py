"""What lies in PEFT's folders beside an adapter: modules_to_save, resized embeddings, trained tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import WEIGHTLESS, CommonweightError, Site
from ...formats.peft import PREFIX, heads, refusals, short
from ...formats.peft.keys import is_slot
from ...methods import Beside
from ..experts import Stacked
from ..hooked import HookedModel
from ..sites import input_table, output_head
from ..tenant import Tenant
from .base import own

DELTA = ".token_adapter.trainable_tokens_delta"


class Found(NamedTuple):
    """held: by our names. values: of its pools. size: entries of the vocabulary, None where the folder does not say.
    sites: those that have other sizes there. tied: tables whose head says the same as they do."""

    held: Beside
    values: dict[str, Tensor]
    size: int | None
    sites: dict[str, Site]
    tied: frozenset[str]


def part(
    base: HookedModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site]
) -> tuple[dict[str, Any], dict[str, Tensor], Found]:
    """(config, tensors) of the adapter alone, and what lay beside it. sites: by the names of the file.

    A module of ``modules_to_save`` is held whole; of a table or head that was saved since it was resized, the rows that
    differ from the base's, unless they are most of them. Keys that are neither stay, for a reader to refuse.
    Raises: CommonweightError for a shape that does not fit.
    """
    rest, weights, biases, alone, rows = {}, {}, {}, {}, {}
    for key, value in tensors.items():
        name = own(key)
        at, _, slot = name.rpartition(".")
        if key.endswith(DELTA) and config["peft_type"] != "TRAINABLE_TOKENS":
            at = key.removeprefix(PREFIX).removesuffix(DELTA)
            if at not in sites:
                raise refusals.tensor(key, f"this base has no table or head {at}; made for another model")
            rows[at] = _ids(config, at), value
        elif is_slot(key):
            rest[key] = value
        elif name in sites and sites[name].kind == "parameter":
            weights[name] = value
        elif slot == "weight" and at in sites and sites[at].kind not in WEIGHTLESS and sites[at].rows is None:
            weights[at] = value
        elif slot == "bias" and at in sites and _alone(at, sites, tensors):
            biases[at] = value
        elif slot == "bias" and at in sites and sites[at].bias and _bare(at, sites, tensors):
            alone[at] = value
        else:
            rest[key] = value
    made = _Made(base, config, sites)
    made.came = {at: k for k in tensors for at in (own(k), own(k).rpartition(".")[0]) if at in weights or at in biases}
    for at, (ids, value) in rows.items():
        made.entries(at, ids, value, weights.pop(at, None))
    for at in [n for n in sites if n in weights or n in biases]:
        made.module(at, weights.get(at), biases.get(at))
    for at, value in alone.items():
        made.bias(at, value)
    found = made.found()
    if config["peft_type"] == "TRAINABLE_TOKENS":
        found = _beyond(config, found)
    left = [f".{own(k)}." for k in rest if not is_slot(k)]
    there = [f".{n}." for n in (*weights, *biases)]
    lost = [n for n in made.saved if any(f".{n}." in k for k in left) or not any(f"{n}." in k for k in there)]
    if any(n in heads.NAMES and n not in lost for n in made.saved):  # PEFT names all of them, and a model has one
        lost = [n for n in lost if n not in heads.NAMES]
    tokens = None if rows else config.get("trainable_token_indices")
    config = {**config, "modules_to_save": lost or None, "trainable_token_indices": tokens}
    return config, rest, found


def _beyond(config: Mapping[str, Any], found: Found) -> Found:
    """Without the rows that the adapter itself trains: what lies under them says nothing."""
    mine = set(config.get("token_indices") or ())
    rows = [(n, [i for i in ids if i not in mine]) for n, ids in found.held.rows]
    if lost := next(((n, ids) for n, ids in rows if ids), None):
        raise refusals.tensor(
            f"{PREFIX}{lost[0]}", f"rows {lost[1][:4]} differ from this base's and are none of token_indices. "
            f"{refusals.MERGE}",
        )  # fmt: skip
    keys = {f"{n}.rows" for n, _ in rows}
    return found._replace(
        held=found.held._replace(rows=()), values={k: v for k, v in found.values.items() if k not in keys}
    )


def spread(base: HookedModel, found: Found) -> Found:
    """The same with nothing that follows: what a head has of its table is said there too."""
    copies, rows, values = [*found.held.copies], [*found.held.rows], dict(found.values)
    for table in found.tied:
        for head in [n for n, across in base.ties[table] if across]:
            if table in found.held.copies:
                copies.append(head)
                values[f"{head}.W"] = values[f"{table}.W"].clone()
                if (s := next(s for s in base.every if s.name == head)).bias:
                    values[f"{s.name}.b"] = base.bias(head).detach().cpu().float()
            elif ids := dict(found.held.rows).get(table):
                rows.append((head, ids))
                values[f"{head}.rows"] = values[f"{table}.rows"].clone()
    order = [s.name for s in base.every]
    held = Beside(
        tuple(sorted(copies, key=order.index)), tuple(sorted(rows, key=lambda r: order.index(r[0]))), found.held.biases
    )
    return found._replace(held=held, values=values)


def _alone(at: str, sites: Mapping[str, Site], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a bias is of a module that is saved whole, and no layer's beside its factors."""
    return sites[at].kind not in WEIGHTLESS and f"{PREFIX}{at}.weight" in tensors


def _bare(at: str, sites: Mapping[str, Site], tensors: Mapping[str, Tensor]) -> bool:
    """Whether nothing else of a layer is in the file: its bias alone was trained, as with bias='all'."""
    known = sites[at].kind in ("linear", "conv", "norm") and sites[at].rows is None
    return known and not any(is_slot(k) and k.startswith(f"{PREFIX}{at}.") for k in tensors)


def _ids(config: Mapping[str, Any], at: str) -> list[int]:
    said = config.get("trainable_token_indices")
    if isinstance(said, dict):  # a head that is tied to the table is not named
        said = next((v for k, v in said.items() if f".{at}".endswith(f".{k}")), next(iter(said.values()), None))
    if not isinstance(said, list) or not said or not all(type(i) is int and i >= 0 for i in said):
        raise CommonweightError(
            f"adapter_config.json: trainable_token_indices is {said!r}; wanted numbers of entries for {at}"
        )
    return said


class _Made:
    """Gathers what is held."""

    def __init__(self, base: HookedModel, config: Mapping[str, Any], sites: Mapping[str, Site]):
        self.base, self.sites = base, sites
        named = config.get("modules_to_save") or ()
        self.saved = [n for n in named if isinstance(n, str)] if isinstance(named, list | tuple) else []
        self.copies: dict[str, dict[str, Tensor]] = {}
        self.rows: dict[str, tuple[tuple[int, ...], Tensor]] = {}
        self.biases: dict[str, Tensor] = {}
        self.came: dict[str, str] = {}  # a module -> a key of it
        self.others: dict[str, tuple[str, Tensor | None]] = {}
        self.sizes: dict[str, int] = {}
        self.grows = base.speaking
        self.follows: set[str] = set()  # tables whose head PEFT keeps tied to them

    def entries(self, at: str, ids: list[int], value: Tensor, under: Tensor | None) -> None:
        """Trained rows; under: the table that they lie on, where it was saved too."""
        s = self.sites[at]
        size, width = _sides(s) if under is None else (len(under), _sides(s)[1])
        if value.shape != (len(ids), width):
            raise refusals.tensor(f"{PREFIX}{at}{DELTA}", f"{tuple(value.shape)}, wanted {(len(ids), width)}")
        if max(ids) >= size:
            if under is not None or not {*range(size, max(ids))} <= {*ids}:
                raise refusals.tensor(f"{PREFIX}{at}{DELTA}", f"entry {max(ids)} of {size}: resize the model first")
            self.sizes[s.name] = max(ids) + 1  # all that this base lacks are in the file
        mine = dict(zip(ids, value))
        if under is not None:
            self.sizes[s.name] = len(under)
            mine = {i: under[i] for i in self._moved(s, under) if i not in mine} | mine
        self.follows.add(s.name)
        self.rows[s.name] = tuple(mine), torch.stack([*mine.values()])

    def module(self, at: str, weight: Tensor | None, bias: Tensor | None) -> None:
        s = self.sites[at]
        if weight is not None and s.name in self.grows and len(weight) != _sides(s)[0]:
            if weight.dim() != 2 or weight.shape[1] != _sides(s)[1]:
                raise refusals.tensor(f"{PREFIX}{at}.weight", f"{tuple(weight.shape)}, this base has {_sides(s)}")
            self.sizes[s.name] = len(weight)
        if self._named(at):
            self.copies[s.name] = self._copy(at, s, weight, bias)
            return
        self.follows.add(s.name)
        moved = None if weight is None or bias is not None or s.name not in self.grows else self._moved(s, weight)
        if moved is not None and weight is not None and 2 * len([i for i in moved if i < _sides(s)[0]]) <= len(weight):
            if moved:
                self.rows[s.name] = tuple(moved), weight[moved]
            return
        self.others[s.name] = at, weight  # of another base, unless it follows a table that is held

    def _named(self, at: str) -> bool:
        """Whether a module, or one around it, is named in modules_to_save."""
        parts = at.split(".")
        return any(".".join(parts[:i]).endswith(n) for i in range(1, len(parts) + 1) for n in self.saved)

    def bias(self, at: str, value: Tensor) -> None:
        """A bias that was trained at a layer without an adapter."""
        s = self.sites[at]
        if tuple(value.shape) != (s.out,):
            raise refusals.tensor(f"{PREFIX}{at}.bias", f"{tuple(value.shape)}, this base has {(s.out,)}")
        self.biases[s.name] = value

    def _moved(self, s: Site, weight: Tensor) -> list[int]:
        """Rows that the base has not, in the coarser precision of the two."""
        mine = self.base.weight(s.name).detach().cpu()
        mine = mine.T if s.kind == "embedding" else mine
        n = min(len(mine), len(weight))
        theirs = weight[:n]
        off = (theirs.to(mine.dtype) != mine[:n]).any(1)
        for d in (torch.bfloat16, torch.float16):
            off &= (mine[:n].to(d).float() != theirs.float()).any(1)
        return [*off.nonzero().flatten().tolist(), *range(n, len(weight))]

    def _copy(self, at: str, s: Site, weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
        physical = self.base.modules[s.name]
        out: dict[str, Tensor] = {}
        if weight is None:
            W = self.base.weight(s.name).detach().cpu().float()
            W = W.T if s.kind == "embedding" else W
        else:
            W = weight if s.kind == "embedding" else physical.laid(weight)
        want = (s.out,) if s.kind == "norm" else _sides(s) if s.kind == "embedding" else (s.out, s.inp)
        want = (self.sizes.get(s.name, want[0]), *want[1:])
        if tuple(W.shape) != want:
            raise refusals.tensor(f"{PREFIX}{at}", f"{tuple(W.shape)}, this base has {want}; made for another model")
        out[f"{s.name}.W"] = W.contiguous()
        if s.bias:
            b = self.base.bias(s.name).detach().cpu().float() if bias is None else bias
            if tuple(b.shape) != (want[0],):
                raise refusals.tensor(f"{PREFIX}{at}.bias", f"{tuple(b.shape)}, wanted {(want[0],)}")
            out[f"{s.name}.b"] = b
        elif bias is not None:
            raise refusals.tensor(f"{PREFIX}{at}.bias", "this base has no bias there; made for another model")
        return out

    def found(self) -> Found:
        base = self.base
        tied = {t for t in self.copies for n, across in base.ties.get(t, ()) if across and self._copied(t, n)}
        if self.others:
            key = self.came[next(iter(self.others.values()))[0]]
            raise refusals.tensor(key, refusals.why(key))
        for table in [n for n in (*self.copies, *self.rows) if n in base.ties]:
            for other, across in base.ties[table]:
                if across and self._same(table, other):
                    tied.add(table)
                    self.copies.pop(other, None)
                    self.rows.pop(other, None)
        order = [s.name for s in base.every]
        copies = tuple(n for n in order if n in self.copies)
        biases = tuple(n for n in order if n in self.biases)
        held = Beside(copies, tuple((n, self.rows[n][0]) for n in order if n in self.rows), biases)
        values = {k: v for n in copies for k, v in self.copies[n].items()}
        values |= {f"{n}.rows": v for n, (_, v) in self.rows.items()}
        values |= {f"{n}.b": v for n, v in self.biases.items()}
        size = self._size()
        grown = {} if size is None else {
            k: s._replace(inp=size) if s.kind == "embedding" else s._replace(out=size)
            for k, s in self.sites.items() if s.name in self.grows
        }  # fmt: skip
        return Found(held, values, size, grown, frozenset(tied))

    def _copied(self, table: str, head: str) -> bool:
        """Whether a head was saved with what its table has, as one that is tied to it is; it is done with then."""
        weight = self.others.get(head, ("", None))[1]
        if weight is None or not torch.equal(weight, self.copies[table][f"{table}.W"]):
            return False
        del self.others[head]
        return True

    def _same(self, table: str, head: str) -> bool:
        """Whether the head says what the table does. PEFT ties trained tokens; modules_to_save it does not."""
        if table in self.copies and head in self.copies:
            return torch.equal(self.copies[table][f"{table}.W"], self.copies[head][f"{head}.W"])
        if table in self.rows and head in self.rows:
            return self.rows[table][0] == self.rows[head][0] and torch.equal(self.rows[table][1], self.rows[head][1])
        return table in self.follows and head not in self.copies and head not in self.rows

    def _size(self) -> int | None:
        """Entries of the vocabulary there. Raises: where the table and the head say two of them."""
        if len({*self.sizes.values()}) > 1:
            raise CommonweightError(
                f"adapter_model.safetensors: {' and '.join(f'{n} has {k} rows' for n, k in self.sizes.items())}; one "
                "vocabulary has one size"
            )
        return next(iter(self.sizes.values()), None)


def relied(base: HookedModel, found: Found) -> int:
    """How many rows of the base an adapter of another vocabulary reads: those that it does not bring."""
    table, head = input_table(base.inner, base.modules), output_head(base.inner, base.modules)
    follows = table is not None and head in {n for n, _ in base.ties.get(table, ())}
    first = 0
    for name in (table, None if follows else head):
        if name is None or name in found.held.copies:
            continue
        mine = set(dict(found.held.rows).get(name, ()))
        n = found.size or 0
        while n and n - 1 in mine:
            n -= 1
        first = max(first, n)
    return first


def _sides(s: Site) -> tuple[int, int]:
    """(entries, width) of a table or a head."""
    return (s.inp, s.out) if s.kind == "embedding" else (s.out, s.inp)


def write(base: HookedModel, tenant: Tenant, prefix: str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what the config says, tensors by whole keys) of what a tenant holds beside its method. kind: the peft_type.

    Raises: CommonweightError for what PEFT cannot say.
    """
    if hindrance := unsaid(base, tenant, kind):
        raise CommonweightError(hindrance)
    config: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    pools = {k: v.detach().cpu() for k, v in tenant.pools.items()}
    held = tenant.beside
    if held.copies:
        config["modules_to_save"] = [_module(base, short(n, prefix)) for n in held.copies]
        config["modules_to_save"] = list(dict.fromkeys(config["modules_to_save"]))
    for name in held.copies:
        at, W = base.modules[name], pools[f"{name}.W"]
        readers = [name] if tenant.apart else [name, *(n for n, _ in base.ties.get(name, ()))]
        for n in readers:
            key = PREFIX + short(n, prefix) + ("" if at.kind == "parameter" else ".weight")
            tensors[key] = W if at.kind == "embedding" else at.native(W)
        if (b := pools.get(f"{name}.b")) is not None:
            tensors[f"{PREFIX}{short(name, prefix)}.bias"] = b
        if len(readers) > 1:
            config["ensure_weight_tying"] = True
    if held.biases:
        config["bias"] = "all"
        tensors |= {f"{PREFIX}{short(n, prefix)}.bias": pools[f"{n}.b"] for n in held.biases}
    if held.rows:
        config["trainable_token_indices"] = {short(n, prefix): list(ids) for n, ids in held.rows}
        tensors |= {f"{PREFIX}{short(n, prefix)}{DELTA}": pools[f"{n}.rows"] for n, _ in held.rows}
    return config, tensors


_OF_TASK = {"SEQ_CLS": heads.NAMES, "TOKEN_CLS": heads.NAMES, "QUESTION_ANS": ("qa_outputs",)}


def before_rows(
    base: HookedModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors) as PEFT has them beside prompts and prefixes: keys without its `model.`, and the head of the
    task, which it names by itself and wants in the file whether a tenant holds it or not."""
    ends = _OF_TASK.get(config["task_type"], ())
    mine = [(n, m) for n, m in base.inner.named_modules() if n.endswith(ends)]
    out = {f"base_model.{n}.{k}": p.detach().cpu() for n, m in mine for k, p in m.named_parameters()}
    out |= {f"base_model.{k.removeprefix(PREFIX)}" if k.startswith(PREFIX) else k: v for k, v in tensors.items()}
    named = [n for n in config.get("modules_to_save") or () if not any(f"{n}.".startswith(f"{h}.") for h, _ in mine)]
    about = getattr(base.inner, "config", None)
    sizes = {"num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads"}  # DistilBERT's: PEFT asks
    sizes = {k: v for k, n in sizes.items() if isinstance(v := getattr(about, n, None), int)}
    return {**sizes, **config, "modules_to_save": named or None}, out


def _module(base: HookedModel, name: str) -> str:
    """The module that PEFT would wrap: of a parameter that a module computes with by itself, that module."""
    return (
        name
        if any(n == name or n.endswith(f".{name}") for n, _ in base.model.named_modules())
        else name.rpartition(".")[0]
    )


def unsaid(base: HookedModel, tenant: Tenant, kind: str) -> str | None:
    """Why a folder of PEFT's of this type cannot say what is held; None where it can."""
    held, at = tenant.beside, f"{tenant.name}: "
    if held.copies and kind in ("TRAINABLE_TOKENS", "ADAPTION_PROMPT", "XLORA"):
        return f"{at}PEFT's {kind} has no modules_to_save"
    if held.biases and kind != "LORA":
        return f"{at}PEFT trains biases of other layers beside LoRA, not beside {kind}"
    if held.rows and kind not in ("LORA", "ADALORA"):
        return f"{at}PEFT trains tokens beside LoRA alone, not beside {kind}"
    odd = next((n for n in held.copies if isinstance(base.modules[n.split("[")[0]], Stacked) or "[" in n), None)
    if odd is not None:
        return f"{at}{odd} is a part of a weight, and PEFT saves whole modules"
    tied = {n: {o for o, _ in base.ties[n]} for n, _ in held.rows if n in base.ties}
    if any(theirs & {*held.copies} for theirs in tied.values()):
        return f"{at}PEFT ties trained tokens of the table to the head, which is held whole here"
    return None
