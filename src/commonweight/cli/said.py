"""What `commonweight adapt` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Said:
    """What the command line and the file say, the names those of the flags."""

    model: str | None = None
    data: str | None = None
    out: Path | None = None
    store: Path | None = None
    tenants: Path | None = None
    stream: Path | None = None
    overwrite: bool = False
    common: str | None = None
    over: str | None = None
    task: str | None = None
    tenant: str | None = None
    method: str | None = None
    option: Sequence[str] = ()
    sites: str | None = None
    modules_to_save: str | None = None
    token_rows: str | None = None
    codec: str | None = None
    eval_file: str | None = None
    dev: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    eval_batch_size: int | None = None
    packing: bool = False
    beta: float | None = None
    generations: int | None = None
    completion_length: int | None = None
    reward: str | None = None
    retain: str | None = None
    optimizer: str | None = None
    lora_plus: float | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    lr: float | None = None
    max_length: int | None = None
    patience: int | None = None
    rows_shown: int | None = None
    seed: int | None = None
    dtype: str | None = None
    device: str | None = None
    quantize: str | None = None
    shard: bool = False
    device_map: str | None = None
    liger: bool = False
    tokenizer: str | None = None
    compile: bool = False
    checkpoint_every: int | None = None
    resume: bool = False
    dry_run: bool = False
    log_to: str | None = None
    push_to_hub: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    task_column: str | None = None
    truncation_side: str | None = None
    no_header: bool = False

    def given(self, *names: str) -> dict[str, Any]:
        """Of these, those that were said."""
        found = {n: getattr(self, n) for n in names}
        return {n: v for n, v in found.items() if not (v is None or v is False or v == ())}

    @property
    def recipe(self) -> dict[str, Any]:
        return self.given(
            "epochs", "batch_size", "accumulate", "eval_batch_size", "gradient_checkpointing", "lr", "max_length",
            "patience", "seed", "checkpoint_every", "packing", "optimizer", "lora_plus",
            "beta", "generations", "completion_length", "compile", "bf16", "rows_shown",
        )  # fmt: skip

    @property
    def source(self) -> dict[str, Any]:
        return self.given(
            "dev",
            "text_column",
            "label_column",
            "prompt_column",
            "completion_column",
            "task_column",
            "truncation_side",
            "no_header",
            "reward",
            "retain",
        )

    @property
    def how(self) -> dict[str, Any]:
        return self.given(
            "task", "sites", "modules_to_save", "token_rows", "dtype", "device", "quantize", "shard", "device_map",
            "liger", "codec", "tokenizer",
        )  # fmt: skip
