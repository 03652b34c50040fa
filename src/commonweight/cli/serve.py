"""commonweight serve: a model and its tenants over HTTP, by the interfaces of OpenAI and vLLM."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import serving

if TYPE_CHECKING:
    from ..serve import Encoder, Engine
    from ..serve.http import Settings

EXAMPLES = """[bold]Examples[/bold]

The tenants of a store, for programs of this machine:

  commonweight serve ./my-model --store shop

  curl localhost:8000/v1/completions -H 'content-type: application/json' -d '{"model": "legal", "prompt": "Hello"}'

For other machines, with keys:

  commonweight keys add team-a --file keys.json --tenants legal,support --limit 60/min

  commonweight serve ./my-model --store shop --host 0.0.0.0 --api-keys keys.json --tenant-memory 2GB

Several processes, or machines of a Ray cluster:

  commonweight serve ./my-model --store shop --ray --replicas 1-4
"""

TASKS = ("auto", "generate", "embed", "classify", "rerank")
POOLS = ("mean", "last", "cls", "pooler")
LISTEN, GUARD, LIMITS, MANY = "Listening", "Who may ask", "Limits of a request", "Several machines"


def command(
    model: serving.Model,
    store: serving.Store = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.", rich_help_panel=LISTEN)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.", rich_help_panel=LISTEN)] = 8000,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The model's own name for clients, beside `base`. Without it, MODEL.", rich_help_panel=LISTEN
        ),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File of keys, made by `commonweight keys add`; every request needs one.", rich_help_panel=GUARD
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(
            help="The key that may change tenants. Other users of this machine can see it; the variable is safer.",
            envvar="COMMONWEIGHT_ADMIN_KEY",
            rich_help_panel=GUARD,
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen for other machines without keys.", rich_help_panel=GUARD)
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="New tokens of one answer, at most.", rich_help_panel=LIMITS)
    ] = None,
    max_body: Annotated[str, typer.Option(help="Bytes of one request.", rich_help_panel=LIMITS)] = "4MB",
    timeout: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds after which an answer ends with what it has.", rich_help_panel=LIMITS),
    ] = 600,
    max_requests: serving.Requests = 64,
    max_waiting: Annotated[
        int,
        typer.Option(min=1, help="Requests that may wait; more are told to come later.", rich_help_panel=serving.BATCH),
    ] = 1024,
    cache_tokens: serving.Cache = None,
    tenant_memory: serving.Memory = None,
    task: Annotated[
        str,
        typer.Option(
            help="What the model is for: generate (text), embed, classify or rerank. auto: what its folder says. "
            "Tenants of `adapt --task classify` and `--task embed` want the same task here.",
            rich_help_panel=serving.LOADING,
        ),
    ] = "auto",
    pool: Annotated[
        str | None,
        typer.Option(
            help="How an encoder makes one vector of a text: mean, last, cls or pooler. Without it, what the model's "
            "folder says, as sentence-transformers writes it, else mean (last for decoders).",
            rich_help_panel=serving.LOADING,
        ),
    ] = None,
    dtype: serving.Dtype = "auto",
    device: serving.Device = "auto",
    tokenizer: serving.Tokenizer = None,
    tool_parser: Annotated[
        str,
        typer.Option(
            help="How the model writes calls of tools: hermes, llama3, mistral, or auto, as its chat template says.",
            rich_help_panel=LISTEN,
        ),
    ] = "auto",
    drain: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds that running answers have when the server is told to stop.", rich_help_panel=LISTEN
        ),
    ] = 30,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Answer by replicas on Ray Serve: on the cluster at RAY_ADDRESS, or on one that is started here.",
            rich_help_panel=MANY,
        ),
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(help="With --ray: how many, as 2, or 1-4 for as many as there is work for.", rich_help_panel=MANY),
    ] = "1-4",
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers into the log.", rich_help_panel=LISTEN)
    ] = False,
) -> None:
    """Serve a model and its tenants over HTTP: `model` in a request names the tenant, `base` the plain model."""
    from ..core import CommonweightError, parse_bytes
    from ..serve.http.calls import FORMS
    from ..serve.http.keys import read
    from ..serve.http.settings import Settings, guarded, loopback
    from . import early

    memory = serving.looked_at(model, store, dtype, device, tenant_memory)
    early.one_of("task", task, TASKS)
    early.one_of("pool", pool, POOLS)
    early.one_of("tool-parser", tool_parser, ("auto", *FORMS))
    least, most = _replicas(replicas)
    guarded(host, api_keys, insecure)
    if api_keys is not None:
        read(api_keys)
    if admin_key is not None and len(admin_key) < 16:
        raise CommonweightError(
            f"--admin-key has {len(admin_key)} characters; wanted 16 or more, so that none guesses it"
        )
    settings = Settings(
        name or model, api_keys, admin_key, loopback(host), parse_bytes(max_body, "--max-body"), max_tokens=max_tokens,
        timeout=timeout, drain=drain, log_prompts=log_prompts, tool_parser=tool_parser,
    )  # fmt: skip
    batch = {"max_requests": max_requests, "max_waiting": max_waiting, "tenant_memory": memory}
    if ray:  # replicas have another working folder
        model, store = _here(model), store and store.resolve()
        tokenizer = tokenizer and _here(tokenizer)
    opened = partial(
        serving.answering, model, task, pool, store, dtype, device, cache_tokens, **batch, **serving.words(tokenizer)
    )
    _run(host, port, settings, _replicated(opened, settings, least, most, device) if ray else _alone(opened, settings))


def _here(name: str) -> str:
    """A folder by its whole path; a name of the hub as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _replicas(said: str) -> tuple[int, int]:
    """(at least, at most)."""
    from ..core import CommonweightError

    found = re.fullmatch(r"([1-9][0-9]{0,3})(?:-([1-9][0-9]{0,3}))?", said.strip())
    least, most = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 0 < least <= most:
        raise CommonweightError(f"--replicas {said}: wanted how many, as 2, or the least and the most, as 1-4")
    return least, most


@contextmanager
def _alone(opened: Callable[[], Engine | Encoder], settings: Settings) -> Iterator[Any]:
    """The application before one engine in this process."""
    from ..serve.http import make
    from ..serve.http.logs import say

    with opened() as engine:
        app = make(engine, settings)
        say("opened", tenants=len(engine.tenants.names()))
        yield app


@contextmanager
def _replicated(
    opened: Callable[[], Engine | Encoder], settings: Settings, least: int, most: int, device: str
) -> Iterator[Any]:
    """The application before replicas."""
    from ..adapt.base import pick_device
    from ..serve.replicas.cluster import Count, deployed
    from ..serve.replicas.front import fronted

    gpus = 1 if pick_device(device).startswith("cuda") else 0
    with deployed(opened, settings, Count(least, most, gpus=gpus)) as cluster:
        yield fronted(cluster, settings)


def _run(host: str, port: int, settings: Settings, made: AbstractContextManager[Any]) -> None:
    """Listens first: a port that is taken is told before a model is loaded."""
    from ..core import CommonweightError

    try:
        from ..serve.http import run
    except ImportError as e:
        raise CommonweightError(f"a server wants {e.name}: pip install 'commonweight[serve]'") from e
    with run.bound(host, port) as sock:
        from ..serve.http.logs import say, to_stderr

        to_stderr()
        with made as app:
            at = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"
            say("listening", address=at, model=settings.name)
            typer.echo(f"{settings.name} answers at {at}/v1", err=True)
            run.run(app, sock)
            say("stopped")
