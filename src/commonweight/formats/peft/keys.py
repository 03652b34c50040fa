"""Keys of adapter files as PEFT writes them, whatever wrapped the model when they were saved."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ...core import CommonweightError, counted

PREFIX = "base_model.model."
_WRAPPERS = "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"  # torch.compile, FSDP, checkpoints
_SLOTS = (
    "lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|ia3_l|oft_R|boft_[Rs]|vera_lambda_[db]|vblora_logits_[AB]|"
    "randlora_(?:lambda|gamma|A|B)|road_(?:theta|alpha)|ln_tuning_layers|"
    "hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|hra_u|hira_[AB]|miss_block|fourierft_spectrum|waveft_spectrum|gralora_[AB](?:_general)?|"
    "c3a_kernel|delora_(?:A|B|lambda|w_norm)"
)
_NAMED = re.compile(rf"\.(?:{_SLOTS})\.([^.]+)(?=\.(?:weight|bias)$|$)")


_OF_A_METHOD = re.compile(
    r"\.(?:lora|ia3|oft|boft|vera|randlora|vblora|road|ln_tuning|hada|lokr|hra|hira|miss|fourierft|waveft|gralora|c3a|"
    r"delora)_"
)


def is_slot(key: str) -> bool:
    """Whether a tensor is an adapter's own, not a copy of a parameter of the base."""
    return _OF_A_METHOD.search(f".{key}") is not None


def bare(name: str) -> str:
    """A module's name without the parts that torch's wrappers put into it."""
    return ".".join(p for p in name.split(".") if p not in _WRAPPERS)


def bare_pattern(pattern: str) -> str:
    """The same for a regular expression over names, whose dots may be escaped."""
    return re.sub(rf"(?:{'|'.join(_WRAPPERS)})\\?\.", "", pattern)


def plain(tensors: Mapping[str, Tensor], tops: Collection[str]) -> dict[str, Tensor]:
    """Tensors by the keys that PEFT would have written. tops: first parts of the names in the base.

    Taken off: ``_orig_mod`` and its like anywhere; what stands before ``base_model`` (``module.`` of
    DistributedDataParallel, a trainer's own name); ``module.`` after it where the base has none; the adapter's name
    in a state dict that was saved by hand (``lora_A.default.weight``). Keys without ``base_model.model.`` get it.
    Raises: CommonweightError for two keys that become one, and for a state dict of several adapters.
    """
    names = {m[1] for k in tensors if (m := _NAMED.search(k)) and m[1] not in ("weight", "bias")}
    if len(names) > 1:
        raise CommonweightError(
            f"adapter_model.safetensors: a state dict of {counted(len(names), 'adapter')} "
            f"({', '.join(sorted(names))}); save each "
            "with PEFT's save_pretrained, which writes one folder for each"
        )
    ahead = any(bare(k).endswith("prompt_embeddings") for k in tensors)  # PEFT puts no `model.` before heads there
    out: dict[str, Tensor] = {}
    came: dict[str, str] = {}
    for key, value in tensors.items():
        if ".original_module." in key:  # the untouched module beside its copy in modules_to_save
            continue
        new = _plain(key, tops, names)
        if ahead and not new.startswith(PREFIX):
            new = PREFIX + new.removeprefix("base_model.")
        twice = new in out and any(".modules_to_save." in k for k in (key, came[new]))
        if twice and torch.equal(out[new], value):  # PEFT writes their biases once more with bias="all"
            continue
        if new in out:
            raise CommonweightError(
                f"adapter_model.safetensors: {came[new]} and {key} are both {new} without the prefixes of wrappers; "
                "keep one of them"
            )
        out[new], came[new] = value, key
    return out


def plain_key(key: str) -> str:
    """One key as PEFT would have written it; ``module.`` after the prefix stays, since a base may have such a part."""
    return _plain(key, ("module",), {m[1]} if (m := _NAMED.search(key)) and m[1] not in ("weight", "bias") else ())


def _plain(key: str, tops: Collection[str], names: Collection[str]) -> str:
    key = bare(key)
    before = re.match(r"(?:.*?\.)??(base_model\..*)", key)
    key = before[1] if before else PREFIX + key
    inner = key.removeprefix(PREFIX)
    if inner != key and "module" not in tops:
        while inner.startswith("module."):
            inner = inner.removeprefix("module.")
        key = PREFIX + inner
    if names and (found := _NAMED.search(key)) and found[1] in names:
        key = key[: found.start(1) - 1] + key[found.end(1) :]
    for name in names:
        key = key.replace(f".modules_to_save.{name}.", ".")
    key = re.sub(r"\.lora_magnitude_vector\.weight$", ".lora_magnitude_vector", key)  # as modules call it, not files
    return key.replace(".modules_to_save.", ".")


def targets(names: list[str], modules: Collection[str]) -> list[str] | str:
    """PEFT's target_modules: last parts of names where they name these modules and no other; else whole names;
    else, where a whole name ends another's, one regular expression."""
    for wanted in (sorted({n.rsplit(".", 1)[-1] for n in names}), sorted(names)):
        ends = tuple(f".{t}" for t in wanted)
        if {m for m in modules if m in wanted or m.endswith(ends)} == set(names):
            return wanted
    return "|".join(map(re.escape, sorted(names)))
