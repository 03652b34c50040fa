"""The engine of one process: virtual clients, no network. The clients of a round are trained in mixed batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from ..adapt.checkpoint import same_settings
from ..adapt.data import named
from ..adapt.rows import Row
from ..adapt.settings import digest
from ..adapt.tasks import Example, Task
from ..core import CommonweightError, Rng
from ..host import Host
from ..methods.shown import Shown
from .asks import Told, drive_all
from .checkpoint import Kept
from .measured import load, measure
from .message import Part, pack
from .registry import State
from .rounds import Gathering, down, facts, heard, starting, up
from .run import Run, Seat, finish, open_out, write
from .setting import NAME, Prepared, by_client, make_task, numbers, ready
from .setting import told as settings_of
from .splits import dealt, sampled
from .work import Work

Wire = Callable[[int, int, bytes], Iterable[bytes]]
AT_ONCE = 256  # clients that exist at a time


class Progress(NamedTuple):
    """What a progress callback is given after every round. loss: the clients' mean. metrics: of the eval rows, where
    they were measured. up, down: bytes of all clients so far. refused: answers of the round that did not count."""

    round: int
    rounds: int
    clients: int
    loss: float
    metrics: dict[str, float]
    up: int
    down: int
    refused: dict[str, int]
    seconds: float


def simulate(
    model: Host | str | Path,
    rows: Sequence[Row],
    *,
    method: str | Any = "fedavg",
    options: Mapping[str, Any] | None = None,
    task: str = "classify",
    eval_rows: Sequence[Row] | None = None,
    labels: Sequence[str] | None = None,
    sites: Any = None,
    text_column: str | None = None,
    label_column: str | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    files: Sequence[int] | None = None,
    holdout: float = 0.0,
    tokenizer: Any = None,
    common: str | None = None,
    name: str = NAME,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    wire: Wire | None = None,
    source: str = "rows",
    eval_source: str = "eval_rows",
    **recipe: Any,
) -> Run:
    """One model tuned by many clients, each with rows of its own: what they send each other, and what comes of it.

    method: one of `exchange.available`, or its config; options: its options, and those of the adapter that it trains.
    recipe: fields of `Rounds` (clients, rounds, sample, split, ...) and of `Local` (epochs, batch_size, lr, ...).
    eval_rows: measured after every round. common: a frozen common of the host: only what is a tenant's own beside it is
    trained and sent. holdout: share of each client's rows that it does not train on; its own model is measured on them
    at the end. files: of each row its file's number, for ``split="files"``. name: of the global tenant. out: a folder
    for the store, ``run.json`` and the state; resume goes on with a run that was killed there, to the same bits.
    source, eval_source: where rows came from, for errors.
    wire: (round, client, answer) -> what arrives of it; for tests of what a network does.
    Memory: the base, the rows, and at most 256 clients at a time, however many there are.
    Raises: CommonweightError; the host is then as it was.
    """
    plan, local = numbers(recipe)
    check_holdout(holdout)
    reading = {
        "text_column": text_column, "label_column": label_column, "prompt_column": prompt_column,
        "completion_column": completion_column,
    }  # fmt: skip
    if not rows:
        raise CommonweightError(f"{source}: no rows to train on")
    places = dealt(
        rows, plan.clients, plan.split, seed=plan.seed, label_column=label_column, files=files,
        asked=recipe.get("clients"),
    )  # fmt: skip
    train, held = _held_out(places, holdout, plan.seed)
    host = model if isinstance(model, Host) else _opened(model, task)
    doing = make_task(host, task, rows, labels, tokenizer, local, reading, source)
    seats = named(source, lambda every: by_client(doing, every, train), rows)
    prepared = ready(
        host, doing, method, options or {}, plan, local, clients=len(places), sites=sites, name=name, common=common,
        shown=shown(host, doing, seats[0][: plan.shown], local.batch_size),
    )  # fmt: skip
    try:
        measured = named(eval_source, doing.examples, eval_rows) if eval_rows else []
        held_rows = by_client(doing, rows, held) if any(held) else []
        engine = Engine(prepared, seats, measured, held_rows, Kept(None), wire, progress, None)
        state = engine.begin()
        if out is not None:  # last of all: what cannot be run loses no run that lies there
            engine.folder = open_out(Path(out), resume=resume, overwrite=overwrite)
            engine.kept = Kept(engine.folder / "state")
        return engine.run(state, resume)
    except BaseException:
        host.remove(name)
        raise
    finally:
        host.model.eval()


@dataclass
class Engine:
    """A simulated run. Everything but `kept` is a function of what it is given."""

    p: Prepared
    rows: list[list[Example]]
    eval_rows: list[Example]
    held: list[list[Example]]
    kept: Kept
    wire: Wire | None
    progress: Callable[[Progress], None] | None
    folder: Path | None
    seats: dict[int, Seat] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)

    def begin(self) -> State:
        """The server's first state. Raises: CommonweightError, of a method that cannot begin."""
        p = self.p
        self.start = starting(p.setting, p.tenant.pools)
        self.work = Work(p.host, p.tenant, p.task, self.rows, p.local, p.setting.rounds, p.setting.seed, p.plan.mixed)
        self.counts = {c: len(r) for c, r in enumerate(self.rows)}
        table = {n: Part(tuple(v.shape), str(v.dtype).removeprefix("torch.")) for n, v in p.setup.items()}
        self.setup = len(pack(facts(p.setting, 0), p.setup, table)) if p.setup else 0
        return p.method.begin(p.setting, self.start)

    def run(self, state: State, resume: bool) -> Run:
        """state: of `begin`."""
        p = self.p
        mine = settings_of(p) | {"rows": digest([e for mine in self.rows for e in mine])}
        found = self.kept.read() if resume else None
        if found is not None:
            state, about = found
            same_settings(mine, about["settings"], self.kept.folder or Path())
            self.curve = about["curve"]
            self.seats = {int(c): Seat(*s) for c, s in about["seats"].items()}
        for round in range(len(self.curve), p.setting.rounds):
            state = self.round(state, round)
            self.kept.commit(state, {"settings": mine, "curve": self.curve, "seats": self.seats})
            if self.folder is not None:
                write(self.folder, p, self.curve, self.seats)
        load(p, state)
        run = Run(
            p.host, p.tenant, p.method, p.setting, self.curve, self.seats, state, self.kept, self.folder,
            p.task.better[0],
        )  # fmt: skip
        if self.held:
            for c, rows in enumerate(self.held):
                if rows:
                    seat = self.seats.get(c, Seat())
                    self.seats[c] = seat._replace(metrics=measure(p, run.personal(c), rows))
            load(p, state)
        if self.folder is not None:
            write(self.folder, p, self.curve, self.seats)
            finish(self.folder, run)
        return run

    def round(self, state: State, round: int) -> State:
        began = time.perf_counter()
        p = self.p
        chosen = sampled(p.setting.clients, p.plan.sample, round, p.setting.seed)
        inbox = Gathering(p.method, p.setting, round, set(chosen), self.counts)
        vanished = set(self._vanished(round, chosen))
        late = set(self._late(chosen))
        awake = [c for c in chosen if c not in vanished and c not in late]
        sent_up = sent_down = 0
        losses: list[float] = []
        one = down(p.method, p.setting, state, round) if p.method.broadcast else None
        same = heard(p.method, p.setting, one, round, chosen[0]) if one is not None else {}
        for at in range(0, len(awake), AT_ONCE):
            some = awake[at : at + AT_ONCE]
            data = {c: one or down(p.method, p.setting, state, round, c) for c in some}
            got = {c: same if one is not None else heard(p.method, p.setting, data[c], round, c) for c in some}
            begun = [Told(round, c, self.counts[c], got[c], self.start, self.kept.of(c)) for c in some]
            running = [p.method.client(p.setting, t) for t in begun]
            done = drive_all(running, lambda asks: self.work.answer(round, [(some[i], a) for i, a in asks]))  # noqa: B023
            for c, t, sent in zip(some, begun, done):
                answer = up(p.method, p.setting, t, sent)
                self.kept.keep(c, round, sent.keep)
                loss = None if p.setting.privacy else sent.loss  # it is of a client's rows, and has no noise
                loss = loss if loss is not None and math.isfinite(loss) else None
                self._seat(c, round, len(answer), len(data[c]), loss)
                sent_up, sent_down = sent_up + len(answer), sent_down + len(data[c])
                if loss is not None:
                    losses.append(loss)
                for arrived in [answer] if self.wire is None else self.wire(round, c, answer):
                    inbox.put(arrived, c)
        size = len(one) if one is not None else 0
        for c in (*vanished, *late):
            sent_down += size
            self._seat(c, None, 0, size, None)
        if self.setup:  # the first client made it and sends it once; whoever is new is sent it
            if round == 0:
                sent_up += self.setup
                self._seat(0, None, self.setup, 0, None)
            new = [c for c in chosen if c != 0 and not self.seats[c].setup]
            for c in new:
                self.seats[c] = self.seats[c]._replace(down=self.seats[c].down + self.setup, setup=True)
            sent_down += self.setup * len(new)
        inbox.lost(late, "late")
        inbox.lost((c for c in chosen if c not in late), "vanished")
        state = inbox.close(state, p.plan.minimum)
        metrics = {}
        if self.eval_rows and ((round + 1) % p.plan.eval_every == 0 or round + 1 == p.setting.rounds):
            load(p, state)
            metrics = measure(p, p.tenant, self.eval_rows)
        refused = dict(sorted(inbox.inbox.refused.items()))
        self.curve.append({
            "round": round, "clients": len(chosen), "replies": len(inbox.inbox.replies), "refused": refused,
            "train_loss": sum(losses) / len(losses) if losses else None, "up": sent_up, "down": sent_down, **metrics,
            **state.seen,
        })  # fmt: skip
        if self.progress is not None:
            total = [sum(r[k] for r in self.curve) for k in ("up", "down")]
            loss = self.curve[-1]["train_loss"]
            self.progress(Progress(
                round + 1, p.setting.rounds, len(chosen), float("nan") if loss is None else loss, metrics, total[0],
                total[1], refused, time.perf_counter() - began,
            ))  # fmt: skip
        return state

    def _seat(self, client: int, round: int | None, up: int, down: int, loss: float | None) -> None:
        was = self.seats.get(client, Seat(rows=self.counts[client]))
        self.seats[client] = was._replace(
            rounds=was.rounds + (round is not None), up=was.up + up, down=was.down + down,
            loss=was.loss if loss is None else loss,
        )  # fmt: skip

    def _vanished(self, round: int, chosen: Sequence[int]) -> list[int]:
        if not self.p.plan.vanish:
            return []
        drawn = Rng(self.p.setting.seed, f"vanish/{round}").uniform((self.p.setting.clients,))
        return [c for c in chosen if float(drawn[c]) < self.p.plan.vanish]

    def _late(self, chosen: Sequence[int]) -> list[int]:
        """Those whose time is above the deadline: what the method says, or rows times steps, times their own
        slowness."""
        plan = self.p.plan
        if plan.deadline is None:
            return []
        speed = Rng(self.p.setting.seed, "speed").normal((self.p.setting.clients,), plan.spread).exp()
        times = {}
        for c in chosen:
            steps, batch = self.p.local.of(self.counts[c])
            said = self.p.method.seconds(self.p.setting, c)
            times[c] = (steps * batch if said is None else said) * float(speed[c])
        limit = plan.deadline * median_low(times.values())
        return [c for c in chosen if times[c] > limit]


def shown(host: Host, task: Task, examples: list[Example], batch: int) -> Shown:
    """Rows for a method that begins from data."""
    return Shown([task.collate(examples[at : at + batch]) for at in range(0, len(examples), batch)], task.loss)


def check_holdout(share: float) -> None:
    """Raises: CommonweightError."""
    if not 0 <= share < 1:
        raise CommonweightError(f"holdout={share}: wanted a share of each client's rows, from 0 to less than 1")


def _held_out(places: list[list[int]], share: float, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """(rows to train on, rows to measure on) of each client; a client with one row holds out none."""
    train, held = [], []
    for c, mine in enumerate(places):
        order = Rng(seed, f"holdout/{c}").permutation(len(mine)).tolist() if share else range(len(mine))
        n = min(len(mine) - 1, round(share * len(mine)))
        out = {mine[i] for i in order[:n]}
        train.append([i for i in mine if i not in out])
        held.append(sorted(out))
    return train, held


def _opened(model: str | Path, task: str) -> Host:
    from ..adapt.base import open_host

    return open_host(model, task)
