"""Layout: torchtune/modules/peft and torchtune/models/convert_weights.py of torchtune 0.6.1."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...core import CommonweightError
from ...core.readable import CONFIG_BYTES, read_object
from .. import tensors as given
from ..changes import Change
from ..damaged import known
from ..rotary import halves

_NAMES = {
    "attn.q_proj": "self_attn.q_proj", "attn.k_proj": "self_attn.k_proj", "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj", "mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}  # fmt: skip
_SLOTS = "lora_a.weight", "lora_b.weight", "magnitude"
TURNED = "llama", "mistral", "gemma", "gemma2"  # rows of query and key in the order of Meta's code
AS_THEY_ARE = "qwen2", "qwen3"


def read(path: Path, model_type: str, heads: int, key_heads: int, alpha: float | None = None) -> dict[str, Change]:
    """{module: change}. lora_a (r, inp), lora_b (out, r), magnitude (out,) of DoRA; the scale is alpha / r.

    alpha: as the recipe's ``lora_alpha``; without it, what adapter_config.json beside the file says. A ``.pt`` is read
    by torch with weights_only, which makes tensors and runs no code of the file.
    Raises: CommonweightError for a file without alpha, of other models, or that holds anything besides tensors.
    """
    if model_type not in (*TURNED, *AS_THEY_ARE):
        raise CommonweightError(
            f"{path}: torchtune's layout of {model_type!r} is not known here; known are "
            f"{', '.join((*TURNED, *AS_THEY_ARE))}. Let torchtune save the adapter in PEFT's format"
        )
    tensors = {k: given.looked_at(f"{path}: {k}", v) for k, v in _tensors(path).items()}
    alpha = _alpha(path) if alpha is None else alpha
    found, rest = given.parts(tensors, _SLOTS)
    if rest:
        raise CommonweightError(f"{path}: {rest[0]} is no tensor of torchtune's LoRA or DoRA")
    if not found:
        raise CommonweightError(f"{path}: holds no adapter")
    out: dict[str, Change] = {}
    for module, parts in found.items():
        A, B = given.pair(f"{path}: {module}", parts.get("lora_a.weight"), parts.get("lora_b.weight"))
        m, n = parts.get("magnitude"), {"q_proj": heads, "k_proj": key_heads}.get(module.rpartition(".")[2])
        if n is not None and model_type in TURNED:
            B, m = halves(B, n, f"{path}: {module}"), None if m is None else halves(m, n, f"{path}: {module}")
        out[_name(path, module)] = Change(A, B, alpha / len(A), m)
    return out


def _name(path: Path, module: str) -> str:
    if module == "output":
        return "lm_head"
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if found is None or found[2] not in _NAMES:
        raise CommonweightError(f"{path}: {module} is no layer of a language model of torchtune that is known here")
    return f"model.layers.{found[1]}.{_NAMES[found[2]]}"


def _tensors(path: Path) -> Mapping[str, Tensor]:
    if not zipfile.is_zipfile(path):
        return given.read(path)
    with zipfile.ZipFile(path) as z:
        if not any(n.endswith("data.pkl") for n in z.namelist()):
            raise CommonweightError(f"{path}: {known(path)}")
        if any(i.compress_type != zipfile.ZIP_STORED for i in z.infolist()):
            raise CommonweightError(f"{path}: is compressed, which torch's checkpoints are not; it is not read")
    try:
        with open(path, "rb") as f:  # by its path torch goes by its ending
            found = torch.load(f, map_location="cpu", weights_only=True)
    except Exception as e:  # pickle's errors, and torch's for what is no tensor
        raise CommonweightError(
            f"{path}: holds more than tensors, or is damaged ({type(e).__name__}); a pickle can run any code and is "
            "not read as one. Save its tensors: safetensors.torch.save_file(tensors, 'adapter.safetensors')"
        ) from e
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise CommonweightError(f"{path}: wanted a dict of tensors by name, as torchtune saves an adapter")
    return found


def _alpha(path: Path) -> float:
    beside = path.parent / "adapter_config.json"
    if not beside.is_file():
        raise CommonweightError(
            f"{path}: does not say its alpha, and no adapter_config.json lies beside it; give alpha="
        )
    value = read_object(beside, CONFIG_BYTES).get("lora_alpha")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CommonweightError(f"{beside}: lora_alpha is {value!r}; wanted a number, or give alpha=")
    return float(value)
