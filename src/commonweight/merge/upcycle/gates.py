"""Rows of the routers before any training: from prompts of what an expert is for, or drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError
from ..schema.mixture import PROMPTED
from ..schema.types import Expert, Mixture
from ..sources.source import Memory


def rows(model: Any, tokenizer: Any, experts: Sequence[Expert], how: str) -> Tensor:
    """(layers, experts, d): of each expert the mean over its positive prompts of what a layer is given, less the mean
    over the negative ones, at length 1; linear in those means before it is divided.

    how: `hidden` and `hidden_last` take what a prompt's last token has there, `hidden_avg` the mean over its tokens,
    both in front of a layer; `ffn` the mean over tokens of what its feed-forward network is given, which is what the
    router will read; `cheap_embed` the sum of the tokens' embeddings, for all layers alike. Source: mergekit-moe
    (mergekit/moe/router.py). There prompts of different lengths are padded on the right, and the last or the mean is
    taken with the pads; here each prompt is read alone. `ffn` is ours. An expert without prompts has zeros.
    """
    found = []
    for e in experts:
        at = _mean(model, tokenizer, e.positive, how)
        if e.negative:
            at = at - _mean(model, tokenizer, e.negative, how)
        found.append(at / at.norm(dim=-1, keepdim=True).clamp_min(1e-8))
    return torch.stack(found, 1)


def drawn(layers: int, experts: int, width: int, how: str, seed: int) -> Tensor:
    """(layers, experts, width): `random` normal of deviation 1, `uniform_random` within 1 / sqrt(width), as nn.Linear
    begins. Drawn in float32 from the seed."""
    g = torch.Generator().manual_seed(seed)
    if how == "random":
        return torch.randn(layers, experts, width, generator=g)
    return (2 * torch.rand(layers, experts, width, generator=g) - 1) / width**0.5


def _mean(model: Any, tokenizer: Any, prompts: Sequence[str], how: str) -> Tensor:
    text = model.config.get_text_config()
    total = torch.zeros(text.num_hidden_layers, text.hidden_size)
    for prompt in prompts:
        total += _read(model, _ids(tokenizer, prompt), how) / len(prompts)
    return total


def _ids(tokenizer: Any, prompt: str) -> Tensor:
    ids = tokenizer((tokenizer.bos_token or "") + prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise CommonweightError(f"prompt {prompt!r}: the tokenizer makes nothing of it; give another")
    return torch.tensor([ids])


@torch.no_grad()
def _read(model: Any, ids: Tensor, how: str) -> Tensor:
    """(layers, d) of one prompt."""
    layers = model.model.layers
    if how == "cheap_embed":
        return model.get_input_embeddings()(ids)[0].float().sum(0).expand(len(layers), -1)
    given: dict[int, Tensor] = {}

    def keep(i: int) -> Any:
        def hook(module: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            given[i] = x[0].float()

        return hook

    hooks = [
        (layer.mlp if how == "ffn" else layer).register_forward_pre_hook(keep(i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    try:
        model.model(ids)
    finally:
        for h in hooks:
            h.remove()
    states = torch.stack([given[i] for i in range(len(layers))])
    return states[:, -1] if how in ("hidden", "hidden_last") else states.mean(1)


class Gates(Memory):
    """The routers as a model's tensors: names as they are written, made when the first one is read."""

    def __init__(self, mixture: Mixture, base: Path, names: Mapping[str, tuple[int, int]], width: int):
        """names: a tensor -> (its layer, how many experts it has; 0: the shared one)."""
        self.label, self.files = "the routers", ()
        self._mixture, self._base, self._names = mixture, base, names
        self.shapes: Mapping[str, tuple[int, ...]] = {n: (max(1, count), width) for n, (_, count) in names.items()}
        self.dtypes: Mapping[str, torch.dtype] = dict.fromkeys(names, torch.float32)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self._made())

    def _made(self) -> Iterator[tuple[str, Tensor]]:
        how, layers = self._mixture.gate, 1 + max(layer for layer, _ in self._names.values())
        width = next(iter(self.shapes.values()))[1]
        shared = self._mixture.shared
        prompted = how in PROMPTED
        read = prompted or (shared is not None and shared.positive)
        model, tokenizer = _loaded(self._base) if read else (None, None)
        common = torch.zeros(layers, 1, width)
        if shared is not None and shared.positive:
            common = rows(model, tokenizer, [shared], how if prompted else "hidden")
        if prompted:
            routers = rows(model, tokenizer, self._mixture.experts, how)
        else:
            routers = drawn(layers, len(self._mixture.experts), width, how, self._mixture.seed)
        for name, (layer, count) in self._names.items():
            yield name, (routers[layer] if count else common[layer]).contiguous()


def _loaded(base: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ...builder.load import opened

    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as e:
        raise CommonweightError(
            f"{base}: no tokenizer lies there, which prompts need; put it beside the model, or take gate_mode: random"
        ) from e
    return opened(AutoModelForCausalLM, str(base), dtype="auto").eval(), tokenizer  # type: ignore[union-attr]
