"""A looped BERT as a stock ALBERT: K inner layers that run B times, norms too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...builder.remote import plain_class
from ...builder.shared import stack_of
from ...core import CommonweightError

_NAMES = {  # of a BERT layer -> of an ALBERT layer
    "attention.self.query": "attention.query", "attention.self.key": "attention.key",
    "attention.self.value": "attention.value", "attention.output.dense": "attention.dense",
    "attention.output.LayerNorm": "attention.LayerNorm", "intermediate.dense": "ffn", "output.dense": "ffn_output",
    "output.LayerNorm": "full_layer_layer_norm",
}  # fmt: skip


def write(model: Any, folder: Path, final: Path) -> None:
    """Raises: CommonweightError where it is no BERT whose depths repeat whole layers in a cycle or a sequence."""
    convert(model).save_pretrained(folder)


def convert(model: Any) -> Any:
    """The same numbers as an AlbertModel."""
    from transformers import AlbertConfig, AlbertModel

    if plain_class(model).__name__ != "BertModel":
        raise CommonweightError(
            f"form=albert holds a BertModel, this is a {plain_class(model).__name__}; save it as remote-code"
        )
    c = model.config
    groups, inner = _loops(model)
    config = AlbertConfig(
        vocab_size=c.vocab_size, embedding_size=c.hidden_size, hidden_size=c.hidden_size,
        num_hidden_layers=len(groups) // inner, inner_group_num=inner,
        num_hidden_groups=1 if inner > 1 else max(groups) + 1, num_attention_heads=c.num_attention_heads,
        intermediate_size=c.intermediate_size,
        hidden_act=c.hidden_act, hidden_dropout_prob=c.hidden_dropout_prob,
        attention_probs_dropout_prob=c.attention_probs_dropout_prob, max_position_embeddings=c.max_position_embeddings,
        type_vocab_size=c.type_vocab_size, layer_norm_eps=c.layer_norm_eps, pad_token_id=c.pad_token_id,
        classifier_dropout_prob=c.hidden_dropout_prob, dtype=model.dtype,
    )  # fmt: skip
    out = AlbertModel(config, add_pooling_layer=model.pooler is not None).to(model.dtype).eval()
    tensors = {}
    for name, t in model.state_dict().items():
        if name.startswith("encoder.layer."):
            depth, _, rest = name.removeprefix("encoder.layer.").partition(".")
            place = _place(int(depth), groups, inner)
            if place is not None:
                module, _, key = rest.rpartition(".")
                tensors[f"encoder.albert_layer_groups.{place[0]}.albert_layers.{place[1]}.{_NAMES[module]}.{key}"] = t
        elif name.startswith("pooler.dense."):
            tensors[name.replace("pooler.dense", "pooler")] = t
        else:
            tensors[name] = t
    eye = torch.eye(c.hidden_size, dtype=model.dtype)
    tensors["encoder.embedding_hidden_mapping_in.weight"] = eye
    tensors["encoder.embedding_hidden_mapping_in.bias"] = torch.zeros(c.hidden_size, dtype=model.dtype)
    out.load_state_dict(tensors)
    return out


def _loops(model: Any) -> tuple[list[int], int]:
    """(the unit at each depth, inner layers of a group): 0 1 0 1 is one group of two, 0 0 1 1 two groups of one."""
    sharing = model.config.sharing
    _, blocks = stack_of(model, sharing["path"])
    depths = list(range(len(blocks)))  # type: ignore[arg-type]
    maps = {tuple(sharing["tied"].get(n, depths)) for n, _ in blocks[0].named_parameters()}  # type: ignore[index]
    if len(maps) > 1 or sharing["forms"] or "outside" in sharing:
        raise CommonweightError(
            "form=albert repeats whole layers, norms too, and nothing else; this model has more of its own at each "
            "depth; save it as remote-code"
        )
    (owners,) = maps
    units = [sorted(set(owners)).index(o) for o in owners]
    k, n = max(units) + 1, len(units)
    if n % k == 0 and units == [i // (n // k) for i in range(n)]:
        return units, 1
    if n % k == 0 and units == [i % k for i in range(n)]:
        return units, k
    raise CommonweightError(f"form=albert runs layers in a cycle or a sequence, not as {units}; save it as remote-code")


def _place(depth: int, units: list[int], inner: int) -> tuple[int, int] | None:
    """(group, layer) that holds a depth's numbers, for the first depth of each unit."""
    if depth != units.index(units[depth]):
        return None
    return (0, units[depth]) if inner > 1 else (units[depth], 0)
