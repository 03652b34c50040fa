"""What serve, chat and generate have in common: a model, its tenants, and how they are loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .progress import quiet

if TYPE_CHECKING:
    from ..serve import Encoder, Engine

LOADING, BATCH = "Loading", "Batch"
TURNS = "2000"  # of a thread of torch's (libgomp) between two operations, before it sleeps; its own: 300,000

Model = Annotated[str, typer.Argument(help="Folder or hub name of the language model; it is never written.")]
Store = Annotated[
    Path | None, typer.Option(help="Folder of the store whose tenants answer. Without it, the plain model alone.")
]
TaskName = Annotated[
    str | None, typer.Option(help="Of a --tenant that goes by tasks (`poly tasks=...`), which, by its name.")
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Dtype of the model: auto, float32 or bfloat16. auto: as its files have it.", rich_help_panel=LOADING
    ),
]
Device = Annotated[str, typer.Option(help="Where it runs: auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=LOADING)]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub name of the tokenizer, as beside an adapter with tokens of its own. Without it, MODEL's.",
        rich_help_panel=LOADING,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--tenant-memory",
        help="Bytes of tenants that are kept loaded, as in 512MB; the longest unused ones go first. Without it, all.",
        rich_help_panel=BATCH,
    ),
]
Requests = Annotated[
    int,
    typer.Option("--max-requests", min=1, help="Answers at once; other requests wait.", rich_help_panel=BATCH),
]
Cache = Annotated[
    int | None,
    typer.Option(
        "--cache-tokens", min=64, help="Tokens that the cache holds, all requests together.", rich_help_panel=BATCH
    ),
]


def patient() -> None:
    """Has torch's threads wait awake for a little while, unless the environment says how long. It is read once, when
    torch is loaded."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = TURNS


def task_of(task_name: str | None, tenant: str | None) -> None:
    """Raises: CommonweightError for a task of nobody."""
    from ..core import CommonweightError

    if task_name is not None and tenant is None:
        raise CommonweightError("--task-name says which task of a --tenant, and none is named; the plain base has none")


def looked_at(model: str, store: Path | None, dtype: str, device: str, memory: str | None = None) -> int | None:
    """Before torch is loaded: what is wrong with these. The bytes of the memory."""
    from ..commons import Commons
    from ..core import parse_bytes
    from . import early

    patient()
    early.model(model)
    early.dtype(dtype)
    early.device(device)
    if store is not None:
        Commons(store, make=False)
    return None if memory is None else parse_bytes(memory, "--tenant-memory")


def answering(
    model: str, task: str, pool: str | None, store: Path | None, dtype: str, device: str, cache: int | None,
    **settings: Any,
) -> Engine | Encoder:  # fmt: skip
    """An engine of a language model, or of an encoder. task: "auto" goes by what the model's folder says it is."""
    from ..adapt.base import pick_device
    from ..core import CommonweightError
    from ..serve.outputs import generates

    if task == "generate" or (task == "auto" and generates(model)):
        if pool is not None:
            raise CommonweightError(f"--pool {pool}: {model} is served as a language model, which pools nothing")
        return opened(model, store, dtype, device, cache_tokens=cache, **settings)
    if cache is not None:
        raise CommonweightError(f"--cache-tokens {cache}: {model} is served as an encoder, which has no cache")
    from ..serve import Encoder

    quiet()
    return Encoder(model, store=store, task=task, dtype=dtype, device=pick_device(device), pool=pool, **settings)


def words(where: str | None) -> dict[str, Any]:
    """The option of an engine for a tokenizer that does not lie beside the model."""
    if where is None:
        return {}
    from ..core import CommonweightError
    from ..serve.prompts import tokenizer_of

    if (found := tokenizer_of(None, where)) is None:
        raise CommonweightError(f"--tokenizer {where}: no tokenizer can be loaded there")
    return {"tokenizer": found}


def opened(model: str, store: Path | None, dtype: str, device: str, **settings: Any) -> Engine:
    """An engine of the model."""
    from ..adapt.base import pick_device
    from ..serve import Engine
    from ..serve.prompts import loaded

    quiet()
    found = loaded(model, dtype, pick_device(device))
    return Engine(found, store=store, **settings)
