"""What mlx-lm calls experts and routers: mlx_lm/models/mixtral.py, olmoe.py, qwen2_moe.py, qwen3_moe.py,
deepseek_v3.py, glm4_moe.py, gpt_oss.py and llama4.py.

There `switch_mlp` (a `SwitchGLU`) holds gate, up and down of all experts, each (E, out, inp), and `gate` is the router;
of gpt-oss and Llama 4 `experts` and `router`, as in transformers. The language of a model of more senses is
``language_model.model`` there, ``model.language_model`` in transformers.
"""

from __future__ import annotations

import re

from ...core import CommonweightError

MIXTURES = {
    "deepseek_v3": "mlp", "glm4_moe": "mlp", "mixtral": "block_sparse_moe", "olmoe": "mlp", "qwen2_moe": "mlp",
    "qwen3_moe": "mlp",
}  # fmt: skip
"""model_type -> the module of a block that holds both; transformers calls it ``mlp`` in all of them."""
ALIKE = "gpt_oss", "llama4_text"  # whose experts and routers have transformers' names
_THERE, _HERE = "language_model.model.", "model.language_model."
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
        return _named(module, model_type)
    if found := _EXPERTS.fullmatch(module):
        return f"{found[1]}.{home}.switch_mlp.{found[2]}"
    return f"{module.removesuffix(_ROUTER)}.{home}.gate" if module.endswith(_ROUTER) else module


def _named(module: str, model_type: str) -> str:
    """By the model that holds it. Llama 4 with experts has more senses there, also where its text alone is here."""
    if module.startswith(_HERE):
        return f"{_THERE}{module.removeprefix(_HERE)}"
    return f"language_model.{module}" if model_type == "llama4_text" else module


def back(module: str, model_type: str) -> str:
    """The name in transformers of a router; any other as it is, for experts are found by where they stand."""
    router = f".{MIXTURES.get(model_type, 'mlp')}.gate"
    return f"{module.removesuffix(router)}{_ROUTER}" if module.endswith(router) else module


def back_in(module: str, home: str) -> str:
    """The name in transformers where the language stands under `home`, ``model.language_model.`` or ``model.``."""
    if module == "language_model.lm_head":
        return "lm_head"
    return f"{home}{module.removeprefix(_THERE)}" if module.startswith(_THERE) else module
