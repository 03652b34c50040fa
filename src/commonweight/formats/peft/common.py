"""What the families share: the keys of a PEFT file, what of its config is understood, clear refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import regex
from torch import Tensor

from ...core import CommonweightError, Plan, Site
from ..adapter import Frozen
from . import refusals
from .keys import PREFIX, bare, bare_pattern

# Written by PEFT in every config and of no weight here: the sites are taken from the keys of the tensors, the
# layout of a weight from the model, and how a tensor was first filled no longer matters once it is in the file.
_SILENT = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_weights", "layers_pattern", "layers_to_transform", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
WHERE = "; made for another model, or for another kind of layer than this method reads in such files"
SECONDS = 1  # for a pattern of a file at one name
_OFF = (None, False, {}, [], "none")
_AS = {"expert": "linear", "router": "linear"}  # to PEFT they are linear layers


class Native(NamedTuple):
    """An adapter in PEFT's words: its config, and tensors by ``<our name of the site>.<slot>`` or a whole key."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


class Subject(NamedTuple):
    """A tenant as a writer sees it. sites: those it reads, by name; prefix: what PEFT does not see of these names."""

    method: str
    config: Any
    plan: Plan
    sites: Mapping[str, Site]
    pools: Mapping[str, Tensor]
    base: Frozen
    prefix: str = ""

    def pool(self, site: str, slot: str, at: int = 0) -> Tensor:
        """The first (or `at`-th) pool that a site's slot reads."""
        reads = next(u.reads for u in self.plan.uses if u.site == site)
        return self.pools[reads[slot].pools[at]]

    def short(self, site: str) -> str:
        return short(site, self.prefix)


def short(name: str, prefix: str) -> str:
    """A name of the host's as PEFT sees it: without torch's wrappers, and without what was put around the model."""
    return bare(name).removeprefix(prefix)


def understood(config: Mapping[str, Any], *known: str) -> None:
    """Refuses a config that turns on anything besides `known`."""
    for key, value in config.items():
        if key not in known and not is_off(key, value):
            raise refusals.option(key, value)


def is_off(key: str, value: Any) -> bool:
    """Whether an option of a config has no weight here."""
    return key in _SILENT or value in _OFF


def split(
    tensors: Mapping[str, Tensor],
    slots: Collection[str],
    sites: Mapping[str, Site],
    also: Collection[str] = (),
    kind: str = "linear",
    more: Collection[str] = (),
) -> dict[str, dict[str, Tensor]]:
    """{PEFT's name of a site: {slot: tensor}}; `also`: keys of no site. more: other kinds of sites. Any other
    key is refused by name."""
    out: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key in also:
            continue
        slot = next((s for s in slots if key.startswith(PREFIX) and key.endswith(f".{s}")), None)
        if slot is None:
            raise refusals.tensor(key, refusals.why(key))
        site = key[len(PREFIX) : -len(slot) - 1]
        if site not in sites or _AS.get(sites[site].kind, sites[site].kind) not in (kind, *more):
            fused = ": the host splits it (fused=...), PEFT does not" if f"{site}[0]" in sites else ""
            raise CommonweightError(
                f"adapter_model.safetensors: {key}: this base has no {kind} layer {site}{fused or WHERE}"
            )
        out.setdefault(site, {})[slot] = value
    if not out:
        raise CommonweightError("adapter_model.safetensors: holds no adapter")
    return out


def whole(found: Mapping[str, Mapping[str, Tensor]], *slots: str) -> None:
    """Every site has every slot."""
    for site, given in found.items():
        if missing := [s for s in slots if s not in given]:
            raise CommonweightError(f"adapter_model.safetensors: {PREFIX}{site} has no {missing[0]}")


def check(key: str, value: Tensor, want: tuple[int, ...], what: str = "the base wants") -> None:
    if tuple(value.shape) != want:
        raise CommonweightError(f"adapter_model.safetensors: {key} is {tuple(value.shape)}, {what} {want}")


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> Any:
    """A number of the config; null and missing are the default."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CommonweightError(f"adapter_config.json: {key} is {value!r}; wanted a number")
    return value


def count(config: Mapping[str, Any], key: str, default: int | None = None, most: int | None = None) -> int:
    """A number 1, 2, ... of the config; `most` where nothing in the file bounds it."""
    value = number(config, key, default)
    if value < 1 or value != int(value) or (most is not None and value > most):
        raise CommonweightError(
            f"adapter_config.json: {key} is {value!r}; wanted 1, 2, ...{'' if most is None else f', {most:,} at most'}"
        )
    return int(value)


def seed(config: Mapping[str, Any], key: str) -> int:
    """A seed for torch's generator, as PEFT gives it."""
    value = number(config, key)
    if value != int(value) or not -(2**63) <= value < 2**64:
        raise CommonweightError(f"adapter_config.json: {key} is {value!r}; wanted a seed, a whole number of 64 bits")
    return int(value)


def patterns(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """PEFT's rank_pattern or alpha_pattern: {regular expression: number}."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CommonweightError(f"adapter_config.json: {key} is {value!r}; wanted an object of numbers")
    return {bare_pattern(k): number(value, k) for k in value}


def by_pattern(patterns: Mapping[str, Any], site: str, default: Any, where: str = "adapter_config.json") -> Any:
    """The first regular expression that a dotted tail of the name matches. A file is anybody's: a search has an end."""
    for pattern, value in patterns.items():
        try:
            if regex.fullmatch(rf"(?:.*\.)?(?:{pattern})", site, timeout=SECONDS):
                return value
        except TimeoutError as e:
            raise CommonweightError(f"{where}: the pattern {pattern[:80]!r} takes too long at {site}") from e
        except (regex.error, RecursionError, OverflowError) as e:
            raise CommonweightError(f"{where}: the pattern {pattern[:80]!r} is not a regular expression ({e})") from e
    return default


def one_of(what: str, values: Mapping[str, Any]) -> Any:
    """The value that all sites have."""
    first, *rest = values.items()
    for site, value in rest:
        if value != first[1]:
            raise CommonweightError(
                f"adapter_model.safetensors: {what} is {first[1]} at {first[0]} and {value} at {site}; "
                "an adapter with different ones is not supported"
            )
    return first[1]


def exactly(site: str) -> str:
    """The regular expression for one site and no other."""
    return f"^{re.escape(site)}"
