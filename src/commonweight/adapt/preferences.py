"""dpo, orpo, kto and grpo through TRL's trainers. The reference model is the same host without a tenant."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from ..core import CommonweightError
from ..host import Host
from ..host.weights import device_of
from . import optimizers
from .best import Best
from .memory import peak
from .recipe import Recipe
from .trainer import Part, Progress, still

TRAINERS = {
    "dpo": ("trl", "DPO"),
    "orpo": ("trl.experimental.orpo", "ORPO"),
    "kto": ("trl", "KTO"),
    "grpo": ("trl", "GRPO"),
}


def kinds(task: str) -> tuple[type, type]:
    """(trainer, its config). Raises: CommonweightError without TRL."""
    module, name = TRAINERS[task]
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        found = import_module(module)
        return getattr(found, f"{name}Trainer"), getattr(found, f"{name}Config")
    except (ImportError, RuntimeError, AttributeError) as e:
        raise CommonweightError(f"the task {task} needs TRL: pip install commonweight[trl] ({e})") from e


class Loop(TrainerCallback):
    """Tells of each step; measures the dev rows after each epoch, keeps the best pools, stops early."""

    def __init__(
        self,
        host: Host,
        part: Part,
        recipe: Recipe,
        per_epoch: int,
        steps: int,
        progress: Any,
        settings: dict[str, Any],
    ):
        self.host, self.recipe, self.steps, self.per_epoch, self.progress = host, recipe, steps, per_epoch, progress
        self.task, self.parts, self.settings = part.task, [part], settings
        self.pools = dict(part.tenant.named_parameters())
        self.curve: list[dict[str, float]] = []
        self.best = Best(self.pools)
        self.optimizer = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Once a step, after `on_step_end`."""
        if not logs or "loss" not in logs:
            return
        loss, part = float(logs["loss"]), self.parts[0]
        bad = next((n for n, p in self.pools.items() if not p.isfinite().all()), None)
        if not math.isfinite(loss) or bad:
            raise CommonweightError(
                f"step {state.global_step}: the loss is {loss}"
                + (f", and pool {bad} has NaN or infinity" if bad else "")
                + f", at the learning rate {self.recipe.lr or part.tenant.method.lr:g}; lower it"
            )
        self.curve.append({"step": state.global_step, "loss": loss})
        last = state.global_step >= self.steps
        dev = self.score(part) if part.dev and (last or state.global_step % self.per_epoch == 0) else None
        control.should_training_stop = last or self.best.bad >= self.recipe.patience
        if self.progress is not None:
            self.progress(
                Progress(
                    part.tenant.name,
                    state.global_step,
                    self.steps,
                    loss,
                    dev,
                    state.global_step / self.per_epoch,
                    float(logs.get("learning_rate", 0.0)),
                    int(logs.get("num_tokens", 0)),
                    peak(next(iter(self.pools.values())).device),
                )
            )

    def score(self, part: Part) -> dict[str, float]:
        was = self.host.model.training
        self.host.model.eval()
        optimizers.averaged(self.optimizer)
        with torch.no_grad(), self.host.route(part.tenant.name):
            metrics = part.task.measure(self.host.model, part.dev, self.recipe.eval_rows)
        self.host.model.train(was)
        if callable(back := getattr(self.optimizer, "train", None)):
            back()
        self.curve[-1].update({f"dev_{k}": v for k, v in metrics.items() if k != "n"})
        self.best.see(metrics, part.task.better)
        return metrics

    def finish(self) -> None:
        optimizers.averaged(self.optimizer)
        self.best.put_back()


