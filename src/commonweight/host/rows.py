"""Rows that a method begins from, looked at: which are wanted, and what came in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from ..core import CommonweightError
from ..core.errors import first_line
from ..methods import Method
from ..methods.shown import KINDS, LABELLED, NO_ROWS, Shown
from .embedded import IGNORE

BATCHES = '[{"input_ids": ..., "attention_mask": ..., "labels": ...}, ...]'
_RAW = (TypeError, ValueError, RuntimeError, LookupError, AttributeError)


def asked(method: Method, config: Any, rows: Any, retain: Any) -> tuple[str, str]:
    """The kinds of statistics that a tenant begins from: of rows, and of rows to keep; "" where it needs none.

    Raises: CommonweightError for rows that it does not ask for, and where it has none."""
    kinds = method.asks(config), method.kept(config)
    given = {"rows": rows, "retain": retain}
    for name, other, kind, rest in (("rows", "retain", *kinds), ("retain", "rows", *kinds[::-1])):
        if given[name] is not None and not kind:
            what = "begin from data" if name == "rows" else "ask for rows to keep"
            there = given[other] is None and rest and rest not in NO_ROWS
            instead = f"give {other}= in place of {name}=" if there else f"leave {name} out"
            raise CommonweightError(f"{name}: {method.name}{_with(config)} does not {what}; {instead}")
    for name, kind in zip(given, kinds):
        if given[name] is None and kind and kind not in NO_ROWS:
            told = " (`adapt --retain`)" if name == "retain" else ""
            keys = f"input_ids, attention_mask, ...{', labels' * (kind in LABELLED)}"
            instead = ", or take start='random'" if _may(type(config), "start", "random") else ""
            raise CommonweightError(
                f"{method.name}{_with(config)} begins from data: {KINDS[kind]}; give {name}=, a list of batches of the "
                f"model's inputs ({keys}){told}{instead}"
            )
    return kinds


def _with(config: Any) -> str:
    """The options of a config by which it may ask for other rows, as a person said them."""
    said = [
        f"{f.name}={v!r}"
        for f in fields(config)
        if isinstance(v := getattr(config, f.name), str) and v != f.default and not f.metadata.get("globs")
    ]
    return f" with {', '.join(said)}" if said else ""


def _may(config: type, option: str, value: Any) -> bool:
    return value in get_args(get_type_hints(config).get(option))


def taken(name: str, given: Any) -> Shown:
    """What was given as `name`, each batch looked at when it is read. Raises: CommonweightError for what is no list of
    batches; reading it also for a batch that is none."""
    shown = given if isinstance(given, Shown) else Shown(() if given is None else given)
    batches: Any = shown.batches
    if isinstance(batches, Mapping):
        raise CommonweightError(f"{name}: one batch came, {told(batches)}; wanted a list of them: {name}=[...]")
    if isinstance(batches, str | bytes | Tensor) or not isinstance(batches, Iterable):
        raise CommonweightError(f"{name}: {_short(batches)} came; wanted a list of batches, {BATCHES}")
    return shown._replace(batches=_each(name, batches, shown.loss is None))


def _each(name: str, batches: Iterable[Any], plain: bool) -> Iterator[Mapping[str, Any]]:
    """plain: they go into the model as they are."""
    for i, batch in enumerate(batches):
        if not isinstance(batch, Mapping) or not batch:
            raise CommonweightError(f"{name}: batch {i} is {_short(batch)}; wanted the model's inputs, as in {BATCHES}")
        for k, v in batch.items():
            if plain and (isinstance(v, list | tuple) or (hasattr(v, "__array__") and not isinstance(v, Tensor))):
                raise CommonweightError(
                    f"{name}: batch {i} has {k} as a {type(v).__name__}; wanted a tensor: torch.as_tensor({k})"
                )
            if isinstance(v, Tensor) and v.is_floating_point() and bool(v.isnan().any()):
                raise CommonweightError(f"{name}: batch {i} has NaN in {k}; mend or leave out these rows")
        yield batch


def unscored(batch: Mapping[str, Any]) -> bool:
    """Whether labels are there, and none of them counts in a loss."""
    labels = batch.get("labels")
    whole = isinstance(labels, Tensor) and labels.numel() > 0 and not labels.is_floating_point()
    return whole and bool((labels == IGNORE).all())


@contextmanager
def read_by_model(batch: Mapping[str, Any]) -> Iterator[None]:
    """Within it a model reads a batch; what it does not understand is said."""
    try:
        yield
    except (CommonweightError, torch.OutOfMemoryError):
        raise
    except _RAW as e:
        raise CommonweightError(
            f"rows: the model cannot read a batch of {told(batch)}: {first_line(e)}; wanted its inputs, as in {BATCHES}"
        ) from e


def told(batch: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {tuple(v.shape)}" if isinstance(v, Tensor) else f"{k}" for k, v in batch.items())


def finite(found: Mapping[str, Tensor]) -> None:
    """Raises: CommonweightError for a statistic with NaN or infinity in it."""
    for n, v in found.items():
        if v.is_floating_point() and not bool(v.isfinite().all()):
            raise CommonweightError(
                f"{n.removesuffix('=')}: what the rows say of it holds NaN or infinity; give rows of which the model "
                "makes finite numbers, or load it in float32"
            )


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"
