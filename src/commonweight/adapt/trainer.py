"""The loop is transformers.Trainer's. Here: what is told to it, and its checkpoints in our format."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..core import CommonweightError, build
from ..core.schedule import Counting, Schedule, Watching
from ..host import Host, Tenant
from ..host.module import TenantModule, together
from ..host.weights import device_of
from . import optimizers, processes
from .begun import reached, unread
from .best import Best
from .by_task import answering
from .checkpoint import Checkpoint, Store, random_states, read, set_random_states
from .complete import taught
from .memory import peak
from .offload import mapped
from .penalties import audible, penalty, routed
from .recipe import Recipe
from .sampler import Mixed
from .scheduled import Scheduled, said
from .tasks.base import Example, Task, length
from .tasks.packing import tokens_of


@dataclass(frozen=True)
class Progress:
    """What a progress callback is given after every step. dev: metrics, right after they were measured; of several
    tenants their means, and those of each as ``tenant/metric``. epoch: passes done. rate: the learning rate of the
    step (of several, the largest). tokens: read in all steps so far, padding aside, those before a resume left out.
    memory: bytes at most so far, see `memory.peak`."""

    tenant: str
    step: int
    steps: int
    loss: float
    dev: dict[str, float] | None = None
    epoch: float = 0.0
    rate: float = 0.0
    tokens: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Part:
    """One tenant's part in a run: what it is trained for, on what, and what it is measured on. schedule: beside that of
    its method, which then has none. optimizer: of the run, in place of the recipe's."""

    tenant: Tenant
    task: Task
    train: list[Example]
    dev: list[Example]
    kept: Sequence[Example] = ()
    schedule: Schedule | None = None
    optimizer: optimizers.Maker | None = None

    @property
    def scheduled(self) -> bool:
        return self.between is not None

    @property
    def between(self) -> Schedule | None:
        """What is done between its steps."""
        own = self.tenant
        return self.schedule if self.schedule is not None else own.method.scheduled(own.config, own.plan)


def heard(part: Part) -> bool:
    """Whether somebody listens to a part: to its routers its loss, or what counts their choices; or to its states."""
    between = part.between
    if counts := isinstance(between, Counting):
        audible(part.tenant)
    return routed(part.tenant) or counts or isinstance(between, Watching)


class Watch(TrainerCallback):
    """Measures the dev rows after each epoch, keeps the best pools, stops early, asks for checkpoints."""

    def __init__(self, run: Run):
        self.run = run

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for schedule in self.run.schedules:
            if schedule.begin():
                self.run.renew()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.run.sampler.epoch = state.global_step // self.run.per_epoch

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.run.pace(state.global_step / self.run.steps)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.run.step_loss()

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for schedule in self.run.schedules:
            if schedule.after(state.global_step + 1, self.run.probe):
                self.run.renew()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        run, step = self.run, state.global_step
        last = step >= run.steps
        epoch_ends = last or step % run.per_epoch == 0
        if epoch_ends:
            run.check_pools(step)
        dev = run.score() if epoch_ends and any(p.dev for p in run.parts) else None
        stop = dev is not None and run.best.bad >= run.recipe.patience
        run.done = last or stop
        control.should_training_stop = run.done
        control.should_save = run.store is not None and (epoch_ends or step % run.recipe.checkpoint_every == 0)
        if run.progress is not None and processes.first():
            names = ", ".join(p.tenant.name for p in run.parts)
            epoch = step / run.per_epoch
            device = next(iter(run.pools.values())).device
            run.progress(Progress(names, step, run.steps, run.loss, dev, epoch, run.rate, run.tokens, peak(device)))


