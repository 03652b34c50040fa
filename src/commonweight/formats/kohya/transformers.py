"""Names of Black Forest Labs' Flux, Stability's SD3 and Alibaba's Wan, in which kohya's scripts and ComfyUI train, as
diffusers calls the layers.

Code of the first two has query, key and value in one layer, of which diffusers makes several; its last norms give
scale and shift in the other order. Layouts: networks/lora_flux.py and lora_sd3.py of kohya's sd-scripts,
library/flux_models.py and sd3_models.py; lora_conversion_utils.py and convert_sd3_to_diffusers.py of diffusers 0.42.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError
from ..changes import Change

_QKV = "attn_to_q", "attn_to_k", "attn_to_v"
_ADDED = "attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"
DOUBLE = {
    "img_attn_qkv": _QKV, "txt_attn_qkv": _ADDED, "img_attn_proj": ("attn_to_out_0",),
    "txt_attn_proj": ("attn_to_add_out",), "img_mlp_0": ("ff_net_0_proj",), "img_mlp_2": ("ff_net_2",),
    "txt_mlp_0": ("ff_context_net_0_proj",), "txt_mlp_2": ("ff_context_net_2",), "img_mod_lin": ("norm1_linear",),
    "txt_mod_lin": ("norm1_context_linear",),
}  # fmt: skip
SINGLE = {"linear1": (*_QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation_lin": ("norm_linear",)}
JOINT = {
    "x_block_attn_qkv": _QKV, "context_block_attn_qkv": _ADDED, "x_block_attn_proj": ("attn_to_out_0",),
    "context_block_attn_proj": ("attn_to_add_out",), "x_block_attn2_qkv": tuple(f"attn2{n[4:]}" for n in _QKV),
    "x_block_attn2_proj": ("attn2_to_out_0",), "x_block_mlp_fc1": ("ff_net_0_proj",), "x_block_mlp_fc2": ("ff_net_2",),
    "context_block_mlp_fc1": ("ff_context_net_0_proj",), "context_block_mlp_fc2": ("ff_context_net_2",),
    "x_block_adaLN_modulation_1": ("norm1_linear",), "context_block_adaLN_modulation_1": ("norm1_context_linear",),
}  # fmt: skip
_BLOCKS = {
    "double_blocks": ("transformer_blocks", DOUBLE), "single_blocks": ("single_transformer_blocks", SINGLE),
    "joint_blocks": ("transformer_blocks", JOINT),
}  # fmt: skip
OUTER = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "x_embedder_proj": "pos_embed_proj",
    "final_layer_linear": "proj_out", "final_layer_adaLN_modulation_1": "norm_out_linear",
    **{f"{a}_{b}": f"time_text_embed_{c}_embedder_linear_{d}"
       for a, c in (("time_in", "timestep"), ("guidance_in", "guidance"), ("vector_in", "text"))
       for b, d in (("in_layer", 1), ("out_layer", 2))},
    **{f"{a}_embedder_mlp_{b}": f"time_text_embed_{c}_embedder_linear_{d}"
       for a, c in (("t", "timestep"), ("y", "text")) for b, d in ((0, 1), (2, 2))},
}  # fmt: skip
WAN = {
    **{f"{a}_{k}": f"{b}_{n}" for a, b in (("self_attn", "attn1"), ("cross_attn", "attn2"))
       for k, n in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out_0"))},
    "cross_attn_k_img": "attn2_add_k_proj", "cross_attn_v_img": "attn2_add_v_proj", "ffn_0": "ffn_net_0_proj",
    "ffn_2": "ffn_net_2",
}  # fmt: skip
WAN_OUTER = {
    "head_head": "proj_out", "time_projection_1": "condition_embedder_time_proj",
    **{f"{a}_embedding_{b}": f"condition_embedder_{a}_embedder_linear_{n}"
       for a in ("text", "time") for b, n in ((0, 1), (2, 2))},
    "img_emb_proj_1": "condition_embedder_image_embedder_ff_net_0_proj",
    "img_emb_proj_3": "condition_embedder_image_embedder_ff_net_2",
}  # fmt: skip
_TURNED = "norm1_context_linear", "norm_out_linear"  # where they give a scale and a shift and nothing else


class Target(NamedTuple):
    """Layers of the base, whose rows a module of the file has behind one another. turned: its halves are swapped."""

    names: tuple[str, ...]
    turned: bool = False


def layers_of(name: str) -> tuple[str, ...] | None:
    """A module of the file, with underscores, as diffusers' layers; None for one that is not of these models."""
    m = re.fullmatch(r"(?:model_diffusion_model_)?((?:double_|single_|joint_)?blocks)_(\d+)_(.+)", name)
    if m is None:
        outer = OUTER.get(name) or WAN_OUTER.get(name)
        return None if outer is None else (outer,)
    if m[1] == "blocks":
        return (f"blocks_{m[2]}_{WAN[m[3]]}",) if m[3] in WAN else None
    home, layers = _BLOCKS[m[1]]
    return tuple(f"{home}_{m[2]}_{n}" for n in layers[m[3]]) if m[3] in layers else None


def target(names: Sequence[str], shapes: Callable[[str], tuple[int, int] | None]) -> Target:
    """names: of the base's layers, with dots. shapes: (out, inp) of those that are sites."""
    found = shapes(names[0])
    half = found is not None and found[0] == 2 * found[1]
    return Target(tuple(names), half and names[0].replace(".", "_").endswith(_TURNED))


def weight_of(at: Target, weight: Callable[[str], Tensor]) -> Tensor:
    """The weight that the file's module changes, (out, inp)."""
    w = torch.cat([weight(n) for n in at.names])
    return swapped(w) if at.turned else w


def split(where: str, change: Change, at: Target, rows: Sequence[int]) -> list[Change]:
    """A change of the file's module as one of each layer. rows: how many each has.

    Raises: CommonweightError where they are not as many as the module's.
    """
    have = next((len(t) for t in (change.B, change.delta, change.bias) if t is not None), sum(rows))
    if len(rows) > 1 and have != sum(rows):
        raise CommonweightError(
            f"{where}: it has {have} rows; {', '.join(at.names)} have {' + '.join(map(str, rows))}: made for another "
            "model"
        )
    rest: dict[str, Any] = {k: v for k in ("B", "m", "delta", "bias") if (v := getattr(change, k)) is not None}
    if at.turned:
        rest = {k: swapped(v) for k, v in rest.items()}
    if len(rows) == 1:
        return [change._replace(**rest)]
    cut: dict[str, Any] = {k: v.split([*rows]) for k, v in rest.items()}
    return [change._replace(**{k: v[i] for k, v in cut.items()}) for i in range(len(rows))]


def swapped(t: Tensor) -> Tensor:
    first, second = t.chunk(2)
    return torch.cat([second, first])
