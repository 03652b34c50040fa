"""What of PEFT is not read here: each refusal names the part, and what can be done today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core import CommonweightError
from .kinds import KINDS, VERSION

MERGE = (
    "PEFT can merge it (merge_and_unload, then save_pretrained): the result can be a base here, or `commonweight "
    "extract` makes a LoRA of what changed in its linear layers"
)
_AGAIN = "train the adapter again without it"

# An option of a config that is on -> what it is, and what works.
_OPTIONS = {
    "alora_invocation_tokens": (
        "an activated LoRA is read at linear layers alone, without DoRA, trained biases, PiSSA or OLoRA",
        f"Serve it with PEFT; or {_AGAIN}",
    ),
    "arrow_config": ("Arrow routes each token between several adapters", "Import the adapters one by one"),
    "layer_replication": (
        "layers of the base were copied, so it belongs to a deeper model",
        "Open it on that model: the base with its layers repeated, as `commonweight merge` makes it by passthrough of "
        "slices. Or merge it with PEFT (merge_and_unload, then save_pretrained), and take the result as a base",
    ),
    "megatron_config": ("it was trained on Megatron's parallel layers", f"{MERGE}; or {_AGAIN}"),
    "trainable_token_indices": ("the file has no such rows", "Save the adapter again with PEFT"),
    "use_qalora": ("QA-LoRA averages groups of a quantised layer's inputs", f"Serve it with PEFT; or {_AGAIN}"),
}
_HEAD = (
    "Here give labels= to take a classification head along, its classes in their order (labels=['no', 'yes']), or "
    "labels=() to leave it out; on the command line --labels and --no-heads"
)


def kind(name: str) -> CommonweightError:
    """For a peft_type that is not read."""
    found = KINDS.get(name)
    if found is None:
        return CommonweightError(
            f"adapter_config.json: peft_type {name} is none of PEFT {VERSION}, which is known here: "
            f"{', '.join(sorted(n for n, k in KINDS.items() if k.how != 'refused'))}. {MERGE}"
        )
    works = MERGE if name == "TRAINABLE_TOKENS" else (
        "Serve it with PEFT, or train one of the methods here on the same rows"
    )  # fmt: skip
    return CommonweightError(f"adapter_config.json: peft_type {name} is not read: {found.says}. {works}")


def option(key: str, value: Any, more: str = "") -> CommonweightError:
    """For a config that turns on what is not read. more: what is known about it here."""
    said = repr(value) if len(repr(value)) < 120 else f"{repr(value)[:117]}..."
    if key == "modules_to_save":
        head = isinstance(value, list) and any(n in ("classifier", "score") for n in value)
        return CommonweightError(
            f"adapter_config.json: modules_to_save={said} are whole modules of the base; "
            + (
                f"this base has no such head. {_HEAD}"
                if head
                else f"this base has none of these names, or the file no weights of them. {MERGE}; or {_AGAIN}"
            )
        )
    what, works = _OPTIONS.get(key, ("this reader does not know it", f"{MERGE}; or {_AGAIN}"))
    return CommonweightError(f"adapter_config.json: {key}={said} is not supported: {what}{more}. {works}")


def moved(init: str) -> CommonweightError:
    """For an init_lora_weights that changed the base in a way that the file does not repeat."""
    loftq = init.lower().startswith("loftq")
    ways = (
        ""
        if loftq
        else "Save it in PEFT with path_initial_model_for_weight_conversion, which makes it plain LoRA; or "
        "give start= (--start), the folder of the same adapter as it was saved before training. "
    )
    return CommonweightError(
        f"adapter_config.json: init_lora_weights={init!r} moved the base weights in a way that the file does not "
        f"repeat. {ways}If the base here is the moved one, which was saved beside the adapter, set init_lora_weights "
        "to true in adapter_config.json"
    )


def trained_bias(option: Any) -> str:
    return (
        f"a bias of the base that was trained (bias={option!r}) at a layer without an adapter; biases are read where "
        f"the factors of LoRA lie beside them (bias='lora_only'). {MERGE}"
    )


def tensor(key: str, why: str) -> CommonweightError:
    return CommonweightError(f"adapter_model.safetensors: {key}: {why}")


def why(key: str, config: Mapping[str, Any] | None = None) -> str:
    """What a tensor is that no reader wants."""
    if "lora_embedding_" in key:
        return (
            f"LoRA on an embedding; adapters of embeddings are not supported. {MERGE}; or train on linear layers alone"
        )
    if "token_adapter" in key or "trainable_tokens" in key:
        return f"trained rows of an embedding (trainable tokens) of another kind of layer than is read. {MERGE}"
    if "embed" in key or ".wte." in key or ".shared." in key:
        return (
            "embeddings that are other than this base's, and none of modules_to_save; or this base has no table of "
            f"that name: made for another base. {MERGE}; or save with save_embedding_layers=False if they were not "
            "trained"
        )
    if key.endswith((".weight", ".bias")):
        return (
            "a parameter of the base or of a head saved beside the adapter, and other than this base's. "
            f"{MERGE}; or save the adapter without it"
        )
    return "no tensor that this kind of adapter has"
