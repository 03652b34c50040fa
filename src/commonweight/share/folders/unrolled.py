"""An ordinary folder with every depth written out: it loads anywhere, and is as large as the model was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...builder.forms import Addressed, Factored, Guided, Relaxed, Thin, ThinHead
from ...builder.kinds import KINDS
from ...builder.remote import plain_class
from ...builder.shared import here, stack_of
from ...core import CommonweightError


def write(model: Any, folder: Path, final: Path) -> None:
    """Weights that are put together of pools are written as they come out.

    Raises: CommonweightError where a depth does what no stock block does.

    Cost: every depth's weights in memory."""
    plain(model).save_pretrained(folder)


def plain(model: Any) -> Any:
    """The same model of the stock class, nothing shared and no forms left."""
    from copy import deepcopy

    config = deepcopy(model.config)
    del config.sharing
    stock: Any = plain_class(model)
    with torch.device("meta"):
        out = stock(config)
    out = out.to_empty(device=next(model.parameters()).device)
    tensors = dense(model)
    out.load_state_dict({k: v.clone() for k, v in tensors.items()}, assign=True)
    for name, buffer in model.named_buffers():  # those that no state dict holds
        parent, _, key = name.rpartition(".")
        out.get_submodule(parent)._buffers[key] = buffer.clone()
    out.tie_weights()
    return out.train(model.training)


def dense(model: Any) -> dict[str, Tensor]:
    """The state dict of the stock model."""
    tensors = {k: v.detach() for k, v in model.state_dict().items()}
    path, blocks = stack_of(model, model.config.sharing["path"])
    for told in model.config.sharing["forms"]:
        if issubclass(KINDS[told["form"]], Addressed):
            for name, module in ((f"{path}.{d}.{told['at']}", f"{d}.{told['at']}") for d in told["depths"]):
                fixed = blocks.get_submodule(module).fixed()  # type: ignore[operator]
                tensors |= {f"{name}.{of}": value for of, value in fixed.items()}
                for key in told["parameters"]:
                    tensors.pop(f"{name}.{key}", None)
            continue
        if told["form"] not in [k.__name__ for k in (Relaxed, Factored, Guided)]:
            raise CommonweightError(
                f"form=unrolled: {told['form']} at {told['at'] or 'the blocks'} is nothing that a stock "
                f"{plain_class(model).__name__} does; save it with form=remote-code"
            )
        for depth in told["depths"]:
            name = f"{path}.{depth}.{told['at']}"
            module: Any = blocks.get_submodule(f"{depth}.{told['at']}")
            tensors[f"{name}.weight"] = module.composed_weight().detach()
            for key in told["parameters"]:
                tensors.pop(f"{name}.{key}", None)
    for told in model.config.sharing.get("outside", ()):
        if name := here(model, told["at"]):
            module = model.get_submodule(name)
            if not isinstance(module, Thin | ThinHead):
                raise CommonweightError(
                    f"form=unrolled: {told['form']} at {told['at']} is nothing that a {plain_class(model).__name__} "
                    "does; save it with form=remote-code"
                )
            tensors[f"{name}.weight"] = module.composed_weight().detach()
            for key in told["parameters"]:
                tensors.pop(f"{name}.{key}", None)
    return tensors
