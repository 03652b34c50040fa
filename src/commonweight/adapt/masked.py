"""Masks that keep packed rows apart, for models that make none from positions: gpt-oss, Falcon, OPT and others.

Most models of transformers hand their positions to what makes the masks, which finds the rows by them. Some do not, and
in a packed sequence each row of theirs would see all those before it; they take masks that were made beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from ..host.names import unwrapped
from .tasks.packing import sound


@contextmanager
def masked(model: nn.Module) -> Iterator[None]:
    """Within it the model is given masks, where it keeps packed rows apart with them and not without.

    Cost: three forward passes of a few tokens; where they show that masks are needed, three more, and a mask a batch.
    """
    inner: Any = unwrapped(model)
    if _apart(inner) or not hasattr(inner, "config"):
        yield
        return
    handle = inner.register_forward_pre_hook(_give, with_kwargs=True)
    try:
        if not _apart(inner):
            handle.remove()  # what keeps rows apart is not attention alone
        yield
    finally:
        handle.remove()


def _apart(model: nn.Module) -> bool:
    was = model.training
    model.eval()
    try:
        sound(model)
    except (CommonweightError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        return False
    finally:
        model.train(was)
    return True


def _give(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    from transformers.masking_utils import create_masks_for_generate

    places: Tensor | None = kwargs.get("position_ids")
    if places is None or kwargs.get("attention_mask") is not None:
        return None
    table = module.get_input_embeddings().weight
    like = torch.empty(*places.shape, 1, dtype=table.dtype, device=places.device)
    masks = create_masks_for_generate(module.config, like, None, None, position_ids=places)
    return args, {**kwargs, "attention_mask": masks}
