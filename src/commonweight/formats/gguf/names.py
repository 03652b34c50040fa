"""What llama.cpp calls the layers of a model of transformers, and the order in which it keeps their rows.

Held against convert_lora_to_gguf.py of llama.cpp for every model type below; experts, routers and shared experts' gates
against its tensor_mapping.py, llama-adapter.cpp and llama-graph.cpp.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import Tensor

from ...core import CommonweightError
from ..rotary import halves, neighbours

TABLE = "token_embd.weight"
INVOCATION = "adapter.alora.invocation_tokens"  # a list of uint32
_LLAMA = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
_ATTENTION = {k: v for k, v in _LLAMA.items() if k.startswith("self_attn")}
_EXPERTS = {
    **_ATTENTION,
    "mlp.gate": "ffn_gate_inp", "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}  # fmt: skip


class Architecture(NamedTuple):
    """name: in ``general.architecture``. layers: the name of a layer in a block -> llama.cpp's. turned: whether the
    rows of query and key are kept in llama.cpp's order of rotary pairs."""

    name: str
    layers: dict[str, str]
    turned: bool = False


ARCHITECTURES: dict[str, Architecture] = {  # by model_type
    "bert": Architecture("bert", {
        "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output", "intermediate.dense": "ffn_up", "output.dense": "ffn_down",
    }),
    "cohere": Architecture("command-r", _LLAMA),
    "gemma": Architecture("gemma", _LLAMA),
    "gemma2": Architecture("gemma2", _LLAMA),
    "gemma3_text": Architecture("gemma3", _LLAMA),
    "glm4_moe": Architecture("glm4moe", {
        **_LLAMA, **_EXPERTS, "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
    }),
    "gpt2": Architecture("gpt2", {
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }),
    "granite": Architecture("granite", _LLAMA, turned=True),
    "llama": Architecture("llama", _LLAMA, turned=True),
    "mistral": Architecture("llama", _LLAMA, turned=True),
    "mixtral": Architecture("llama", _EXPERTS, turned=True),
    "olmo2": Architecture("olmo2", _LLAMA),
    "olmoe": Architecture("olmoe", _EXPERTS),
    "phi3": Architecture("phi3", {
        "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }),
    "qwen2": Architecture("qwen2", _LLAMA),
    "qwen2_moe": Architecture("qwen2moe", {
        **_EXPERTS, "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    }),
    "qwen3": Architecture("qwen3", _LLAMA),
    "qwen3_moe": Architecture("qwen3moe", _EXPERTS),
    "smollm3": Architecture("smollm3", _LLAMA, turned=True),
    "stablelm": Architecture("stablelm", _LLAMA),
    "starcoder2": Architecture("starcoder2", {
        **_ATTENTION, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }),
}  # fmt: skip
MIXTURES = tuple(k for k, a in ARCHITECTURES.items() if "mlp.experts.down_proj" in a.layers)
_IN_PART = "deepseek_v2", "deepseek_v3"  # one graph, which multiplies by their weights without looking for a LoRA
_BLOCK = re.compile(r"(?:.*\.)?(?:layers|layer|h)\.(\d+)\.(.+)")


class About(NamedTuple):
    """What of a model's config the names and the order need."""

    model_type: str
    heads: int
    key_heads: int
    tied: bool = False

    @property
    def architecture(self) -> Architecture:
        """Raises: CommonweightError for a model whose names at llama.cpp are not known here."""
        if self.model_type in _IN_PART:
            raise CommonweightError(
                f"model_type {self.model_type!r}: llama.cpp puts no LoRA on its attention, and would serve a part of "
                "the tenant; keep it in its own file (host.save), or write the merged weights (host.merged)"
            )
        if self.model_type not in ARCHITECTURES:
            raise CommonweightError(
                f"model_type {self.model_type!r}: what llama.cpp calls its layers is not known here; known are "
                f"{', '.join(ARCHITECTURES)}. Export to peft, and let llama.cpp's convert_lora_to_gguf.py write it"
            )
        return ARCHITECTURES[self.model_type]


def name_of(module: str, about: About) -> str | None:
    """llama.cpp's name of a layer's weight, None where it has none. module: by the name in transformers."""
    if module in ("lm_head", "output") or module.endswith(".lm_head"):
        return "output.weight"
    if module.rpartition(".")[2] in ("embed_tokens", "wte", "word_embeddings"):
        return TABLE
    found = _BLOCK.fullmatch(module)
    if found is None or found[2] not in about.architecture.layers:
        return None
    return f"blk.{found[1]}.{about.architecture.layers[found[2]]}.weight"


def turn(name: str, B: Tensor, about: About, back: bool = False) -> Tensor:
    """Rows of B (out, r) in llama.cpp's order, or back in that of transformers: of query and key where a model rotates
    halves in the one and neighbours in the other."""
    heads = {"attn_q": about.heads, "attn_k": about.key_heads}.get(name.split(".")[-2]) if "." in name else None
    if heads is None or not about.architecture.turned:
        return B
    return halves(B, heads, name) if back else neighbours(B, heads, name)
