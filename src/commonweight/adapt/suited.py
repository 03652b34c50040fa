"""Whether a base suits a task: a task is trained on texts, and a language model must not see what it is to predict."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..builder.load import config_of
from ..core import CommonweightError
from ..host.weights import device_of

IN_PYTHON = "train it in Python: transformers.Trainer on host.module(name), see docs/training.md"
_SENSES = "pixel_values", "input_values", "input_features"


def check_alone(model: str | Path, task: str) -> None:
    """Raises: CommonweightError for an encoder with a decoder, of which transformers would load the decoder alone."""
    try:
        config = config_of(model)
    except (OSError, ValueError, KeyError):
        return  # said where it is loaded
    if getattr(config, "is_encoder_decoder", False):
        raise CommonweightError(
            f"model {str(model)!r} ({type(config).__name__}) has an encoder beside its decoder, and the task {task} "
            f"would train the decoder alone, which then reads nothing; {IN_PYTHON}"
        )


def check_texts(model: nn.Module, command: str) -> None:
    """Raises: CommonweightError for a base of images or sounds, where a command reads texts alone."""
    sense: Any = getattr(model, "sense", None)
    if sense is not None:
        what = {"image": "images", "audio": "sounds"}[sense]
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        raise CommonweightError(
            f"model {name!r} reads {what}, and {command} takes rows of texts alone; tune it with commonweight adapt"
        )


@torch.no_grad()
def check_reads(encoder: Any, name: str, task: str) -> str | None:
    """What a classifier reads in place of texts: pixel_values, input_values or input_features; None for texts.

    Raises: CommonweightError for a model that reads neither alone, as CLIP, or another sense than its task does.

    Cost: of models that read images or sounds too a forward of one row of two tokens.
    """
    kind = type(encoder).__name__
    main = getattr(encoder, "main_input_name", "input_ids")
    why = f"it reads {main}"
    if main in _SENSES and task == "classify":
        return main
    if main not in _SENSES:
        also = next((n for n in inspect.signature(encoder.forward).parameters if n in _SENSES), None)
        if also is None:
            return None
        ids = torch.tensor([[1, 2]], device=device_of(encoder))
        try:
            encoder.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
            return None
        except (AttributeError, TypeError, ValueError):
            why = f"it wants {also} beside them"
    raise CommonweightError(
        f"model {name!r} ({kind}) does not suit the task {task}, whose rows are texts ({why}); {IN_PYTHON}"
    )


@torch.no_grad()
def check_causal(model: nn.Module, name: str, missing: list[str]) -> None:
    """An encoder loads as a language model too: with a head at random, or seeing the token that it is to predict.

    Cost: a forward of two rows of two tokens. Raises: CommonweightError.
    """
    if missing:
        raise CommonweightError(
            f"model {name!r} has no weights for {missing[0]}: it is not a language model; give one that is"
        )
    ids = torch.tensor([[1, 1], [1, 2]], device=device_of(model))
    first, other = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].float()
    if (first - other).abs().max() > 1e-2 * first.abs().max():
        raise CommonweightError(
            f"model {name!r} sees the tokens after the one that it predicts ({type(model).__name__}, not causal); "
            "the task lm wants a causal language model"
        )
