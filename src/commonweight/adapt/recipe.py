"""How a tenant is trained: numbers only, with their ranges."""

from __future__ import annotations

import math

from ..core import config, option


@config
class Recipe:
    """How tenants are trained: an optimizer with linear warm-up and decay, the same for every method."""

    epochs: float | None = option(
        None, "passes over the rows; none: 3, for few rows up to 30 (96 steps)", gt=0, le=10_000
    )
    batch_size: int = option(32, "rows at a time; rows per step, unless batches are accumulated", ge=1)
    accumulate: int = option(1, "batches per step; the loss is the mean over the tokens or rows of all of them", ge=1)
    eval_batch_size: int | None = option(None, "rows at a time when measuring; none: as batch_size", ge=1)
    gradient_checkpointing: bool = option(
        False, "blocks are computed once more in the backward pass instead of kept: less memory, a third more time"
    )
    bf16: bool = option(
        False, "compute in bfloat16 (autocast) and keep the numbers as they are: faster where the processor has it"
    )
    compile: bool = option(False, "torch.compile the base's blocks: a minute at the start, faster steps on a GPU")
    lr: float | None = option(None, "learning rate; none: the method's own", gt=0)
    warmup: float = option(0.06, "share of the steps over which the learning rate grows", ge=0, le=1)
    clip: float = option(1.0, "largest norm of the gradient; 0: no clipping", ge=0)
    weight_decay: float = option(0.0, "the optimizer's weight decay", ge=0)
    max_length: int | None = option(None, "tokens per row; none: 128, for language modelling 512", ge=2)
    patience: int = option(3, "epochs without a better dev score after which training stops", ge=1)
    checkpoint_every: int = option(100, "steps between checkpoints; one more at the end of every epoch", ge=1)
    base_dropout: bool = option(False, "the frozen base's own dropout, in training; off: faster, and as good or better")
    packing: bool = option(
        False, "lm: rows side by side in sequences of max_length, none sees another; batch_size counts sequences"
    )
    optimizer: str = option(
        "adamw", "adamw, adamw-8bit, adafactor, lion, lion-8bit, muon, prodigy, schedule-free, sgd or gradnormlorp"
    )
    lora_plus: float | None = option(None, "LoRA+: the rate of B over that of A, 16 say; none: the same", gt=0)
    beta: float | None = option(
        None, "dpo, kto, grpo: pull towards the base; orpo: weight of the odds; none: TRL's", ge=0
    )
    generations: int = option(8, "grpo: completions of each prompt; batch_size counts completions", ge=2)
    completion_length: int = option(256, "grpo: tokens of a completion", ge=1)
    temperature: float = option(
        1.0, "tenants trained together: rows are shown by (a tenant's number) ** (1 / this); large: all alike", ge=1
    )
    rows_shown: int = option(256, "training rows from which a method begins that asks for data (eva, fish, ...)", ge=1)
    seed: int = option(0, "seed of everything that is drawn", ge=0)

    @property
    def eval_rows(self) -> int:
        """Rows at a time when measuring."""
        return self.eval_batch_size or self.batch_size

    def per_epoch(self, rows: int) -> int:
        """Optimiser steps for one pass over so many rows; the last one may have fewer."""
        return math.ceil(math.ceil(rows / self.batch_size) / self.accumulate)

    def steps(self, rows: int) -> int:
        """Optimiser steps for so many training rows."""
        per_epoch = self.per_epoch(rows)
        few = min(30.0, max(3.0, -(-96 // per_epoch)))
        return max(1, round(per_epoch * (few if self.epochs is None else self.epochs)))
