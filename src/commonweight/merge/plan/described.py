"""Whether the result's config describes it: told, or refused, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core import CommonweightError
from ..architecture.blank import CONFIG, Loaded, NoModel
from ..architecture.check import Model, news, otherwise, told
from ..architecture.resized import Block
from ..architecture.stacks import place
from ..stream.work import Task
from .frame import Frame


def check(
    config: Mapping[str, Any],
    tasks: Sequence[Task],
    lead: Model,
    frame: Frame | None,
    blocks: Sequence[Block],
    rows: int | None,
) -> list[str]:
    """Notices. config: of the result. Nothing is made where the result has the lead's tensors in the lead's shapes.

    Raises: CommonweightError for slices, and vocabularies, that no config of this kind describes: transformers would
    fill what is missing at random.
    """
    shapes = {t.at.name: t.at.shape for t in tasks}
    if shapes == lead.shapes and not blocks:
        return []
    if blocks and frame is not None and not frame.stacks:
        return []  # the frame has said it
    try:
        found = news(Model(config, shapes), lead)
        if found and (blocks or rows is not None):
            raise CommonweightError(
                f"{CONFIG} of the result does not describe it: {told(found)}; {_why(found, blocks)}"
            )
        out = [f"{CONFIG} does not describe the result: {told(found)}; rules leave that out or add it"] if found else []
        if frame is not None:
            out += [_differs(i, blocks, what) for i, what in otherwise(config, frame.stacks, blocks)]
        return out
    except NoModel as e:
        if rows is None and not blocks:
            return []
        return [f"{e}; that it describes the result was not checked"]


def _why(found: Loaded, blocks: Sequence[Block]) -> str:
    if not blocks:
        return "give base, or first, a model with this vocabulary's size in its config"
    numbers = [at[1] for n in (*found.missing, *found.unexpected, *found.mismatched) if (at := place(n)) is not None]
    i = min((i for i in numbers if i < len(blocks)), default=None)
    where = "" if i is None else f"layer {i} of it is layer {blocks[i].number} of its model, and "
    return (
        f"{where}a layer's kind follows from its number there, of which the config has no list; choose slices in which "
        "each kind stands where it stood"
    )


def _differs(i: int, blocks: Sequence[Block], what: str) -> str:
    return f"layer {i} of the result, layer {blocks[i].number} of its model, is another there by its number: {what}"
