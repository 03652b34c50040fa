"""What PEFT puts in front of a row, in one tensor `prompt_embeddings`: PREFIX_TUNING, PROMPT_TUNING, P_TUNING.

The file holds what its network gave, if it trained one: the keys and values themselves, or the vectors of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError, Site, counted
from ..adapter import Adapter, Frozen
from . import refusals
from .common import PREFIX, Native, Subject, check, count, understood

KEY = "prompt_embeddings"
_SHAPE = "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"


def read_prefix(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """(m, 2 L w): of each row the keys and values of layer 0, of layer 1, ..."""
    rows, m = _rows(config, tensors, "encoder_hidden_size", "prefix_projection")
    L = count(config, "num_layers")
    mine = [s for s in sites.values() if s.kind == "prefix"]
    if len(mine) != L or len({s.out for s in mine}) > 1:
        raise CommonweightError(
            f"adapter_config.json: its prefix is of {counted(L, 'layer')}; this base has "
            f"{counted(len(mine), 'attention')} of keys {', '.join(map(str, dict.fromkeys(s.out for s in mine)))} wide"
        )
    w = mine[0].out
    check(KEY, rows, (m, 2 * L * w))
    each = rows.view(m, L, 2, w).permute(1, 2, 0, 3)
    values = {f"{s.name}.P": each[i].contiguous() for i, s in enumerate(mine)}
    return Adapter("prefix-tuning", {"tokens": m}, tuple(s.name for s in mine), values)


def write_prefix(subject: Subject) -> Native:
    """The keys and values themselves, whether a network still makes them or not."""
    pairs = []
    for use in subject.plan.uses:
        slots = {slot: subject.pools[r.pools[0]] for slot, r in use.reads.items()}
        pairs.append(torch.stack(use.bind.ahead(**slots)))  # (2, m, w)
    sites = list(subject.sites.values())
    if len({(s.out, s.inp) for s in sites}) > 1:
        raise CommonweightError("export_peft: the attentions are of different widths, and PEFT's prefix has one")
    m, w = pairs[0].shape[1:]
    rows = torch.stack(pairs).permute(2, 0, 1, 3).reshape(m, -1)
    config = {
        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": m, "token_dim": w, "num_transformer_submodules": 1,
        "num_attention_heads": w // sites[0].inp, "num_layers": len(pairs), "prefix_projection": False,
    }  # fmt: skip
    return Native(config, {KEY: rows})


def read_prompt(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """(m, d), of PROMPT_TUNING, or what the network of P_TUNING gave."""
    more = [k for k in config if k.startswith(("prompt_tuning_init", "tokenizer_", "encoder_"))]
    rows, m = _rows(config, tensors, *more)
    mine = [s for s in sites.values() if s.kind == "prompt"]
    if not mine:
        raise CommonweightError(
            f"adapter_config.json: {config['peft_type']} stands in front of the tokens of a causal decoder, and this "
            "base is none; train prefix-tuning on the same rows, which reads encoders too"
        )
    check(KEY, rows, (m, mine[0].out))
    method, options = ("p-tuning", {"network": False}) if config["peft_type"] == "P_TUNING" else ("prompt-tuning", {})
    return Adapter(method, {"tokens": m, **options}, (mine[0].name,), {f"{mine[0].name}.E": rows})


def write_prompt(subject: Subject) -> Native:
    """The vectors themselves, whether a network still makes them or not."""
    use = subject.plan.uses[0]
    rows = use.bind.front(**{slot: subject.pools[r.pools[0]] for slot, r in use.reads.items()})
    kind = "P_TUNING" if subject.method == "p-tuning" else "PROMPT_TUNING"
    config = {"peft_type": kind, "num_virtual_tokens": rows.shape[0], "token_dim": rows.shape[1]}
    return Native({**config, "num_transformer_submodules": 1}, {KEY: rows})


def _rows(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *known: str) -> tuple[Tensor, int]:
    """(the tensor, its tokens)."""
    understood(config, *_SHAPE, *known)
    if count(config, "num_transformer_submodules", 1) != 1:
        raise CommonweightError(
            "adapter_config.json: num_transformer_submodules is 2: it stands in front of the encoder's and the "
            "decoder's attention, in PEFT's own way; train it again here"
        )
    if more := [k for k in tensors if k != PREFIX + KEY]:
        raise refusals.tensor(more[0], refusals.why(more[0]))
    if PREFIX + KEY not in tensors:
        raise CommonweightError(f"adapter_model.safetensors: has no {KEY}")
    rows, m = tensors[PREFIX + KEY], count(config, "num_virtual_tokens")
    if rows.dim() != 2 or rows.shape[0] != m:
        raise CommonweightError(f"adapter_model.safetensors: {KEY} is {tuple(rows.shape)}, its config wants {m} rows")
    return rows, m
