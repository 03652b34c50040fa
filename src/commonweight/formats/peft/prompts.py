"""What PEFT puts in front of a row, in one tensor `prompt_embeddings`: PREFIX_TUNING, PROMPT_TUNING, P_TUNING.

The file holds what its network gave, if it trained one: the keys and values themselves, or the vectors of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError, Site, counted
from ..adapter import Adapter, Frozen
from . import refusals
from .common import PREFIX, Native, Subject, check, count, understood

KEY = "prompt_embeddings"
POOLED = "SEQ_CLS"  # PEFT's word for a model whose head reads one place of an encoder's row
_SHAPE = "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"


def read_prefix(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """(m, 2 L w): of each row the keys and values of layer 0, of layer 1, ...; of an encoder-decoder see `_halves`.

    Raises: CommonweightError where the base has other attentions, or counts positions in a way that is not followed.
    """
    rows, m, n = _rows(config, tensors, 2, "encoder_hidden_size", "prefix_projection")
    L = count(config, "num_layers")
    mine = [s for s in sites.values() if s.kind == "prefix"]
    if n == 2:
        mine = decoders(mine)
        if mine and not base.moves(mine[0].name):
            raise CommonweightError(
                f"adapter_config.json: PEFT lets a prefix of a decoder stand at positions, and those of "
                f"{mine[0].name} are counted in a way that is not followed here (T5's distances); train it again here"
            )
    if len(mine) != L or len({s.out for s in mine}) > 1:
        raise CommonweightError(
            f"adapter_config.json: its prefix is of {counted(L, 'layer')}{' of a decoder' if n == 2 else ''}; this "
            f"base has {counted(len(mine), 'attention')} of keys "
            f"{', '.join(map(str, dict.fromkeys(s.out for s in mine)))} wide"
        )
    w = mine[0].out
    check(KEY, rows, (m, 2 * L * w))
    each = rows.view(m, 2 * L, w).transpose(0, 1)
    values = {f"{s.name}.P": each[[*_halves(i, L, n)]].contiguous() for i, s in enumerate(mine)}
    return Adapter("prefix-tuning", {"tokens": m}, tuple(s.name for s in mine), values)


def decoders(sites: Sequence[Site]) -> list[Site]:
    """Of an encoder-decoder those before which PEFT puts its prefix: the decoder's attention to itself."""
    return [s for s in sites if "decoder" in s.name.split(".")]


def _halves(layer: int, layers: int, submodules: int) -> tuple[int, int]:
    """Which of the 2 L parts of a row are a layer's keys and values.

    For an encoder-decoder PEFT 0.21.2 lays the 2 L parts twice in a row, gives each layer four of them in turn, and
    keeps the first two: those in front of cross attention are thrown away when the cache is made. So layer i has the
    parts 4 i and 4 i + 1 modulo 2 L: of an even L half of the layers have those of the other half, and half of the file
    is not read.
    """
    return 2 * submodules * layer % (2 * layers), (2 * submodules * layer + 1) % (2 * layers)


def write_prefix(subject: Subject) -> Native:
    """The keys and values themselves, whether a network still makes them or not.

    Raises: CommonweightError where PEFT's file has no place for them.
    """
    pairs = []
    for use in subject.plan.uses:
        slots = {slot: subject.pools[r.pools[0]] for slot, r in use.reads.items()}
        pairs.append(torch.stack(use.bind.ahead(**slots)))  # (2, m, w)
    sites = list(subject.sites.values())
    if len({(s.out, s.inp) for s in sites}) > 1:
        raise CommonweightError("export_peft: the attentions are of different widths, and PEFT's prefix has one")
    m, w = pairs[0].shape[1:]
    L, n = len(pairs), 2 if decoders(sites) else 1
    parts = pairs[0].new_zeros(2 * L, m, w)
    for i, pair in enumerate(pairs):
        at = [*_halves(i, L, n)]
        if n == 2 and L % 2 == 0 and i >= L // 2 and not torch.equal(parts[at], pair):
            raise CommonweightError(
                f"export_peft: PEFT gives layers {i - L // 2} and {i} of a decoder of {counted(L, 'layer')} one "
                "prefix, and the tenant has two; its files of prefixes hold those of an odd number of layers"
            )
        parts[at] = pair
    config = {
        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": m, "token_dim": w, "num_transformer_submodules": n,
        "num_attention_heads": w // sites[0].inp, "num_layers": L, "prefix_projection": False,
    }  # fmt: skip
    return Native(config, {KEY: parts.transpose(0, 1).reshape(m, -1)})


