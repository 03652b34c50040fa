"""What llama.cpp calls the layers of a model of transformers, and the order in which it keeps their rows.

Held against convert_lora_to_gguf.py of llama.cpp for every model type below; experts, routers and shared experts' gates
against its tensor_mapping.py, llama-adapter.cpp and llama-graph.cpp. Whether rows are turned is what its converter does
(conversion/*.py): llama.py turns them (`undo_permute`), llama4.py says that it does not, gpt_oss.py has no such step,
and glm.py says of GLM-4.5 that its rows are in that order already.
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
_FEED_FORWARD = {  # of Llama 4
    "feed_forward.router": "ffn_gate_inp",
    **{f"feed_forward.{n}_proj": f"ffn_{n}" for n in ("gate", "up", "down")},
    **{f"feed_forward.experts.{n}_proj": f"ffn_{n}_exps" for n in ("gate", "up", "down")},
    **{f"feed_forward.shared_expert.{n}_proj": f"ffn_{n}_shexp" for n in ("gate", "up", "down")},
}
_SHARED = {f"mlp.shared_experts.{n}_proj": f"ffn_{n}_shexp" for n in ("gate", "up", "down")}


class Architecture(NamedTuple):
    """name: in ``general.architecture``. layers: the name of a layer in a block -> llama.cpp's. turned: whether the
    rows of query and key are kept in llama.cpp's order of rotary pairs. bare: layers, and "output.weight", by which its
    graph multiplies without looking for a LoRA."""

    name: str
    layers: dict[str, str]
    turned: bool = False
    bare: tuple[str, ...] = ()


_DEEPSEEK = Architecture(  # its graph (src/models/deepseek2.cpp) calls ggml_mul_mat for these
    "deepseek2",
    {k: v for k, v in {**_LLAMA, **_EXPERTS, **_SHARED}.items() if k not in _ATTENTION or k.endswith("o_proj")},
    bare=("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "output.weight"),
)
ARCHITECTURES: dict[str, Architecture] = {  # by model_type
    "bert": Architecture("bert", {
        "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output", "intermediate.dense": "ffn_up", "output.dense": "ffn_down",
    }),
    "cohere": Architecture("command-r", _LLAMA),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gemma": Architecture("gemma", _LLAMA),
    "gemma2": Architecture("gemma2", _LLAMA),
    "gemma3_text": Architecture("gemma3", _LLAMA),
    "glm4_moe": Architecture("glm4moe", {**_LLAMA, **_EXPERTS, **_SHARED}),
    "gpt2": Architecture("gpt2", {
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }),
    "gpt_oss": Architecture("gpt-oss", {
        **{k: v for k, v in _EXPERTS.items() if k != "mlp.gate"}, "mlp.router": "ffn_gate_inp",
    }),
    "granite": Architecture("granite", _LLAMA, turned=True),
    "llama": Architecture("llama", _LLAMA, turned=True),
    "llama4_text": Architecture("llama4", {**_ATTENTION, **_FEED_FORWARD}),
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
MIXTURES = tuple(k for k, a in ARCHITECTURES.items() if any(n.endswith("experts.down_proj") for n in a.layers))
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
        if self.model_type not in ARCHITECTURES:
            raise CommonweightError(
                f"model_type {self.model_type!r}: what llama.cpp calls its layers is not known here; known are "
                f"{', '.join(ARCHITECTURES)}. Export to peft, and let llama.cpp's convert_lora_to_gguf.py write it"
            )
        return ARCHITECTURES[self.model_type]


def name_of(module: str, about: About) -> str | None:
    """llama.cpp's name of a layer's weight that takes a LoRA, None where it has none. module: by the name in
    transformers."""
    if module in ("lm_head", "output") or module.endswith(".lm_head"):
        return None if "output.weight" in about.architecture.bare else "output.weight"
    if module.rpartition(".")[2] in ("embed_tokens", "wte", "word_embeddings"):
        return TABLE
    found = _BLOCK.fullmatch(module)
    if found is None or found[2] not in about.architecture.layers:
        return None
    return f"blk.{found[1]}.{about.architecture.layers[found[2]]}.weight"


def bare(module: str, about: About) -> bool:
    """Whether llama.cpp has the layer and puts no LoRA on it."""
    last = module.rpartition(".")[2]
    return ("output.weight" if last == "lm_head" else last) in about.architecture.bare


def turn(name: str, B: Tensor, about: About, back: bool = False) -> Tensor:
    """Rows of B (out, r) in llama.cpp's order, or back in that of transformers: of query and key where a model rotates
    halves in the one and neighbours in the other."""
    heads = {"attn_q": about.heads, "attn_k": about.key_heads}.get(name.split(".")[-2]) if "." in name else None
    if heads is None or not about.architecture.turned:
        return B
    return halves(B, heads, name) if back else neighbours(B, heads, name)
