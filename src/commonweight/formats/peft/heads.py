"""A classification head beside an adapter: the one module that PEFT saves whole and that is a tenant's as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...core import CommonweightError
from .common import PREFIX

NAMES = "classifier", "score"
# Heads of these read every token, or every choice, of a text; a classifier of transformers calls them alike.
NO_TEXTS = {"TOKEN_CLS": "each token", "QUESTION_ANS": "the places of an answer"}
NO_CLASSES = {
    "ForTokenClassification": "each token", "ForQuestionAnswering": "the places of an answer",
    "ForMultipleChoice": "each of several choices",
}  # fmt: skip


class Head(NamedTuple):
    """logits = x W^T + b. name: the module's. W (labels, d), b (labels,) or None where it has none."""

    name: str
    W: Tensor
    b: Tensor | None


def part(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """(config, tensors) without the head that stands in ``modules_to_save``, and the head's tensors. Other modules
    stay, for the reader of the adapter to refuse."""
    whole = config.get("modules_to_save")
    whole = whole if isinstance(whole, list | tuple) else ()
    names = [n for n in whole if n in NAMES]
    mine = {k: v for k, v in tensors.items() if k.removeprefix(PREFIX).split(".")[0] in names}
    others = [n for n in whole if n not in names]
    return {**config, "modules_to_save": others or None}, {k: v for k, v in tensors.items() if k not in mine}, mine


def of_texts(config: Mapping[str, Any]) -> None:
    """Raises: CommonweightError where the adapter says that its head is not one of whole texts."""
    task, mapping = config.get("task_type"), config.get("auto_mapping")
    model = str(mapping.get("base_model_class") or "") if isinstance(mapping, dict) else ""
    found = NO_TEXTS.get(str(task)) or next((what for end, what in NO_CLASSES.items() if model.endswith(end)), None)
    if found is not None:
        said = f"task_type {task}" if str(task) in NO_TEXTS else f"a {model}"
        raise CommonweightError(
            f"adapter_config.json: its head scores {found} ({said}), and a tenant's head whole texts; give labels=() "
            "to import the adapter without its head"
        )


def read(mine: Mapping[str, Tensor]) -> Head | None:
    """None where there is none. Raises: CommonweightError for a head of several layers."""
    if not mine:
        return None
    name = next(iter(mine)).removeprefix(PREFIX).split(".")[0]
    W, b = mine.get(f"{PREFIX}{name}.weight"), mine.get(f"{PREFIX}{name}.bias")
    if len(mine) != 1 + (b is not None) or W is None or W.dim() != 2 or (b is not None and b.shape != W.shape[:1]):
        raise CommonweightError(
            f"adapter_model.safetensors: {min(mine)}: a head of several layers; only one linear layer can be a tenant's"
        )
    return Head(name, W, b)
