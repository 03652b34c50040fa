"""What mlx-lm calls experts and routers: mlx_lm/models/mixtral.py, olmoe.py, qwen2_moe.py and qwen3_moe.py.

There `switch_mlp` (a `SwitchGLU`) holds gate, up and down of all experts, each (E, out, inp), and `gate` is the router.
"""

from __future__ import annotations

import re

from ...core import CommonweightError

MIXTURES = {
    "deepseek_v3": "mlp", "glm4_moe": "mlp", "mixtral": "block_sparse_moe", "olmoe": "mlp", "qwen2_moe": "mlp",
    "qwen3_moe": "mlp",
}  # fmt: skip
"""model_type -> the module of a block that holds both; transformers calls it ``mlp`` in all of them."""
_EXPERTS, _ROUTER = re.compile(r"(.+)\.mlp\.experts\.(\w+_proj)"), ".mlp.gate"
BARE = "deepseek_v3", "glm4_moe"  # whose router is no linear layer there, so that mlx-lm puts no LoRA on it
_SINGLE = re.compile(r".*\.experts\.\d+\..+")


def name_of(module: str, model_type: str) -> str:
    """mlx-lm's name of a module. module: by the name in transformers, of all experts of a projection at once.

    Raises: CommonweightError for a layer of one expert, which mlx-lm has nowhere.
    """
    if _SINGLE.fullmatch(module):
        raise CommonweightError(
            f"{module}: a layer of one expert, and mlx-lm keeps all experts in one, which is written for models whose "
            f"experts lie in one tensor here too ({', '.join(MIXTURES)} of transformers 5); export to peft"
        )
    if model_type == "deepseek_v3" and module.endswith(".kv_b_proj"):
        raise CommonweightError(
            f"{module}: mlx-lm has two layers for each head in its place (embed_q, unembed_out), which no LoRA of the "
            "whole is; make the tenant without this site, or export to peft"
        )
    home = MIXTURES.get(model_type)
    if home is None:
        return module
    if found := _EXPERTS.fullmatch(module):
        return f"{found[1]}.{home}.switch_mlp.{found[2]}"
    return f"{module.removesuffix(_ROUTER)}.{home}.gate" if module.endswith(_ROUTER) else module


def back(module: str, model_type: str) -> str:
    """The name in transformers of a router; any other as it is, for experts are found by where they stand."""
    router = f".{MIXTURES.get(model_type, 'mlp')}.gate"
    return f"{module.removesuffix(router)}{_ROUTER}" if module.endswith(router) else module