class Run(Trainer):
    """The training of one tenant on its host, or of several in mixed batches: pools that they share are written by all.

    A run that was killed and resumed ends with the same bits. parts: of one task, with one tokenizer and room.
    unused: a folder that transformers.Trainer insists on; nothing is written there.
    """

    def __init__(
        self,
        host: Host,
        parts: Sequence[Part],
        recipe: Recipe,
        settings: dict[str, Any],
        store: Store | None,
        progress: Callable[[Progress], None] | None,
        unused: str,
    ):
        tenants = [p.tenant for p in parts]
        module = host.module([t.name for t in tenants])
        self.host, self.module, self.parts, self.recipe = host, module, parts, recipe
        self.task, self.pools = taught(host, parts), together(tenants)
        self.still = still(host, recipe.base_dropout)
        self.settings, self.store, self.progress = settings, store, progress
        apart = len(parts) > 1 and not self.task.mixes
        lengths = [[length(e) for e in p.train] for p in parts]
        self.sampler = Mixed(lengths, recipe.batch_size * recipe.accumulate, recipe.seed, recipe.temperature, apart)
        self.per_epoch = recipe.per_epoch(len(self.sampler))
        self.steps = recipe.steps(len(self.sampler))
        self.curve: list[dict[str, float]] = []
        self.best = Best(self.pools)
        self.done, self.loss = False, 0.0
        self.batch: dict[str, Any] = {}  # the step's last one, for schedules that ask what they might do
        self.losses: list[float] = []  # of the batches of a step
        self.tokens, self.read, self.rate = 0, 0, 0.0  # read: tokens of the step, of this process
        scheduled = [p for p in parts if p.scheduled]
        optimizer = optimizers.make(recipe, tenants, bool(scheduled), parts[0].optimizer)
        warm = round(recipe.warmup * self.steps)
        args = TrainingArguments(
            output_dir=unused,
            per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.accumulate,
            max_steps=self.steps,
            max_grad_norm=recipe.clip,
            seed=recipe.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=device_of(host.model).type == "cpu",
        )
        args._n_gpu = min(args.n_gpu, 1)  # a host's route lives in one thread; DataParallel would lose it
        super().__init__(
            model=module,
            args=args,
            data_collator=self.collate,
            train_dataset=[(k, e) for k, p in enumerate(parts) for e in p.train],  # type: ignore[arg-type]
            optimizers=(optimizer, optimizers.schedule(recipe.optimizer, optimizer, warm, self.steps)),
            callbacks=[Watch(self)],
        )
        self.remove_callback(PrinterCallback)
        if processes.world() > 1 or mapped(host.model):
            # nothing is wrapped or moved: gradients are summed in `training_step`
            self.accelerator.prepare_model = lambda model, *_, **__: model  # type: ignore[method-assign]
        self.heard = any(heard(p) for p in parts)
        self.schedules = [Scheduled(p.tenant, optimizer, self.lr_scheduler, self.steps, p.between) for p in scheduled]
        self.renew()
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True  # `compute_loss` divides by the step's items

    def renew(self) -> None:
        """After a tenant was given other pools: all that reads them here."""
        tenants = [p.tenant for p in self.parts]
        self.pools = together(tenants)
        self.best.pools = {**self.pools, **edited(self.schedules)}
        if isinstance(self.module, TenantModule):
            self.module.renew()

    def reshape(self, configs: Sequence[Any]) -> None:
        """The scheduled tenants by the configs that they had, or will have."""
        if any([s.reshape(c) for s, c in zip(self.schedules, configs)]):
            self.renew()

    # -- what transformers.Trainer asks -----------------------------------------------------------------------------

    def _move_model_to_device(self, model: nn.Module, device: Any) -> None:
        """A host leaves its model where it is."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return self.sampler

    def get_train_dataloader(self) -> DataLoader:
        """Of several processes each reads all batches, and takes its rows of them in `collate`."""
        if processes.world() == 1:
            return super().get_train_dataloader()
        rows: Any = self.train_dataset
        return DataLoader(rows, self.recipe.batch_size, sampler=self.sampler, collate_fn=self.collate)

    def collate(self, rows: Sequence[tuple[int, Example]]) -> dict[str, Tensor]:
        """Of several tenants, a batch says who reads each row; a task may make several rows of one example."""
        if processes.world() > 1:
            mine = rows[processes.rank() :: processes.world()]
            batch = self._collate(mine or rows[:1])
            return batch if mine else {**batch, "idle": torch.tensor(1)}  # it takes part, and counts for nothing
        return self._collate(rows)

    def _collate(self, rows: Sequence[tuple[int, Example]]) -> dict[str, Tensor]:
        batch = self.task.collate([e for _, e in rows])
        if len(self.parts) > 1:
            numbers = torch.tensor([self.parts[k].tenant.number for k, _ in rows])
            batch["tenants"] = numbers.repeat(len(batch.get("input_ids", next(iter(batch.values())))) // len(rows))
        return batch

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], int]:
        """(the batches of one step, over how many rows or tokens its loss is the mean)."""
        found = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        items = sum(self.task.items(b) for b in found if "idle" not in b)
        return found, items if processes.world() == 1 else int(processes.total(items)[0])

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **_: Any
    ) -> Tensor:
        """A batch's part in the loss of its step: batches with more tokens weigh more."""
        for part in self.still:  # the loop has just put the whole model into training mode
            part.training = False
        idle = inputs.pop("idle", None) is not None
        if self.schedules:
            self.batch = dict(inputs)
        with self.precision(), self.listening() as heard:
            if heard is not None:
                for schedule in self.schedules:
                    schedule.watch(heard, idle)
            loss = self.task.loss(model, inputs)
        if heard is not None:
            for schedule in self.schedules:
                schedule.hear(heard, idle)
        reached(loss, [p.tenant for p in self.parts])
        loss = loss + penalty([p.tenant for p in self.parts], inputs.get("tenants"), heard)
        if self.recipe.accumulate > 1 or processes.world() > 1:
            loss = loss * (0 if idle else self.task.items(inputs) / max(1, int(num_items_in_batch)))
        self.losses.append(loss.item())
        if processes.world() == 1:
            self.finite(self.losses[-1])
        if not idle:
            self.read += tokens_of(inputs)
        return loss

    def precision(self) -> AbstractContextManager[Any]:
        kind = next(iter(self.pools.values())).device.type
        return torch.autocast(kind, torch.bfloat16) if self.recipe.bf16 else nullcontext()

    def listening(self) -> AbstractContextManager[Any]:
        return self.host.listening() if self.heard else nullcontext()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if processes.world() > 1 and self.accelerator.sync_gradients:
            processes.sum_gradients(self.pools.values())
        if not self.state.global_step and self.accelerator.sync_gradients:
            unread([p.tenant for p in self.parts])
        for schedule in self.schedules:
            schedule.masked()
        return loss

    @torch.no_grad()
    def probe(self) -> float:
        """The loss of the step's last batch with the pools as they are, without dropout."""
        self.module.eval()
        try:
            with self.precision():
                loss, items = self.task.loss(self.module, self.batch).item(), self.task.items(self.batch)
        finally:
            self.module.train()
        if processes.world() == 1:
            return loss
        found, of = processes.total(loss * items, items)
        return found / max(1.0, of)

    def finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise self.diverged(self.state.global_step + 1, f"the loss is {loss}")

    def step_loss(self) -> None:
        self.loss, read = processes.total(sum(self.losses), self.read)
        self.losses, self.read, self.tokens = [], 0, self.tokens + int(read)
        self.finite(self.loss)
        self.rate = max(g["lr"] for g in self.optimizer.param_groups)  # type: ignore[union-attr]
        self.curve.append({"step": self.state.global_step + 1, "loss": self.loss})

    def check_pools(self, step: int) -> None:
        """The last update of all is followed by no loss that would show what it did."""
        if bad := next((n for n, p in self.pools.items() if not p.isfinite().all()), None):
            raise self.diverged(step, f"its update left NaN or infinity in pool {bad}")

    def diverged(self, step: int, what: str) -> CommonweightError:
        if self.store is not None and processes.first():
            self.store.clear()  # what lies there leads here again
        rates = sorted({self.recipe.lr or p.tenant.method.lr for p in self.parts})
        return CommonweightError(
            f"step {step}: {what}, at the learning rate {', '.join(f'{r:g}' for r in rates)}; lower it, or look for "
            "rows that are wrong"
        )

    def pace(self, done: float) -> None:
        """done: the share of the steps that lie behind; at 1, as it is used."""
        if (told := getattr(self.host, "pace", None)) is not None:
            told(done)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def score(self) -> dict[str, float]:
        """Measures the dev rows; a better score, the mean over the tenants, is remembered with the pools."""
        self.module.eval()
        self.pace(1.0)
        optimizers.averaged(self.optimizer)
        each: dict[str, dict[str, float]] = {}
        for p in self.parts:
            if p.dev:
                with torch.no_grad(), self.precision(), answering(self.host, p.tenant.name) as model:
                    each[p.tenant.name] = p.task.measure(model, p.dev, self.recipe.eval_rows)
        metrics = combined(each, len(self.parts) > 1)
        self.curve[-1].update({f"dev_{k}": v for k, v in metrics.items() if k.rpartition("/")[2] != "n"})
        if all(s.settled(self.state.global_step) for s in self.schedules):
            self.best.see(metrics, self.task.better, [s.tenant.config for s in self.schedules])
        return metrics

    def finish(self) -> None:
        """The best pools that the dev rows saw become the tenants'."""
        self.pace(1.0)
        optimizers.averaged(self.optimizer)
        self.reshape(self.best.configs)
        self.best.put_back()
        for schedule in self.schedules:
            schedule.end()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.store is not None
        if not processes.first():
            return processes.wait()
        tensors = {f"pool/{n}": p.detach() for n, p in self.pools.items()}
        tensors |= {f"best/{n}": p for n, p in (self.best.found or {}).items()}
        moments, groups = optimizers.state(self.optimizer, self.pools)
        tensors |= {f"adam/{k}": v for k, v in moments.items()}
        kept = [s.kept() for s in self.schedules]
        tensors |= {f"schedule/{i}/{k}": v for i, (found, _) in enumerate(kept) for k, v in found.items()}
        facts = {
            "schedules": [numbers for _, numbers in kept],
            "settings": self.settings, "done": self.done, "bad": self.best.bad, "best_score": self.best.score,
            "curve": self.curve, "groups": groups, "best_configs": [said(c) for c in self.best.configs],
            "schedule": self.lr_scheduler.last_epoch,  # type: ignore[union-attr]
        }  # fmt: skip
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in {**tensors, **random_states()}.items()}
        self.store.write(self.state.global_step, self.state, Checkpoint(tensors, facts))
        processes.wait()

    def restore(self, folder: Path) -> None:
        """Pools, scores and curve of a checkpoint; moments and random states follow when the loop asks."""
        self.found = read(folder)
        facts = self.found.facts
        self.done, self.best.bad, self.best.score = facts["done"], facts["bad"], facts["best_score"]
        self.curve = facts["curve"]
        kinds = [type(s.tenant.config) for s in self.schedules]
        self.best.configs = [build(k, c) for k, c in zip(kinds, facts.get("best_configs", ()))]
        self.reshape(
            [build(type(s.tenant.config), f["config"]) if "config" in f else s.tenant.config
             for s, f in zip(self.schedules, facts["schedules"])]
        )  # fmt: skip
        device = next(iter(self.pools.values())).device
        with torch.no_grad():
            for n, p in self.pools.items():
                p.copy_(self.found.tensors[f"pool/{n}"])
        best = {k[5:]: v.to(device) for k, v in self.found.tensors.items() if k.startswith("best/")}
        self.best.found = best or None
        if self.done:  # the loop does not ask any more
            self._restore_schedules()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Done by `restore`."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        moments = {k[5:]: v for k, v in self.found.tensors.items() if k.startswith("adam/")}
        optimizers.restore(self.optimizer, self.pools, moments, self.found.facts["groups"])
        self.lr_scheduler.last_epoch = self.found.facts["schedule"]  # type: ignore[union-attr]
        self._restore_schedules()

    def _restore_schedules(self) -> None:
        for i, (schedule, numbers) in enumerate(zip(self.schedules, self.found.facts["schedules"])):
            at = f"schedule/{i}/"
            found = {k.removeprefix(at): v for k, v in self.found.tensors.items() if k.startswith(at)}
            schedule.restore(found, numbers)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_states(self.found.tensors)


