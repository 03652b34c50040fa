"""What PEFT and transformers call the things that have another name here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .errors import CommonweightError, unknown

# An option there -> the same option here: the number means the same.
OPTIONS: Mapping[str, str] = {
    # peft.LoraConfig and its kin
    "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "rslora",
    "alora_invocation_tokens": "invocation",
    "target_modules": "sites", "trainable_token_indices": "token_rows",
    "vera_dropout": "dropout", "vblora_dropout": "dropout", "randlora_dropout": "dropout",
    "randlora_alpha": "alpha", "module_dropout": "dropout", "reduction_factor": "reduction",
    "miss_dropout": "dropout", "gralora_dropout": "dropout", "gralora_k": "blocks", "hybrid_r": "hybrid",
    "delora_lambda": "bound", "decompose_factor": "factor", "decompose_both": "both",
    "oft_block_size": "block_size", "boft_block_size": "block_size",
    "num_virtual_tokens": "tokens",
    # transformers.TrainingArguments
    "num_train_epochs": "epochs", "num_epochs": "epochs", "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size", "gradient_accumulation_steps": "accumulate",
    "max_seq_length": "max_length", "max_seq_len": "max_length", "max_grad_norm": "clip", "warmup_ratio": "warmup",
    "save_steps": "checkpoint_every", "early_stopping_patience": "patience", "output_dir": "out",
    "torch_dtype": "dtype", "task_type": "task", "peft_type": "method", "model_name_or_path": "model",
    "train_file": "data", "validation_file": "dev", "test_file": "eval", "dataset_text_field": "text_column",
}  # fmt: skip

TASKS: Mapping[str, str] = {"seq_cls": "classify", "causal_lm": "lm", "feature_extraction": "embed"}  # peft.TaskType

# What PEFT has and this library has not, by its name there -> what is nearest here.
NEAREST: Mapping[str, str] = {
    "adaption-prompt": "'prefix-tuning', without the gate",
    "multitask-prompt-tuning": "'prompt-tuning', one for each task; 'poly' or 'mos' share parameters among tasks",
    "cpt": "'prompt-tuning', which trains all of its vectors",
    "bone": "'miss', which it became",
    "shira": "'fish', which trains single entries of the weights too",
    "trainable-tokens": "'tokens', or token_rows beside another method",
    "qlora": "'lora', on a base that is loaded in 4 bits",
}

# What is called a method there and is an option of one here: its name -> the method, and what the name says of it.
MEANS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lora-fa": ("lori", {"sparsity": 0.0}),
    "rslora": ("lora", {"rslora": True}),
}


def option(name: str, known: Collection[str]) -> str:
    """The name here of an option by a peer's name, where it is one of `known`; else as it came."""
    if name in known or not isinstance(name, str):
        return name
    plain = name.replace("-", "_")
    here = plain if plain in known else OPTIONS.get(plain, name)
    return here if here in known else name


def method(name: str, known: Iterable[str]) -> str:
    """The name here of a method in a peer's spelling, as in LORA, VBLORA or LN_TUNING; else as it came. A name may say
    options too, see `said`."""
    found = {_bare(n): n for n in known}
    meant = next((here for n, (here, _) in MEANS.items() if _bare(n) == _bare(name) and _bare(here) in found), name)
    return found.get(_bare(name)) or found.get(f"{_bare(name)}tuning") or meant


def said(name: Any) -> Mapping[str, Any]:
    """The options that a method's name says, as LORA_FA does; of other names none."""
    return next((dict(o) for n, (_, o) in MEANS.items() if isinstance(name, str) and _bare(n) == _bare(name)), {})


OVER = ("arrow", "autolora", "lorahub", "phatgoose", "psec", "xlora")  # what they weigh are tenants

# what learns tasks in a row
STREAMS = (
    "coda-prompt",
    "conpet",
    "coso",
    "dualprompt",
    "ewc",
    "inflora",
    "joint",
    "k-fpf",
    "l2p",
    "lwf",
    "mocl-p",
    "o-lora",
    "par",
    "replay",
    "separate",
    "sequential",
    "spu",
)


def known(name: str, names: Iterable[str]) -> str:
    """`method`, of these. Raises: CommonweightError for what is none, with what to take in its place."""
    names = list(names)
    here = method(str(name), names)
    if here in names:
        return here
    here = method(str(name), OVER)
    if here in OVER:
        raise CommonweightError(
            f"{here} weighs other tenants, and is told which: adapt --over NAME,NAME on the command line; in Python "
            f"adapt(..., method={here!r}, over=[NAMES]) or host.add(..., over=[NAMES])"
        )
    if (here := method(str(name), STREAMS)) in STREAMS:
        raise CommonweightError(
            f"{here} learns tasks one after another, from a file that lists them: adapt --stream tasks.yaml --method "
            f"{here}; in Python lifelong.learn"
        )
    if (instead := nearest(str(name))) is not None:
        raise CommonweightError(f"unknown method {name!r}: this library does not have it; nearest here: {instead}")
    raise unknown("method", str(name), names, "(`commonweight methods` lists them)")


def nearest(name: str) -> str | None:
    """What to take here in place of a method that only a peer has."""
    return {_bare(k): v for k, v in NEAREST.items()}.get(_bare(name))


def elsewhere(name: str) -> str | None:
    """Where that is said which a peer's config has among its options, and this library has not."""
    here = OPTIONS.get(str(name).replace("-", "_"), name)
    return {
        "sites": "layers are chosen by sites, globs over their names: --sites '*.q_proj|*.v_proj', "
        "host.add(..., sites=...)",
        "task": "a task is --task classify, lm or embed",
        "method": "a method is --method, and host.add's second argument",
        "modules_to_save": "whole modules are held beside the method: --modules-to-save embed_tokens,lm_head, "
        "host.add(..., modules_to_save=...); a classifier's own head comes with labels",
        "token_rows": "entries of the vocabulary are trained beside the method: --token-rows 5,7, "
        "host.add(..., token_rows=...)",
        "layers_to_transform": "layers are chosen by sites, globs over their names: --sites '*.layers.[0-9].*'",
        "exclude_modules": "layers are left out by sites, with ! before a glob: --sites '!*.q_proj|!*.v_proj'",
        "init_lora_weights": "another start is a method of its own: 'pissa', 'olora', 'eva', 'lora-ga'",
        "use_dora": "DoRA is a method of its own: --method dora",
        "rank_pattern": "ranks of single layers are pairs of a glob and a number: ranks='[[\"*.q_proj\", 4]]'",
        "alpha_pattern": "alphas of single layers are pairs of a glob and a number: alphas='[[\"*.q_proj\", 8]]'",
        "block_size_pattern": "blocks of single layers are pairs of a glob and a size: "
        "block_sizes='[[\"*.q_proj\", 16]]'",
        "inference_mode": "a tenant that is only read needs no option",
        "base_model_name_or_path": "the base model is the host's, or adapt's MODEL",
    }.get(here) or (f"it is a number of the training: --{here.replace('_', '-')}" if here in TRAINING else None)


TRAINING = (
    "epochs", "batch_size", "eval_batch_size", "lr", "accumulate", "max_length", "clip", "warmup", "patience",
    "checkpoint_every", "weight_decay", "seed", "dtype", "gradient_checkpointing",
)  # fmt: skip


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
