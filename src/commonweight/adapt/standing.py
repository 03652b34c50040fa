"""The tenants that those of a run are to stand on: of the store that they go to, or files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import CommonweightError, safe
from ..core.peers import OVER

if TYPE_CHECKING:
    from ..commons import Commons
    from ..host import Host


def named(over: str) -> str:
    """What one is called on the host: a file by its name, a store's tenant without its version."""
    return safe(Path(over).stem if _file(over) else over.partition("@")[0])


def _file(over: str) -> bool:
    return over.endswith(".safetensors")


def listed(over: Any) -> tuple[str, ...]:
    """Of a text with commas, as on the command line, or a list, as in a file.

    Raises: CommonweightError for what is neither, a name that cannot be one, and two of one name."""
    if not isinstance(over, str | Sequence) or not all(isinstance(o, str) for o in over):
        raise CommonweightError(f"over is {over!r}; wanted tenants of a store, or their files, as in [legal, tone]")
    found = tuple(o.strip() for o in (over.split(",") if isinstance(over, str) else over))
    names = [named(o) for o in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise CommonweightError(
            f"over: two tenants are called {twice[0]!r}; name each once, and rename one of two files"
        )
    return found


def fits(method: str | None, over: Sequence[str], tenants: Sequence[str], others: Mapping[str, Any]) -> None:
    """Raises: CommonweightError for a method that weighs no tenants, and one that is told none. others: what does not
    go together with it, by its name."""
    if method not in OVER:
        if over:
            raise CommonweightError(
                f"over: {method or 'mos'} weighs no other tenants; methods that do: {', '.join(OVER)}"
            )
        return
    if not over:
        raise CommonweightError(
            f"{method} weighs other tenants, and is told none: over=[NAMES] in Python and in files, and on the command "
            "line --over NAME,NAME"
        )
    if same := sorted({named(o) for o in over} & {*tenants}):
        raise CommonweightError(f"over: {same[0]!r} cannot stand on itself; give the new tenant another name")
    if said := [k for k, v in others.items() if v is not None]:
        raise CommonweightError(f"{said[0]}: {method} reads what its tenants read; leave it out")


def bringing(over: Sequence[str], commons: Commons | None) -> Callable[[Host], None]:
    """What loads them onto a host. commons: the store that the run goes to; None: it goes to files.

    Raises: CommonweightError, at once, for a tenant that is not there."""
    if commons is None and (stored := [o for o in over if not _file(o)]):
        raise CommonweightError(
            f"over: {stored[0]!r} is no file; to files go tenants over files, such as {stored[0]}.safetensors "
            "(`commonweight store export`), into a store tenants over those of it"
        )
    if commons is not None and (files := [o for o in over if _file(o)]):
        raise CommonweightError(
            f"over: {files[0]} is a file, and a store keeps what its tenants stand on; first `commonweight store "
            f"publish {commons.folder} {files[0]}`, and name it {named(files[0])}"
        )
    for o in over:
        if commons is not None:
            commons.manifest(o)
        elif not Path(o).is_file():
            raise CommonweightError(f"over: {o}: no such file")

    def bring(host: Host) -> None:
        for o in over:
            if commons is None:
                host.load(named(o), o)
            else:
                host.load_from(commons, o)

    return bring
