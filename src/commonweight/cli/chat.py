"""commonweight chat: a conversation with a tenant, in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import serving

if TYPE_CHECKING:
    from ..serve import Engine, Stream

Who = tuple[str | None, str | None]  # a tenant, and which of its tasks

EXAMPLES = """[bold]Examples[/bold]

With a tenant of a store:

  commonweight chat ./my-model --store shop --tenant legal

With the plain model, once, from a pipe:

  echo "Who signs the contract?" | commonweight chat ./my-model

While it runs: `/tenant NAME` goes on as another tenant (or a sum, as `a+0.5*b`; of one that goes by tasks as
`/tenant NAME task=TASK`), `/base` as the plain model, `/new`
forgets what was said, `/quit` or Ctrl-D ends. Ctrl-C ends an answer.
"""


def command(
    model: serving.Model,
    tenant: Annotated[str | None, typer.Option(help="Who answers. Without it, the plain model.")] = None,
    task_name: serving.TaskName = None,
    store: serving.Store = None,
    system: Annotated[str | None, typer.Option(help="What stands before the conversation.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="New tokens of an answer, at most. Without it, 256, or what there is room for."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0001, max=1, help="Draw from this much of the likeliest.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answers.")] = None,
    dtype: serving.Dtype = "auto",
    device: serving.Device = "auto",
    tokenizer: serving.Tokenizer = None,
) -> None:
    """Talk to a tenant. Answers stand on stdout, all else on stderr."""
    serving.task_of(task_name, tenant)
    serving.looked_at(model, store, dtype, device)
    with serving.opened(model, store, dtype, device, max_requests=1, **serving.words(tokenizer)) as engine:
        who = _found(engine, tenant, task_name)
        how = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        talk(engine, who, [] if system is None else [{"role": "system", "content": system}], how)


def talk(engine: Engine, who: Who, start: list[dict[str, str]], how: dict[str, Any]) -> None:
    """Until the lines end."""
    from ..core import CommonweightError
    from ..serve import Request

    said, person = list(start), sys.stdin.isatty()
    while (line := _line(person, who[0] or "base")) is not None:
        word, _, rest = line.partition(" ")
        if word in ("/quit", "/exit"):
            return
        if word == "/new":
            said = list(start)
        elif word == "/base":
            who = None, None
        elif word == "/tenant":
            try:
                name, _, task = rest.partition(" task=")
                who = _found(engine, name.strip(), task.strip() or None)
            except CommonweightError as e:
                _aside(str(e))
        elif word.startswith("/") and person:
            _aside("/tenant NAME, /tenant NAME task=TASK, /base, /new, /quit")
        elif line.strip():
            try:
                stream = engine.submit(Request([*said, {"role": "user", "content": line}], who[0], task=who[1], **how))
                answer = _shown(stream)
            except CommonweightError as e:
                if not person:
                    raise
                _aside(str(e))
                continue
            said += [{"role": "user", "content": line}, {"role": "assistant", "content": answer}]


def _found(engine: Engine, tenant: str | None, task: str | None) -> Who:
    """A tenant, of one that goes by tasks as which, or a sum of some, as requests name them; None and "base": the base.

    Raises: CommonweightError for one that is not there, cannot be loaded, or has no sum.
    """
    from ..core import unknown
    from ..serve.blend import several

    if tenant == "base":
        tenant = None
    if tenant is not None and not several(tenant) and tenant not in engine.tenants.names():
        raise unknown("tenant", tenant, engine.tenants.names())
    engine.tenants.edition(tenant, task)
    return tenant, task


def _shown(stream: Stream) -> str:
    """Prints an answer as it comes. Ctrl-C ends it there; what has come stays."""
    from ..core import CommonweightError

    text, error = "", None
    pieces = iter(stream)
    while True:
        try:
            piece = next(pieces, None)
        except KeyboardInterrupt:
            stream.cancel()
            continue
        if piece is None:
            break
        text, error = text + piece.text, piece.error
        typer.echo(piece.text, nl=False)
        sys.stdout.flush()
    typer.echo()
    if error is not None:
        raise CommonweightError(error)
    return text


def _line(person: bool, who: str) -> str | None:
    """What is said next; None where nothing is."""
    while True:
        try:
            if person:
                return input(f"{who}> ")
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        except EOFError:
            return None
        except KeyboardInterrupt:
            _aside("\nCtrl-D or /quit ends")


def _aside(text: str) -> None:
    typer.echo(text, err=True)
