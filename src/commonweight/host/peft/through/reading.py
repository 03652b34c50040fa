"""A folder of PEFT's, by PEFT itself, as changes of the base's weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....core import CommonweightError, Site, counted
from ....formats.adapter import Frozen
from ....formats.changes import Change
from ....formats.peft import PREFIX, refusals
from .measure import measure
from .skeleton import skeleton

_ASIDE = "modules_to_save", "trainable_token_indices", "layer_replication", "megatron_config"


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen, about: Any,
    task: int | None = None,
) -> dict[str, Change]:  # fmt: skip
    """{our site's name: change}. about: the model's config. task: of Poly.

    PEFT puts the adapter on a skeleton of the base and loads the tensors; then each layer is measured. Nothing is
    drawn from torch's own generator. Cost: the adapted weights once more in float32, and d_in products a layer.
    Raises: CommonweightError where PEFT is not there or refuses, tensors that it does not take, and for a layer whose
    answer is not linear.
    """
    for key in _ASIDE:
        if config.get(key):
            raise refusals.option(key, config[key])
    _bounded(config, tensors, sites)
    peft = _peft()
    kind = str(config["peft_type"])
    given = {k: v for k, v in config.items() if k not in ("task_type", "auto_mapping", "runtime_config")}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            theirs = peft.PeftConfig.from_peft_type(**given)
            _settled(kind, theirs, sites, tensors)
            root = skeleton(sites, base, lambda name: _targeted(peft, kind, theirs, name), about)
            if not any(True for _ in root.parameters()):
                raise CommonweightError(
                    f"made for another model: no layer of this base is called {_short(theirs.target_modules)}"
                )
            model = peft.get_peft_model(root, theirs)
            told = peft.set_peft_model_state_dict(model, dict(tensors))
        except CommonweightError:
            raise
        except Exception as e:  # whatever PEFT says of a config or a tensor
            raise CommonweightError(
                f"PEFT {peft.__version__} cannot load this {kind} adapter on this base ({_first(e)}); made for another "
                "model, or by another version of PEFT"
            ) from e
        if told.unexpected_keys:
            key = told.unexpected_keys[0].replace(".default", "")
            raise refusals.tensor(key, refusals.why(key))
        every = dict(model.named_parameters(remove_duplicate=False))  # one of all layers has many names
        loaded = {id(p) for n, p in every.items() if n not in told.missing_keys}
        if lost := [n for n, p in every.items() if model.base_model.prefix in n and id(p) not in loaded]:
            raise CommonweightError(f"adapter_model.safetensors: has no {lost[0].replace('.default', '')}")
        model.eval()
        return _measured(peft, model, sites, base, _tasks(kind, task, theirs))


def _bounded(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site]) -> None:
    """No count of a config goes beyond the sides of its tensors and of the base: PEFT makes tensors of that size."""
    sides = [n for t in tensors.values() for n in t.shape] + [n for s in sites.values() for n in (s.out, s.inp)]
    most = max([4096, *sides])
    for key, value in config.items():
        given = value.values() if isinstance(value, dict) else [value]
        for n in () if re.search(r"seed|_key$|alpha|step", key) else given:
            if isinstance(n, int) and n > most:
                raise CommonweightError(
                    f"adapter_config.json: {key}={n:,} is more than any side of its tensors or of the base ({most:,})"
                )


def _measured(
    peft: Any, model: nn.Module, sites: Mapping[str, Site], base: Frozen, kwargs: dict[str, Any]
) -> dict[str, Change]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    out: dict[str, Change] = {}
    for name, layer in model.named_modules():
        key = name.removeprefix(PREFIX)
        if key in sites and isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module):
            out[sites[key].name] = measure(layer, sites[key], base, **kwargs)
    if not out:
        raise CommonweightError("PEFT adapts no layer of this base with it; made for another model")
    return out


def _settled(kind: str, config: Any, sites: Mapping[str, Site], tensors: Mapping[str, Tensor]) -> None:
    """What of a config is of no use on a skeleton, or would need the whole model."""
    if kind == "PVERA" and config.sample_at_inference:
        raise CommonweightError(
            "adapter_config.json: sample_at_inference=true draws another change for every input, so it is no change of "
            "weights; set it to false for the mean, or serve it with PEFT"
        )
    if hasattr(config, "progressbar"):
        config.progressbar = False
    config.inference_mode = True
    if config.target_modules == "all-linear":  # PEFT means all but the head, and needs the whole model for that
        held = [
            n for n, s in sites.items() if s.kind == "linear" and any(k.startswith(f"{PREFIX}{n}.") for k in tensors)
        ]
        config.target_modules = held or [n for n, s in sites.items() if s.kind == "linear" and s.role]


def _targeted(peft: Any, kind: str, config: Any, name: str) -> bool:
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules is None:
        raise CommonweightError("adapter_config.json: names no target_modules; wanted those that PEFT wrote")
    return bool(check_target_module_exists(config, name))


def _tasks(kind: str, task: int | None, config: Any) -> dict[str, Any]:
    """What a layer of Poly wants beside its input: the task of each row."""
    if kind != "POLY":
        if task is not None:
            raise CommonweightError(f"task={task}: only an adapter of Poly has several tasks; this is {kind}")
        return {}
    if task is None or not 0 <= task < config.n_tasks:
        said = "none was given" if task is None else f"task={task} came"
        raise CommonweightError(
            f"POLY: holds {counted(config.n_tasks, 'task')}, and a tenant is one; {said}, give task=0 or another"
        )
    return {"task_ids": torch.tensor([task])}


def _peft() -> Any:
    try:
        import peft
    except ImportError as e:
        raise CommonweightError(
            "this type of adapter is read through PEFT itself, which is not installed; pip install peft==0.21.2"
        ) from e
    return peft


def _first(e: Exception) -> str:
    text = re.sub(r"\s+", " ", str(e)).strip()
    return f"{type(e).__name__}: {text[:300]}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 120 else f"{text[:117]}..."
