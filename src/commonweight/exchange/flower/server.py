"""A run on Flower's server: from the app's config, or from where it was killed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from ...adapt.checkpoint import same_settings
from ..checkpoint import Kept
from ..measured import load, measure
from ..registry import State
from ..rounds import starting
from ..run import Run, Seat, finish, open_out, write
from ..setting import told as settings_of
from .config import opened, rows_of
from .records import array
from .strategy import Exchange


def serve(grid: Grid, config: Mapping[str, Any]) -> Run:
    """All rounds; ``out`` of the config is the folder of the store, ``run.json`` and the state. A folder in which a run
    of this app was killed is gone on with: Flower itself begins anew after a restart.

    Raises: CommonweightError.
    """
    p, config = opened(config)
    folder = open_out(Path(config["out"]), resume=True, overwrite=False) if config.get("out") else None
    kept = Kept(folder and folder / "state")
    mine = settings_of(p) | {"run": p.setting.run}
    state = p.method.begin(p.setting, starting(p.setting, p.tenant.pools))
    curve: list[dict[str, Any]] = []
    seats: dict[int, Seat] = {}
    if (found := kept.read()) is not None:
        state, facts = found
        same_settings(mine, facts["settings"], kept.folder or Path())
        curve, seats = facts["curve"], {int(c): Seat(*s) for c, s in facts["seats"].items()}
    held = p.task.examples(rows_of(config, config["eval"], "test")) if config.get("eval") else []

    def measured(state: State, round: int) -> dict[str, float]:
        if not held or ((round + 1) % p.plan.eval_every and round + 1 != p.setting.rounds):
            return {}
        load(p, state)
        return measure(p, p.tenant, held)

    def done(state: State) -> None:
        kept.commit(state, {"settings": mine, "curve": curve, "seats": seats})
        if folder is not None:
            write(folder, p, curve, seats)

    strategy = Exchange(
        p, state, curve, seats, float(config.get("wait", 60)), done, bool(config.get("floats")), measured
    )
    left = p.setting.rounds - len(curve)
    if left > 0:
        strategy.start(grid, array(b""), num_rounds=left, timeout=float(config.get("timeout", 600)))
    load(p, strategy.state)
    run = Run(
        p.host, p.tenant, p.method, p.setting, strategy.curve, strategy.seats, strategy.state, kept, folder,
        p.task.better[0],
    )  # fmt: skip
    if folder is not None:
        write(folder, p, strategy.curve, strategy.seats)
        finish(folder, run)
    return run