def read_prompt(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """(m, d), of PROMPT_TUNING, or what the network of P_TUNING gave.

    PEFT's classifier of an encoder reads the first place of the longer row, where the first vector stands. Of an
    encoder-decoder the file has twice as many rows, and PEFT puts the first half in front of the encoder's.
    Raises: CommonweightError where no prompt can stand, or PEFT's own model makes something else of it.
    """
    more = [k for k in config if k.startswith(("prompt_tuning_init", "tokenizer_", "encoder_"))]
    mine = [s for s in sites.values() if s.kind == "prompt"]
    if not mine:
        raise CommonweightError(
            f"adapter_config.json: {config['peft_type']} stands in front of tokens, and in front of this base's none "
            "can stand; host.add('prompt', 'prompt-tuning') says why"
        )
    if why := unlike(mine[0], base, config.get("task_type")):
        raise CommonweightError(f"adapter_config.json: {why}; train it again here")
    rows, m, _ = _rows(config, tensors, 2 if mine[0].role == "encoder" else 1, *more, both=True)
    rows = rows[:m]
    check(KEY, rows, (m, mine[0].out))
    method, options = ("p-tuning", {"network": False}) if config["peft_type"] == "P_TUNING" else ("prompt-tuning", {})
    if mine[0].role == "" and config.get("task_type") == POOLED:
        options["leads"] = True
    return Adapter(method, {"tokens": m, **options}, (mine[0].name,), {f"{mine[0].name}.E": rows})


def unlike(site: Site, base: Frozen, task: str | None) -> str | None:
    """Why PEFT's model makes something else of a prompt; None where it does not."""
    if (by := base.scale(site.name)) != 1:
        return (
            f"{site.name}: this encoder multiplies the vectors of its tokens by {by:.4g}, and PEFT gives it the rows "
            "without that"
        )
    if site.role == "encoder" and task not in (None, "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"):
        return f"{site.name}: PEFT's {task} gives vectors to the whole model, and an encoder-decoder wants tokens there"
    if site.role == "" and task == POOLED and base.pools_all(site.name):
        return f"{site.name}: in PEFT's {task} the mean that the model's head reads is one of the prompt's places too"
    return None


def write_prompt(subject: Subject) -> Native:
    """The vectors themselves, whether a network still makes them or not."""
    use = subject.plan.uses[0]
    rows = use.bind.front(**{slot: subject.pools[r.pools[0]] for slot, r in use.reads.items()})
    kind = "P_TUNING" if subject.method == "p-tuning" else "PROMPT_TUNING"
    config = {"peft_type": kind, "num_virtual_tokens": rows.shape[0], "token_dim": rows.shape[1]}
    return Native({**config, "num_transformer_submodules": 1}, {KEY: rows})


def _rows(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], most: int, *known: str, both: bool = False
) -> tuple[Tensor, int, int]:
    """(the tensor, its tokens, of how many stacks the model is to PEFT: `most`, or fewer). both: whether it has rows
    for each stack."""
    understood(config, *_SHAPE, *known)
    n = count(config, "num_transformer_submodules", 1)
    if n > most:
        raise CommonweightError(
            f"adapter_config.json: num_transformer_submodules is {n}, as of an encoder-decoder, and this base is of "
            f"{most}; give the base that it was trained on"
        )
    if more := [k for k in tensors if k != PREFIX + KEY]:
        raise refusals.tensor(more[0], refusals.why(more[0]))
    if PREFIX + KEY not in tensors:
        raise CommonweightError(f"adapter_model.safetensors: has no {KEY}")
    rows, m = tensors[PREFIX + KEY], count(config, "num_virtual_tokens")
    if rows.dim() != 2 or rows.shape[0] != (wanted := m * n if both else m):
        raise CommonweightError(
            f"adapter_model.safetensors: {KEY} is {tuple(rows.shape)}, its config wants {wanted} rows"
        )
    return rows, m, n
