"""commonweight serve: a model and its tenants over HTTP, by the interfaces of OpenAI and vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
"""

TASKS = ("auto", "generate", "embed", "classify", "rerank")
POOLS = ("mean", "last", "cls", "pooler")
LISTEN, GUARD, LIMITS = "Listening", "Who may ask", "Limits of a request"


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
    opened = lambda: serving.answering(  # noqa: E731
        model, task, pool, store, dtype, device, cache_tokens, **batch, **serving.words(tokenizer)
    )
    _run(host, port, settings, opened)


def _run(host: str, port: int, settings: Settings, opened: Callable[[], Engine | Encoder]) -> None:
    """Listens first: a port that is taken is told before a model is loaded."""
    from ..core import CommonweightError

    try:
        from ..serve.http import run
    except ImportError as e:
        raise CommonweightError(f"a server wants {e.name}: pip install 'commonweight[serve]'") from e
    with run.bound(host, port) as sock:
        from ..serve.http import make
        from ..serve.http.keys import ANYBODY
        from ..serve.http.logs import say, to_stderr

        to_stderr()
        with opened() as engine:
            app = make(engine, settings)
            at = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"
            say("listening", address=at, model=settings.name, tenants=len(app.state.service.names(ANYBODY)))
            typer.echo(f"{settings.name} answers at {at}/v1", err=True)
            run.run(app, sock)
            say("stopped")