def edited(schedules: Sequence[Scheduled]) -> dict[str, Tensor]:
    """What no gradient moves, and a schedule may: ``tenant/pool``."""
    return {f"{s.tenant.name}/{n}": p for s in schedules for n, p in s.frozen.items()}


def combined(each: Mapping[str, dict[str, float]], several: bool) -> dict[str, float]:
    """One tenant's metrics as they are; of several the means, and each one's as ``tenant/metric``."""
    if not several:
        return next(iter(each.values()))
    names = next(iter(each.values()))
    means = {k: sum(m[k] for m in each.values()) / len(each) for k in names if k != "n"}
    return means | {f"{tenant}/{k}": v for tenant, m in each.items() for k, v in m.items()}


def still(host: Host, dropout: bool) -> list[nn.Module]:
    """What is not put into training mode: batch norms, which would move their statistics, and without the base's own
    dropout all but the sites themselves: a tenant's dropout asks its site whether it is in training."""
    sites = {id(at.flagged) for at in host.base.modules.values()}
    return [m for m in host.model.modules() if isinstance(m, _BatchNorm) or not (dropout or id(m) in sites)]


def quietly(train: Callable[[], Any]) -> Any:
    """Without the loop's own notes about saving and logging, which do not hold here."""
    loud = logging.getLogger("transformers.trainer")
    before = loud.level
    loud.setLevel(logging.ERROR)
    try:
        return train()
    finally:
        loud.setLevel(before)
