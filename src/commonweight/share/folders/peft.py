"""Two stock folders: a base of K layers, and an adapter of PEFT that repeats them, with each depth's update and norms.

Loads with ``AutoModelForCausalLM.from_pretrained(folder/adapter)`` where peft is installed. Never one folder: without
peft that would load as a model of K layers, without an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...builder.forms import Relaxed
from ...builder.remote import plain_class
from ...builder.shared import stack_of
from ...core import CommonweightError

LAYOUTS = ("llama", "mistral", "bert")


def write(model: Any, folder: Path, final: Path) -> None:
    """final: where the folder will lie: the adapter names its base by it.

    Raises: CommonweightError for another architecture, and for depths that are no whole copies of a layer."""
    kind = model.config.model_type
    if kind not in LAYOUTS:
        raise CommonweightError(
            f"form=peft: PEFT's layer_replication reads llama, mistral and bert layouts, not {kind}: it does not find "
            "the layers there, or their number contradicts layer_types in the config; save it as remote-code"
        )
    owners, norms = copies(model)
    kept = sorted(set(owners))
    base, adapter = folder / "base", folder / "adapter"
    small = _base(model, kept)
    small.save_pretrained(base)
    adapter.mkdir()
    tensors, config = _adapter(model, norms)
    config["layer_replication"] = _runs([kept.index(o) for o in owners])
    config["base_model_name_or_path"] = str(final.absolute() / "base")
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    (adapter / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copies(model: Any) -> tuple[list[int], bool]:
    """(the depth whose layer each depth repeats, whether it has norms of its own)."""
    sharing = model.config.sharing
    for told in (*sharing["forms"], *sharing.get("outside", ())):
        if told["form"] != Relaxed.__name__:
            raise CommonweightError(f"form=peft: PEFT has nothing for {told['form']}; save it as remote-code")
    _, blocks = stack_of(model, sharing["path"])
    depths = range(len(blocks))  # type: ignore[arg-type]
    maps: dict[tuple[int, ...], str] = {}
    private = set()
    for name, p in blocks[0].named_parameters():  # type: ignore[index]
        if name.rpartition(".")[2] in ("A", "B") and "weight" != name.rpartition(".")[2]:
            continue
        own = tuple(sharing["tied"].get(name, depths))
        if p.dim() == 1 and own == tuple(depths):
            private.add(name)
        else:
            maps.setdefault(own, name)
    if len(maps) > 1:
        (_, a), (_, b), *_ = maps.items()
        raise CommonweightError(
            f"form=peft: {a} and {b} are shared among different depths, and PEFT repeats whole layers; save it as "
            "remote-code"
        )
    owners = next(iter(maps), tuple(depths))
    strange = [n for n in private if owners != tuple(depths) and "norm" not in n.lower()]
    if strange:
        raise CommonweightError(
            f"form=peft: {strange[0]} is each depth's own, in a repeated layer; save it as remote-code"
        )
    return list(owners), bool(private) and owners != tuple(depths)


def _base(model: Any, kept: Sequence[int]) -> Any:
    """The stock model of the layers that are stored."""
    config = deepcopy(model.config)
    sharing, path = config.sharing, stack_of(model, config.sharing["path"])[0]
    del config.sharing
    config.num_hidden_layers = len(kept)
    stock: Any = plain_class(model)
    with torch.device("meta"):
        out = stock(config)
    loras = {f"{path}.{d}.{t['at']}.{k}" for t in sharing["forms"] for d in t["depths"] for k in t["parameters"]}
    tensors = {}
    for name, t in model.state_dict().items():
        if name in loras:
            continue
        if name.startswith(f"{path}."):
            depth, _, rest = name.removeprefix(f"{path}.").partition(".")
            if int(depth) not in kept:
                continue
            name = f"{path}.{kept.index(int(depth))}.{rest}"
        tensors[name] = t.detach().clone()
    out = out.to_empty(device="cpu")
    out.load_state_dict(tensors, assign=True)
    out.tie_weights()
    return out


def _adapter(model: Any, norms: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path, blocks = stack_of(model, model.config.sharing["path"])
    updates: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    forms = model.config.sharing["forms"] or [_nothing(blocks)]
    targets = sorted({f["at"] for f in forms})
    widest = {at: max(f["parameters"]["A"][0] for f in forms if f["at"] == at) for at in targets}
    rank = max(widest.values())
    for at in targets:
        if widest[at] != rank:
            ranks[at] = widest[at]
        for depth in range(len(blocks)):  # type: ignore[arg-type]
            module: Any = blocks.get_submodule(f"{depth}.{at}")
            out, inp = module.weight.shape
            for key, shape in (("A", (widest[at], inp)), ("B", (out, widest[at]))):
                values = torch.zeros(shape, dtype=module.weight.dtype)
                if (held := getattr(module, key, None)) is not None:
                    values[: held.shape[0], : held.shape[1]] = held.detach().cpu()
                updates[f"base_model.model.{path}.{depth}.{at}.lora_{key}.weight"] = values
    saved = []
    if norms:
        for name, p in blocks.named_parameters(remove_duplicate=False):
            if "norm" in name.lower() and p.dim() == 1:
                updates[f"base_model.model.{path}.{name}"] = p.detach().cpu().clone()
                saved.append(name.partition(".")[2].rpartition(".")[0])
    config = {
        "peft_type": "LORA", "task_type": None, "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": targets, "rank_pattern": ranks, "alpha_pattern": dict(ranks), "inference_mode": True,
        "modules_to_save": sorted(set(saved)) or None,
    }  # fmt: skip
    return updates, config


def _nothing(blocks: Any) -> dict[str, Any]:
    """An update of rank 1 that is zero, at the first linear layer: PEFT wants one."""
    name = next(n for n, m in blocks[0].named_modules() if isinstance(m, torch.nn.Linear))
    out, inp = blocks[0].get_submodule(name).weight.shape
    return {"at": name, "parameters": {"A": [1, inp], "B": [out, 1]}}


def _runs(owners: Sequence[int]) -> list[list[int]]:
    """[0, 1, 2, 0, 1, 2] as [[0, 3], [0, 3]]."""
    out: list[list[int]] = []
    for o in owners:
        if out and out[-1][1] == o:
            out[-1][1] = o + 1
        else:
            out.append([o, o + 1])
    return out
