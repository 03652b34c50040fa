"""One run as data: what is trained on what, and how. It travels to other processes and machines as it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from .. import __version__
from ..adapt.base import tokenizer_digest, tokenizer_of
from ..core import Plan, Site, dump
from ..host import Host
from ..methods import get, plan, resolve
from .cache import digest, file_digest
from .data import Data

TUNING_SEED = 10_007  # trials of a learning rate have a seed of their own, which no reported run has
_digest, _tokens = lru_cache(file_digest), lru_cache(tokenizer_digest)


@dataclass(frozen=True)
class Job:
    """options, recipe: names and values. lr: None for the method's own. trial: a run of the tuning, which is not
    measured on the test rows and may be stopped early."""

    model: str
    data: Data
    method: str
    options: dict[str, Any] = field(hash=False)
    seed: int
    lr: float | None = None
    task: str = "classify"
    recipe: dict[str, Any] = field(default_factory=dict, hash=False)
    dtype: str = "auto"
    sites: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    codec: str | None = None
    trial: bool = False

    @property
    def rate(self) -> float:
        return self.lr or get(self.method).lr

    @property
    def columns(self) -> dict[str, Any]:
        return {"text_column": self.text_column, "label_column": self.label_column}

    def sites_on(self, host: Host) -> Sequence[Site]:
        found, config = resolve(self.method, self.options)
        return host.sites_for(found.of(config), self.sites)

    def plan_on(self, host: Host) -> Plan:
        found, config = resolve(self.method, self.options)
        sites = self.sites_on(host)
        return plan(host.base.told(found, config, sites), sites, seed=self.seed)

    def facts(self, host: Host, base: str | None = None) -> dict[str, Any]:
        """Everything that decides the run's numbers, files by their contents, not by their names."""
        d = self.data
        config = dump(resolve(self.method, self.options)[1])
        return {
            "base": base or host.fingerprint, "dtype": str(next(host.model.parameters()).dtype),
            "tokenizer": _tokens(tokenizer_of(host.model)),
            "train": _digest(d.train), "test": None if self.trial else _digest(d.test),
            "dev": _digest(d.dev) if isinstance(d.dev, str) else d.dev,
            "task": self.task, "method": self.method, "config": config, "plan": self.plan_on(host).digest(),
            "lr": self.rate, "seed": self.seed, "recipe": self.recipe, "codec": self.codec,
            "version": __version__, **self.columns,
        }  # fmt: skip

    def key(self, host: Host, base: str | None = None) -> str:
        return digest(self.facts(host, base))

    def command(self, threads: int, out: str | None = None) -> str:
        """The command line that trains and measures the same tenant again, to the same bits."""
        d = self.data
        words = ["commonweight", "adapt", self.model, d.train, "--method", self.method]
        if self.task != "classify":
            words += ["--task", self.task]
        for name, value in self.options.items():
            words += ["-o", f"{name}={_text(value)}"]
        words += ["--lr", f"{self.rate!r}", "--seed", f"{self.seed}", "--dev", f"{d.dev}", "--eval", d.test]
        if self.dtype != "auto":
            words += ["--dtype", self.dtype]
        for flag, value in {"sites": self.sites, "codec": self.codec, **self.columns, **self.recipe}.items():
            if value is not None:
                words += [f"--{flag.replace('_', '-')}", f"{value}"]
        words += ["--out", out or f"{d.name}-{self.method}-{self.seed}.safetensors"]
        return f"OMP_NUM_THREADS={threads} " + " ".join(map(shlex.quote, words))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return json.dumps(value) if isinstance(value, list | tuple) else str(value)
