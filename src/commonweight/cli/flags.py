"""Flags by the names that transformers and PEFT have for the same."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from ..core import CommonweightError, peers


class Peers(TyperCommand):
    """A command that takes ``--learning-rate`` for its ``--lr``, and says of ``--lora-alpha`` what it is here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {o.lstrip("-").replace("-", "_"): o for p in self.params for o in p.opts if o.startswith("--")}
        return super().parse_args(ctx, bare([_ours(a, known) for a in args]))


EVERY = "eval rows of every task"


def bare(args: list[str]) -> list[str]:
    """With --stream, --eval needs no file: the rows stand in the stream's."""
    if not any(a == "--stream" or a.startswith("--stream=") for a in args):
        return args
    last = [a == "--eval" and (i + 1 == len(args) or args[i + 1].startswith("-")) for i, a in enumerate(args)]
    return [f"--eval={EVERY}" if bare else a for a, bare in zip(args, last)]


def _ours(arg: str, known: dict[str, str]) -> str:
    flag, eq, value = arg.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    if not flag.startswith("--") or not name or name in known:
        return arg
    here = peers.option(name, known)
    if here == "sites":
        raise CommonweightError(f"No such option: {flag}; {peers.elsewhere(name)}")
    if here in known:
        return known[here] + eq + value
    if "option" in known and name in peers.OPTIONS:
        of = "METHOD.NAME" if "methods" in known else peers.OPTIONS[name]
        raise CommonweightError(f"No such option: {flag}; options of a method are given by -o {of}=VALUE")
    return arg
