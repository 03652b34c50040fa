"""Keys of such files: which model of a pipeline they belong to, and which module of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from .modules import SLOTS

_UNDERSCORED = re.compile(
    r"(lora_unet|lora_te\d?|lora_transformer|lora_prior_unet|lora_prior_te|lycoris)_([^.]+)\.(.+)"
)
_DOTTED = re.compile(r"(unet|text_encoder(?:_\d)?|transformer(?:_\d)?|prior|diffusion_model)\.(.+)")
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_[qkv]|to_out|add_[qkv]_proj|to_add_out)_lora\.(down|up)\.weight")
_OTHER = {  # diffusers' names of the factors, of its several ages -> kohya's
    "lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight", "lora_B.default.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight", "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight", "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
}  # fmt: skip
_LONGEST = sorted((*_OTHER, *SLOTS), key=len, reverse=True)

_PLAIN = "lora_", "lora.", "hada_", "lokr_"

_RESNET = {  # diffusers' name of a layer in a block of convolutions -> Stability's
    "conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip

Group = dict[str, dict[str, Tensor]]


def grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Group], list[str]]:
    """({part of the pipeline: {module: {slot: tensor}}}, keys of no part).

    Modules have dots where the file has them, and underscores in their place where it has those.
    """
    out: dict[str, Group] = {}
    rest = []
    for key, value in tensors.items():
        part, module, slot = split(key)
        if module is None or slot is None:
            rest.append(key)
        else:
            out.setdefault(part, {}).setdefault(module, {})[slot] = _column(slot, value)
    return out, rest


def split(key: str) -> tuple[str, str | None, str | None]:
    """(part, module, kohya's name of the slot)."""
    if m := _UNDERSCORED.fullmatch(key):
        return m[1].removeprefix("lora_"), m[2], _OTHER.get(m[3], m[3] if m[3] in SLOTS else None)
    if not (m := _DOTTED.fullmatch(key)):  # of one model alone, as diffusers' save_lora_adapter writes it
        slot = next((s for s in _LONGEST if key.endswith(f".{s}") and s.startswith(_PLAIN)), None)
        return ("", None, None) if slot is None else ("", key[: -len(slot) - 1], _OTHER.get(slot, slot))
    if p := _PROCESSOR.fullmatch(m[2]):
        name = "to_out.0" if p[2] == "to_out" else p[2]
        return m[1], f"{p[1]}.{name}", f"lora_{p[3]}.weight"
    slot = next((s for s in _LONGEST if m[2].endswith(f".{s}")), None)
    if slot is None:
        return m[1], None, None
    return m[1], m[2][: -len(slot) - 1], _OTHER.get(slot, slot)


def _column(slot: str, value: Tensor) -> Tensor:
    """PEFT's magnitudes (out,) as LyCORIS has them, (out, 1)."""
    return value[:, None] if slot == "dora_scale" and value.dim() == 1 else value


def diffusers_name(name: str, layers: int) -> str:
    """A module of Stability's own code, ``input_blocks_4_1_...``, as diffusers calls it; any other as it is.

    layers: the UNet's layers_per_block.
    """
    m = re.fullmatch(r"(input_blocks|middle_block|output_blocks)_(\d+)_(?:(\d+)_)?(.+)", name)
    if m is None:
        return name
    rest, inner = m[4], int(m[3]) if m[3] else -1
    rest = next((ours for ours, theirs in _RESNET.items() if rest == theirs), rest)
    if m[1] == "middle_block":
        at = {0: "resnets_0", 1: "attentions_0", 2: "resnets_1"}.get(int(m[2]))
        tail = f"{m[3]}_{rest}" if m[3] else rest
        return name if at is None else f"mid_block_{at}_{tail}"
    i = int(m[2]) - (m[1] == "input_blocks")
    side = "down_blocks" if m[1] == "input_blocks" else "up_blocks"
    if rest == "op":
        return f"{side}_{i // (layers + 1)}_downsamplers_0_conv"
    if inner not in (0, 1, 2) or i < 0:
        return name
    inner = 2 if rest == "conv" else inner  # an upsampler's, behind no attention too
    kind, at = ("resnets", "attentions", "upsamplers")[inner], i % (layers + 1) if inner < 2 else 0
    return f"{side}_{i // (layers + 1)}_{kind}_{at}_{rest}"


def stability_name(name: str, layers: int, plain: Collection[int] = ()) -> str:
    """The way back: diffusers' module of a UNet, ``down_blocks_1_attentions_0_...``, in Stability's own names; what has
    none there as it is. layers: the UNet's layers_per_block; plain: its blocks upwards that have no attention."""
    if m := re.fullmatch(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)", name):
        block, kind, at = int(m[2]), m[3], int(m[4])
        if kind == "downsamplers":
            return f"input_blocks_{(block + 1) * (layers + 1)}_0_op" if m[5] == "conv" else name
        last = layers if kind == "upsamplers" else at
        i = block * (layers + 1) + last + (m[1] == "down")
        inner = {"resnets": 0, "attentions": 1, "upsamplers": 1 if block in plain else 2}[kind]
        return f"{'input' if m[1] == 'down' else 'output'}_blocks_{i}_{inner}_{_inner(m[5], kind)}"
    if m := re.fullmatch(r"mid_block_(resnets|attentions)_(\d+)_(.+)", name):
        at = 1 if m[1] == "attentions" else 2 * int(m[2])
        return f"middle_block_{at}_{_inner(m[3], m[1])}"
    return name


def _inner(rest: str, kind: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest
