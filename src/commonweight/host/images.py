"""Images and videos beside texts: of which row each is, as the texts tell by the places that they keep for images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_KINDS = (  # pixels, sizes in patches, the token that stands in their place
    ("pixel_values", "image_grid_thw", ("image_token_id", "image_token_index")),
    ("pixel_values_videos", "video_grid_thw", ("video_token_id", "video_token_index")),
)


def images_by_row(model: Any, kwargs: dict, rows: int) -> bool:
    """Whether the images beside a batch of texts are one for each row, in the rows' order.

    Not so where they are cut into patches of one list (Qwen2-VL), and where rows show several images or none.
    """
    ids = kwargs.get("input_ids")
    if not isinstance(ids, Tensor):
        return True
    for pixels, _, tokens in _KINDS:
        images = kwargs.get(pixels)
        if not isinstance(images, Tensor):
            continue
        if images.shape[0] != rows or images.dim() < 3:  # of two dimensions: patches
            return False
        token = _token(getattr(model, "config", None), tokens)
        shown = (ids == token).sum(1) if token is not None else torch.zeros(1)
        if not (shown == shown[0]).all():
            return False
    return True


def _token(config: Any, names: tuple[str, ...]) -> int | None:
    return next((t for n in names if (t := getattr(config, n, None)) is not None), None)


def cut_of(model: Any, kwargs: dict, rows: int) -> Callable[[Tensor], dict] | None:
    """Of images in one list: which arguments some rows of the batch have; None where it cannot be known.

    Either cut into patches of one list, with the size of each image (Qwen2-VL), or as many places in the texts for each
    (LLaVA, PaliGemma). An image belongs to one row, in the order of the rows.
    """
    ids = kwargs.get("input_ids")
    if not isinstance(ids, Tensor) or len(ids) != rows:
        return None
    if _by_places(model, kwargs.get("pixel_values"), rows):
        none = {"pixel_values": None, "pixel_attention_mask": None}
        return lambda where: {} if kwargs["pixel_values"][where].any() else none
    ways = []
    for pixels, grid, tokens in _KINDS:
        if kwargs.get(pixels) is None:
            continue
        config = getattr(model, "config", None)
        token = _token(config, tokens)
        if token is None or (way := _cut(config, kwargs, pixels, grid, (ids == token).sum(1).tolist())) is None:
            return None
        ways.append(way)
    return (lambda where: {k: v for way in ways for k, v in way(where).items()}) if ways else None


def _by_places(model: Any, x: Any, rows: int) -> bool:
    """Whether each row has its images behind one another, padded to the most of any (Idefics 2 and 3, SmolVLM)."""
    masked = "pixel_attention_mask" in inspect.signature(type(model).forward).parameters
    return masked and isinstance(x, Tensor) and x.dim() == 5 and len(x) == rows


def _cut(config: Any, kwargs: dict, pixels: str, grid: str, places: list[int]) -> Callable[[Tensor], dict] | None:
    """places: how many of them each row's text keeps for images."""
    x, sizes = kwargs[pixels], kwargs.get(grid)
    if not isinstance(x, Tensor):
        return None
    if isinstance(sizes, Tensor):
        merged = getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1) ** 2
        patches = sizes.prod(-1).tolist()
        each = [n // merged for n in patches]
    elif x.dim() == (5 if "videos" in pixels else 4) and len(x) and sum(places) % len(x) == 0:
        patches, each = [1] * len(x), [sum(places) // len(x)] * len(x)
    else:
        return None
    of: list[int] = []  # the row of each image
    for row, left in enumerate(places):
        while left > 0 and len(of) < len(each):
            left -= each[len(of)]
            of.append(row)
        if left:
            return None
    if len(of) != len(each) or sum(patches) != len(x):
        return None
    per_image, per_patch = torch.tensor(of), torch.tensor(of).repeat_interleave(torch.tensor(patches))

    def cut(where: Tensor) -> dict:
        found: dict[str, Any] = {}
        about = "second_per_grid_ts" if "videos" in pixels else "image_sizes"
        for name, rows in ((pixels, per_patch), (grid, per_image), (about, per_image)):
            v = kwargs.get(name)
            if isinstance(v, Tensor | list) and len(v) == len(rows):
                at = torch.cat([(rows == w).nonzero().flatten() for w in where.tolist()])
                part = v[at.to(v.device)] if isinstance(v, Tensor) else [v[i] for i in at.tolist()]
                found[name] = part if len(part) else None
        return found

    return cut
