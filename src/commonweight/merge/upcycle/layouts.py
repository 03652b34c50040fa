"""How mixtures are written: names and config of a mixture-of-experts model beside those of its dense kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core import CommonweightError

DENSE = ("gate_proj", "up_proj", "down_proj")  # of a layer's feed-forward network, in all of the dense models here


@dataclass(frozen=True)
class Layout:
    """name: a model_type of transformers. inside: where a layer has its mixture. parts: the dense names -> an expert's.
    counts: the config's key for the number of experts. shared: whether there is one expert for every token.
    plain: keys of the dense config that must be false, with what they would add."""

    name: str
    architecture: str
    inside: str
    counts: str
    parts: Mapping[str, str] = field(default_factory=lambda: dict(zip(DENSE, DENSE)))
    shared: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    plain: tuple[str, ...] = ()

    def gate(self, layer: int) -> str:
        return f"model.layers.{layer}.{self.inside}.gate.weight"

    def expert(self, layer: int, i: int, part: str) -> str:
        return f"model.layers.{layer}.{self.inside}.experts.{i}.{self.parts[part]}.weight"

    def common(self, layer: int, part: str) -> str:
        """Of the shared expert; part "gate": what decides how much of it a token gets."""
        end = "shared_expert_gate" if part == "gate" else f"shared_expert.{part}"
        return f"model.layers.{layer}.{self.inside}.{end}.weight"


_MIXTRAL = Layout(
    "mixtral", "MixtralForCausalLM", "block_sparse_moe", "num_local_experts",
    dict(zip(DENSE, ("w1", "w3", "w2"))), plain=("attention_bias", "mlp_bias"),
)  # fmt: skip
_QWEN = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
_OF = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen2": Layout("qwen2_moe", "Qwen2MoeForCausalLM", "mlp", "num_experts", shared=True, more=_QWEN),
    "qwen3": Layout("qwen3_moe", "Qwen3MoeForCausalLM", "mlp", "num_experts", more=_QWEN),
}


def layout(base: Mapping[str, Any], shared: bool) -> Layout:
    """Of a mixture of models like the base. Raises: CommonweightError where there is none, or it would lose something
    that the base has."""
    kind = str(base.get("model_type"))
    if kind not in _OF:
        raise CommonweightError(
            f"base_model is a {kind}: no mixture is written of it; there are {', '.join(sorted(_OF))}"
        )
    found = _OF[kind]
    if found.shared != shared:
        has = "has one shared expert: give shared_experts" if found.shared else "has none: leave shared_experts out"
        raise CommonweightError(f"shared_experts: {found.name}, which a {kind} becomes, {has}")
    if lost := [k for k in found.plain if base.get(k)]:
        raise CommonweightError(f"base_model: its config says {lost[0]}, and {found.name} has no such bias")
    return found


def config(found: Layout, base: Mapping[str, Any], experts: int, active: int) -> dict[str, Any]:
    """The mixture's config.json: the base's, with the keys of experts."""
    drop = {"model_type", "architectures", "quantization_config", "pretraining_tp", "use_sliding_window", *found.plain}
    out = {k: v for k, v in base.items() if k not in drop}
    out |= {"model_type": found.name, "architectures": [found.architecture], found.counts: experts}
    out |= {"num_experts_per_tok": active, **found.more}
    wide = base["intermediate_size"]
    if found.name != "mixtral":
        out["moe_intermediate_size"] = wide
        out["use_sliding_window"] = base.get("use_sliding_window", False)
    elif base["model_type"] == "llama":
        out["sliding_window"] = None
    return out | ({"shared_expert_intermediate_size": wide} if found.shared else {})
