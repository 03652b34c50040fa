"""Tensors that some files have and others leave out: heads tied to the embedding, and buffers that are derived."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architecture.blank import NoModel, known
from .source import Source, held

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
HEAD = "lm_head.weight"
_TABLES = (*EMBEDDINGS, "tok_embeddings.weight", "embed_in.weight", "shared.weight")
_HEADS = (HEAD, "decoder.weight", "embed_out.weight", *EMBEDDINGS)  # T5 has its table under several names
# what older versions of transformers wrote, and newer ones make anew: no parameter of any model
_DERIVED = re.compile(r"(^|\.)(inv_freq|cos_cached|sin_cached|masked_bias|position_ids|token_type_ids)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")  # of a causal mask, (1, 1, n, n); a bias has one dimension
_STEP = 1 << 20


class Settled(NamedTuple):
    """sources: of the same names as before. untied: heads that are written for models that had none of their own."""

    sources: dict[str, Source]
    untied: bool
    notices: tuple[str, ...]


def settle(sources: Mapping[str, Source], ties: Callable[[str], bool]) -> Settled:
    """All with the same heads and buffers. A head that equals the embedding wherever it is, is left out where others
    have none; one that does not, is the embedding for models whose config ties the two (`ties`, by their names here).
    Derived buffers are left out where others have none.

    Cost: embeddings and heads of models that differ in having one are read once.
    """
    found, notices = dict(sources), list[str]()
    names = [set(s.shapes) for s in found.values()]
    common = set.intersection(*names) if names else set()
    odd = set.union(*names) - common if names else set()
    untied, dropped = False, set[str]()
    for name in sorted(odd):
        having = {n: s for n, s in found.items() if name in s.shapes}
        if _derived(name, next(iter(having.values())).shapes[name]):
            dropped.add(name)
        elif name.endswith(_HEADS):
            tables = [
                t for t in sorted(common) if t.endswith(_TABLES) and all(_like(s, name, t) for s in having.values())
            ]
            if any(all(twins(s, name, t) for s in having.values()) for t in tables):
                dropped.add(name)
            elif tables and all(ties(n) for n in found if n not in having):
                for n in found.keys() - having.keys():
                    found[n] = Aliased(found[n], {name: tables[0]})
                untied = True
                others = ", ".join(sorted(sources.keys() - having.keys()))
                notices.append(f"{name}: {others} ties it to {tables[0]}, which stands for it; the result has its own")
    for source in found.values():
        if dropped & source.shapes.keys():
            source.shapes = {n: s for n, s in source.shapes.items() if n not in dropped}
    if buffers := sorted(n for n in dropped if not n.endswith(_HEADS)):
        notices.append(
            f"{len(buffers)} buffers that not all models have are left out ({buffers[0]}): a model makes them"
        )
    return Settled(found, untied, tuple(notices))


def tied(config: Mapping[str, Any]) -> bool:
    """Whether a model of this config has its head tied to its embedding; where the config does not say, its class."""
    said = config.get("tie_word_embeddings")
    if said is None:
        try:
            read = known(config)
            said = getattr(read, "tie_word_embeddings", None)
            said = getattr(read.get_text_config(), "tie_word_embeddings", True) if said is None else said
        except (NoModel, ValueError):
            return False
    return bool(said)


def _derived(name: str, shape: Sequence[int]) -> bool:
    return _DERIVED.search(name) is not None or (_MASK.search(name) is not None and len(shape) > 2)


def _like(source: Source, a: str, b: str) -> bool:
    shape = source.shapes[a]
    return a != b and len(shape) == 2 and shape == source.shapes[b] and source.dtypes[a] == source.dtypes[b]


def twins(source: Source, a: str, b: str) -> bool:
    """Whether two tensors have the same numbers, and not all of them one: constants are alike by chance."""
    if not _like(source, a, b):
        return False
    count, varied = 1, False
    for n in source.shapes[a]:
        count *= n
    for i in range(0, count, _STEP):
        x, y = (source.flat(n, i, min(_STEP, count - i)) for n in (a, b))
        if not torch.equal(x, y):
            return False
        varied = varied or bool((x != source.flat(a, 0, 1)).any())
    return varied


class Aliased:
    """A source with tensors of its own under further names too. aliases: name -> the name that it has them by."""

    def __init__(self, own: Source, aliases: Mapping[str, str]):
        self.label, self.files, self._own, self._aliases = own.label, own.files, own, dict(aliases)
        more = {n: own.shapes[t] for n, t in aliases.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = {**own.shapes, **more}
        self.dtypes: Mapping[str, torch.dtype] = {**own.dtypes, **{n: own.dtypes[t] for n, t in aliases.items()}}
        kept = getattr(own, "kept", own.dtypes)
        self.kept: Mapping[str, torch.dtype] = {**kept, **{n: kept[t] for n, t in aliases.items()}}
        self.stored = getattr(own, "stored", False)

    def _name(self, name: str) -> str:
        return self._aliases.get(name, name)

    def flat(self, name: str, start: int, count: int) -> Tensor:
        return self._own.flat(self._name(name), start, count)

    def read(self, name: str) -> Tensor:
        return self._own.read(self._name(name))

    def where(self, name: str) -> str:
        return self._own.where(self._name(name))

    def ahead(self, name: str) -> None:
        self._own.ahead(self._name(name))

    def held(self, count: int, threads: int) -> int:
        return held(self._own, count, threads)
