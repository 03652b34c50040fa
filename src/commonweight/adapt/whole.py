"""A whole model in training, in the place of a host and its one tenant: the same loop trains every number of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from ..core import CommonweightError
from ..host.fingerprint import of_base
from ..host.sites import blocks
from .loop import loop
from .masked import masked
from .recipe import Recipe
from .settings import of_all, of_rows
from .tasks import Example, Task
from .tasks.packing import sound
from .trainer import Part, Progress, Run


class Whole:
    """model: what trains of it is what asks for gradients. lr: the rate where the recipe has none."""

    common, number, config, plan = None, 0, None, None
    tasks: tuple[str, ...] = ()
    prompted = False

    def __init__(self, model: nn.Module, name: str = "model", lr: float = 2e-4):
        self.model, self.name = model, name
        self.method = SimpleNamespace(
            name=name, lr=lr, scheduled=lambda config, plan: None, penalty=None, complete=None,
            router_loss=lambda config: None,
        )  # fmt: skip
        inner = dict(model.named_modules())
        self.paced: list[Any] = [m.pace for m in inner.values() if hasattr(m, "pace")]
        # a block that is recomputed must know that it is in training, and what has a loss of its own there; what has
        # dropout stands inside of them
        told = ["", *blocks(model), *(n for n, m in inner.items() if hasattr(m, "beside"))]
        self.base = SimpleNamespace(modules={n: SimpleNamespace(flagged=inner[n]) for n in told})

    def __getitem__(self, name: str) -> Whole:
        return self

    def module(self, names: Sequence[str]) -> nn.Module:
        return self.model

    def route(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every tensor once."""
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def param_groups(
        self, lr: float | None = None, *, lora_plus: float | None = None, one: bool = False
    ) -> list[dict[str, Any]]:
        if lora_plus is not None:
            raise CommonweightError("lora_plus: a whole model has no B alone; leave it out")
        return [{"params": [p for _, p in self.named_parameters()], "lr": lr}]

    def pace(self, done: float) -> None:
        """Tells layers that change while they train which share of the steps lies behind."""
        for one in self.paced:
            one(done)

    @contextmanager
    def recomputed(self) -> Iterator[None]:
        """transformers' own gradient checkpointing, for as long as it trains."""
        model: Any = self.model
        new = hasattr(model, "activation_checkpointing_enable")  # its name in later versions of 5
        on, off = (
            (model.activation_checkpointing_enable, model.activation_checkpointing_disable)
            if new
            else (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable)
        )
        on({"use_reentrant": False})
        try:
            yield
        finally:
            off()


def train_whole(
    whole: Whole,
    task: Task,
    train: list[Example],
    dev: list[Example],
    recipe: Recipe,
    *,
    facts: Mapping[str, Any],
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Trains all of a model. facts: what a repeated run must share beside task, rows, recipe and the first numbers.

    Raises: CommonweightError; the model may then be partly trained.
    """
    part = Part(whole, task, train, dev)  # type: ignore[arg-type]
    told = {**of_all(whole.model, of_base(whole.model), part, recipe), **of_rows(part), **facts}
    again = whole.recomputed() if recipe.gradient_checkpointing else nullcontext()
    try:
        with masked(whole.model) if recipe.packing else nullcontext():
            if recipe.packing:
                whole.model.eval()
                sound(whole.model)
            return loop(whole, [part], recipe, told, checkpoint, resume, progress, again)
    finally:
        whole.model.eval()
