"""Models whose vocabularies differ: rows of embeddings, heads and biases are mapped by token as they are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, counted
from ...formats.native import template
from ..sources.source import Source, config_of, held
from .reading import FILE, alike, tokenizer_of, tokens_of, vocabulary_file

_OF_TOKENS = re.compile(
    r"(.*\.)?(embed|embeddings?|embed_tokens|tok_embeddings|tokens_embed|word_embeddings?|wte|shared|embed_in|embed_out"
    r"|lm_head|lm_loss|decoder|predictions)\.(weight|bias)|final_logits_bias"
)


class Vocabulary(NamedTuple):
    """Of the result. rows: of its embedding, padding included; text: its tokenizer.json."""

    tokens: Mapping[str, int]
    rows: int
    text: str


def join(lead: Path, others: Sequence[Path], union: bool, multiple: int) -> Vocabulary:
    """The lead's vocabulary; union: and after it every token of the other folders, in their order, as added tokens:
    those that are special there, or strip spaces, do so here."""
    if multiple < 1:
        raise CommonweightError(f"tokenizer: rows are padded to a multiple of {multiple}; it must be at least 1")
    if (tokenizer := tokenizer_of(lead)) is None:
        raise CommonweightError(f"{lead}: has no {FILE}, by which rows are mapped; save its fast tokenizer there")
    for folder in others if union else ():
        if (other := tokenizer_of(folder)) is None:
            continue
        known = tokenizer.get_vocab(with_added_tokens=True)
        added = {t.content: t for t in other.get_added_tokens_decoder().values()}
        for token, _ in sorted(other.get_vocab(with_added_tokens=True).items(), key=lambda x: x[1]):
            if token not in known:
                about = added.get(token, token)
                special = getattr(about, "special", False)
                (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([about])
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    rows = -(-(1 + max(tokens.values())) // multiple) * multiple
    return Vocabulary(tokens, rows, json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False))


def tables(
    joined: Vocabulary, models: Mapping[str, Mapping[str, int]], base: str | None, given: Mapping[str, str]
) -> dict[str, dict[int, list[tuple[str, int]]]]:
    """Model -> row of the result -> rows whose mean it is there: its own, where it has the token; else those of the
    model named for it, of the only one or of the base that has it, or of all that have it; none: zeros.

    As mergekit 0.1.5 has it (tokenizer_source, tokens without force).
    """
    for token, model in given.items():
        if token not in joined.tokens:
            raise CommonweightError(f"tokenizer.tokens: {token!r} is not in the result's vocabulary")
        if model not in models or token not in models[model]:
            raise CommonweightError(
                f"tokenizer.tokens: {token!r} from {model}, which is not merged or has no such token"
            )
    out: dict[str, dict[int, list[tuple[str, int]]]] = {m: {} for m in models}
    for token, row in joined.tokens.items():
        having = [(m, tokens[token]) for m, tokens in models.items() if token in tokens]
        named = given.get(token, base if base is not None and token in models[base] else None)
        donors = having if named is None else [(named, models[named][token])]
        for m, tokens in models.items():
            out[m][row] = [(m, tokens[token])] if token in tokens else donors
    return out


def sizes(sources: Mapping[str, Source]) -> dict[str, int]:
    """Model -> vocab_size in the config.json that lies with its weights (of a base, where an adapter is on it)."""
    out = {}
    for name, source in sources.items():
        config = config_of(source.files[0]) if source.files else {}
        first = [config, config.get("text_config")]  # before other parts, such as BLIP-2's qformer_config
        said = [p["vocab_size"] for p in first if isinstance(p, Mapping) and p.get("vocab_size") is not None]
        parts = [c["vocab_size"] for c in config.values() if isinstance(c, Mapping) and c.get("vocab_size") is not None]
        found = said[:1] or parts
        if not found or type(found[0]) is not int or any(n != found[0] for n in found):
            has = " and ".join(dict.fromkeys(map(repr, found))) or "no"
            raise CommonweightError(
                f"{source.label}: its config.json has {has} vocab_size; wanted one number, by which tensors with a "
                "row for each token are found"
            )
        out[name] = found[0]
    return out


def axes(sources: Mapping[str, Source]) -> dict[str, int]:
    """Tensor -> its dimension (0, or 1 of two) that has an entry for each token: that of vocab_size in all models.

    Embeddings, heads and their biases, by no name. Where all models have the same vocab_size and it is another size of
    theirs too (Mistral's positions, of which it has no tensor), names must agree with it, or it is one tensor's alone.
    Raises: CommonweightError where there is no such tensor, and where that leaves one of which it cannot be told.
    """
    size = sizes(sources)
    shapes: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    for model, source in sources.items():
        for name, shape in source.shapes.items():
            shapes.setdefault(name, []).append((size[model], shape))
    out = {n: axis for n, all in shapes.items() if (axis := _axis(all)) is not None}
    first = next(iter(sources.values()))
    rows, label = next(iter(size.values())), first.label
    if not out:
        raise CommonweightError(
            f"tokenizer: no tensor of {label} has {counted(rows, 'row')}, the vocab_size in its config.json, in "
            "all models; give "
            "each its own config.json"
        )
    if len(set(size.values())) == 1:
        kinds = [key for key, number in map(template, out) if number is not None]
        repeated = next((k.replace("{}", "*") for k in kinds if kinds.count(k) > 1), None)
        also, unsure = _also(config_of(first.files[0]), rows), _unsure(out, first.shapes)
        if other := repeated or (f"{also} (its tensor: {unsure})" if also and unsure else None):
            raise CommonweightError(
                f"tokenizer: vocab_size of {label} is {rows}, and so is a size of {other}; which tensors have a row "
                "for each token cannot be told"
            )
    return out


def _axis(shapes: Sequence[tuple[int, tuple[int, ...]]]) -> int | None:
    """shapes: (vocab_size, the tensor's shape) of every model that has the tensor."""
    for axis in (0, 1):
        if all(axis < len(shape) <= 2 and shape[axis] == rows for rows, shape in shapes):
            return axis
    return None


def _unsure(out: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A tensor that may have its entries for something else, where vocab_size is another size too."""
    if square := next((n for n in out if len(s := shapes.get(n, ())) == 2 and s[0] == s[1]), None):
        return square  # a head's tokens may be its rows or its columns
    return next((n for n in out if len(out) > 1 and ("pos" in n or not _OF_TOKENS.fullmatch(n))), None)


def _also(config: Mapping[str, Any], rows: int) -> str | None:
    """Another size in a config, or in a part of it, that is the same number."""
    parts = [config, *(c for c in config.values() if isinstance(c, Mapping))]
    entries = ((k, v) for part in parts for k, v in part.items())
    return next((k for k, v in entries if type(v) is int and v == rows and "vocab" not in k and "_id" not in k), None)


class Mapped:
    """A Source whose embeddings, heads and biases of heads have an entry for each token of the result.

    mapped: tensor -> the dimension. Memory: the rows that are read.
    """

    def __init__(self, name: str, sources: Mapping[str, Source], table: Mapping[int, list[tuple[str, int]]], rows: int):
        own = sources[name]
        self.label, self.files, self.plain, self._sources = own.label, own.files, own, sources
        self._table = [table.get(i, []) for i in range(rows)]
        self.mapped = {n: axis for n, axis in axes(sources).items() if n in own.shapes}
        self.notices = [f"tokenizer: mapped by token: {', '.join(self.mapped)}"]
        last: dict[str, int] = {}
        for m, at in (x for row in self._table for x in row):
            last[m] = max(at, last.get(m, 0))
        for n, axis in self.mapped.items():
            for m, at in last.items():
                if n not in sources[m].shapes or _without(sources[m].shapes[n], axis) != _without(own.shapes[n], axis):
                    raise CommonweightError(
                        f"{n}: {sources[m].label} has no rows for {own.label}'s; their widths differ"
                    )
                if at >= sources[m].shapes[n][axis]:
                    raise CommonweightError(
                        f"{n}: {sources[m].label} has {counted(sources[m].shapes[n][axis], 'row')}, its tokenizer "
                        f"names row {at}"
                    )
        self.dtypes: Mapping[str, torch.dtype] = own.dtypes
        self.shapes: Mapping[str, tuple[int, ...]] = {
            n: s if n not in self.mapped else (rows, *s[1:]) if self.mapped[n] == 0 else (s[0], rows)
            for n, s in own.shapes.items()
        }

    def flat(self, name: str, start: int, count: int) -> Tensor:
        if name not in self.mapped:
            return self.plain.flat(name, start, count)
        width = math.prod(self.shapes[name][1:])
        first, last = start // width, -(-(start + count) // width)
        rows = self._rows(name, width, first, last) if self.mapped[name] == 0 else self._columns(name, first, last)
        return rows[start - first * width :][:count]

    def _rows(self, name: str, width: int, i: int, last: int) -> Tensor:
        parts = []
        while i < last:  # rows that follow one another in one model are read at once
            here, n = self._table[i], 1
            if len(here) == 1:
                model, at = here[0]
                while i + n < last and self._table[i + n] == [(model, at + n)]:
                    n += 1
                parts.append(self._sources[model].flat(name, at * width, n * width).to(self.dtypes[name]))
            else:
                found = [self._sources[m].flat(name, at * width, width).float() for m, at in here]
                mean = torch.stack(found).mean(0) if found else torch.zeros(width)
                parts.append(mean.to(self.dtypes[name]))
            i += n
        return torch.cat(parts)

    def _columns(self, name: str, first: int, last: int) -> Tensor:
        """Rows first .. last of a tensor whose columns are the tokens."""
        moves, counts = self._moves
        out = torch.zeros(last - first, len(counts))
        for m, (to, at) in moves.items():
            width = self._sources[m].shapes[name][1]
            read = self._sources[m].flat(name, first * width, (last - first) * width).float().view(-1, width)
            out[:, to] += read[:, at]
        return (out / counts).to(self.dtypes[name]).view(-1)

    @cached_property
    def _moves(self) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
        """Model -> (entries of the result, its own that are added there); how many are added to an entry."""
        moves: dict[str, tuple[list[int], list[int]]] = {}
        for i, row in enumerate(self._table):
            for m, at in row:
                to, own = moves.setdefault(m, ([], []))
                to.append(i)
                own.append(at)
        counts = torch.tensor([max(1, len(row)) for row in self._table])
        return {m: (torch.tensor(to), torch.tensor(own)) for m, (to, own) in moves.items()}, counts

    def read(self, name: str) -> Tensor:
        return self.flat(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def where(self, name: str) -> str:
        return self.plain.where(name)

    def ahead(self, name: str) -> None:
        self.plain.ahead(name)

    def held(self, count: int, threads: int) -> int:
        columns = (max(s.shapes[n]) for n, axis in self.mapped.items() if axis for s in self._sources.values())
        rows = max(count, *columns, 0) if self.mapped else count
        return 4 * 4 * rows * threads + held(self.plain, count, threads)  # what is read, then one after the other


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def unlike(models: Mapping[str, Path]) -> list[str]:
    """A notice where models, each with its folder, have vocabularies that differ, for a merge that maps no rows.

    Only tokenizer.json is parsed, and only where files differ; a folder without a vocabulary counts as having the
    others'.
    """
    files = {n: f for n, folder in models.items() if (f := vocabulary_file(folder)) is not None}
    if not files:
        return []
    lead, *others = files
    known: dict[str, int] | None = None
    out = []
    for name in others:
        if alike(models[lead], models[name]):
            continue
        how = "rows are merged as they lie; tokenizer: union (or base) maps them by token"
        if not files[lead] == files[name] == FILE:
            where = f"its vocabulary lies in {files[name]}, {lead}'s in {files[lead]}"
            out.append(f"{name}: {where}; that they are the same is not known, and {how}")
            continue
        known = tokens_of(models[lead]) if known is None else known
        if tokens_of(models[name]) != known:
            out.append(f"{name}: its vocabulary is not {lead}'s, and {how}")
    return out