def train(
    host: Host,
    part: Part,
    task: str,
    recipe: Recipe,
    settings: dict[str, Any],
    progress: Callable[[Progress], None] | None,
) -> Loop:
    """One tenant by one of TRL's trainers.

    The policy is ``host.module(name)``, the reference ``host.module(None)``: the weights are there once. batch_size
    counts rows, of grpo completions. Cost: dpo and kto run the base once more a step. Raises: CommonweightError.
    """
    from datasets import Dataset, disable_progress_bars, enable_progress_bars
    from datasets.utils.logging import is_progress_bar_enabled

    trainer, config = kinds(task)
    policy, reference = host.module(part.tenant.name), host.module(None)
    parts = still(host, recipe.base_dropout)
    optimizer = optimizers.make(recipe, [part.tenant])
    shown = recipe.generations if task == "grpo" else 1
    per_epoch = recipe.per_epoch(len(part.train) * shown)
    steps = recipe.steps(len(part.train) * shown)
    loop = Loop(host, part, recipe, per_epoch, steps, progress, settings)
    loop.optimizer = optimizer
    rows = part.task.given(part.train)  # type: ignore[attr-defined]
    more: dict[str, Any] = {} if recipe.beta is None else {"beta": recipe.beta}
    if task == "grpo":
        if recipe.batch_size % recipe.generations:
            raise CommonweightError(
                f"grpo: batch_size {recipe.batch_size} counts completions, {recipe.generations} of each prompt; make "
                "it a multiple of generations"
            )
        # TRL takes whole steps of prompts alone, and of fewer prompts than a step has it makes none
        whole = recipe.batch_size * recipe.accumulate // recipe.generations
        rows = rows * (whole if len(rows) < whole else 1)
        more |= {"num_generations": recipe.generations, "max_completion_length": recipe.completion_length}
        part.task.answer_length = recipe.completion_length  # type: ignore[attr-defined]
    else:
        more["max_length"] = part.task.max_length
    if task == "dpo" and getattr(part.task, "truncation_side", None) == "left":
        more["truncation_mode"] = "keep_end"
    bars = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as unused, unchanged(host.model):
            args = config(
                output_dir=unused, per_device_train_batch_size=recipe.batch_size,
                gradient_accumulation_steps=recipe.accumulate, max_steps=steps, max_grad_norm=recipe.clip,
                seed=recipe.seed, save_strategy="no", logging_strategy="steps", logging_steps=1, report_to=[],
                disable_tqdm=True, use_cpu=device_of(host.model).type == "cpu", bf16=recipe.bf16,
                activation_checkpointing=False, disable_dropout=False, dataloader_pin_memory=False, **more,
            )  # fmt: skip
            warm = round(recipe.warmup * steps)
            given: dict[str, Any] = {
                "model": policy, "args": args, "train_dataset": Dataset.from_list(rows),
                "processing_class": part.task.tokenizer,  # type: ignore[attr-defined]
                "optimizers": (optimizer, optimizers.schedule(recipe.optimizer, optimizer, warm, steps)),
                "callbacks": [loop],
            }  # fmt: skip
            if task in ("dpo", "kto"):
                given["ref_model"] = reference
            if task == "grpo":
                given["reward_funcs"] = [part.task.reward]  # type: ignore[attr-defined]
            with references(trainer, reference):
                run = _stilled(trainer, parts)(**given)
            run.remove_callback(PrinterCallback)
            run.train()
    finally:
        if bars:
            enable_progress_bars()
    if not loop.curve:
        raise CommonweightError(f"{task}: TRL took no step of {len(rows)} rows; nothing was trained")
    loop.finish()
    return loop


def _stilled(trainer: type, still: list[torch.nn.Module]) -> type:
    """The trainer, with the frozen base's own dropout off in training."""

    class Stilled(trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            for module in still:  # the loop has just put the whole model into training mode
                module.training = False
            return super().compute_loss(*args, **kwargs)

    return Stilled


@contextmanager
def references(trainer: type, reference: Any) -> Iterator[None]:
    """Within it a trainer that loads a second base for its reference gets this one instead: GRPO takes none."""
    home = import_module(trainer.__module__)
    load = getattr(home, "create_model_from_path", None)
    if load is not None:
        home.create_model_from_path = lambda *_, **__: reference  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if load is not None:
            home.create_model_from_path = load  # type: ignore[attr-defined]


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """What TRL writes into the base's configs is put back."""
    names = ("pad_token_id", "use_cache")
    held = [c for c in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)) if c]
    was = [(c, n, getattr(c, n)) for c in held for n in names if hasattr(c, n)]
    tags = model.__dict__.get("model_tags")
    try:
        yield
    finally:
        for c, n, value in was:
            setattr(c, n, value)
        model.__dict__.pop("model_tags", None)
        if tags is not None:
            model.model_tags = tags
