"""A stream that is killed anywhere and resumed ends with the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from commonweight import Commons, CommonweightError
from commonweight.adapt import open_host
from commonweight.commons.store import Commons as Store
from commonweight.lifelong import learn, record, stages, state
from tests import apart
from tests.lifelong import small


class Killed(BaseException):
    pass


def at_call(monkeypatch, owner, name, n, after=False):
    """Dies at the n-th call of a function, before it or after it."""
    old, calls = getattr(owner, name), [0]

    def dying(*args, **kwargs):
        calls[0] += 1
        if calls[0] == n and not after:
            raise Killed
        out = old(*args, **kwargs)
        if calls[0] == n:
            raise Killed
        return out

    monkeypatch.setattr(owner, name, dying)


def at_step(n):
    seen = [0]

    def progress(_):
        seen[0] += 1
        if seen[0] == n:
            raise Killed

    return progress


MOMENTS = {
    "in the first task": lambda m: at_step(1),
    "in the second task": lambda m: at_step(3),
    "in the second training of a stage": lambda m: at_step(5),
    "after the last step of a task": lambda m: at_step(4),
    "before a task is in the store": lambda m: at_call(m, stages, "publish", 2),
    "after a task is in the store": lambda m: at_call(m, Store, "publish_all", 2, after=True),
    "before what is carried over is written": lambda m: at_call(m, state, "write", 2),
    "before the stage is on record": lambda m: at_call(m, record, "write", 3),
    "while it measures": lambda m: at_call(m, stages, "score", 3),
    "before what is old goes": lambda m: at_call(m, state, "drop", 1),
}


@pytest.fixture(scope="module")
def host(model):
    return open_host(model, "classify", dtype="float32")


@pytest.fixture(scope="module")
def replayed(model, host, tmp_path_factory):
    """The record of a stream that nothing stopped, and its tenants' pools."""
    return undisturbed(model, host, tmp_path_factory.mktemp("whole") / "shop", "replay", evals=small.evals())


def undisturbed(model, host, store, method, **more):
    made = small.stream(model, store, method, host=host, **more)
    return small.told(made.folder), pools(store)


def pools(store):
    """What the newest versions of all tenants hold, by content."""
    shop = Commons(store, make=False)
    return {n: {k: r.hash for k, r in shop.manifest(n).pools.items()} for n in shop}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_the_same_bits(moment, replayed, model, tmp_path, monkeypatch):
    shop = tmp_path / "shop"
    with monkeypatch.context() as m:
        progress = MOMENTS[moment](m)
        with pytest.raises(Killed):
            small.stream(model, shop, "replay", evals=small.evals(), progress=progress)
    made = small.stream(model, shop, "replay", evals=small.evals(), resume=True)
    assert (small.told(made.folder), pools(shop)) == replayed
    kept = {"stream.json", "report.html", "carried-1.safetensors", "memory-1.jsonl"}
    assert {p.name for p in made.folder.iterdir()} == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop"]


class Mortal:
    """Dies once at each moment of a stream, the first time that it comes there: the moments of the last stage, and one
    of the first. So each run goes on from the death before, and comes one moment further."""

    def __init__(self, m):
        self.deaths: list[tuple] = []
        self.at: tuple = ()
        old = {n: getattr(o, n) for o, n in ((stages, "train"), (stages, "publish"), (state, "write"))}

        def train(stage, ask, at, *rest):
            self.at = stage.number, at.name
            return old["train"](stage, ask, at, *rest)

        def publish(host, store, tenants):
            labels = old["publish"](host, store, tenants)
            self.die("after a task is in the store", len(tenants))
            return labels

        def write(folder, stage, *rest):
            size = old["write"](folder, stage, *rest)
            self.die("after what is carried over is written", stage)
            return size

        for owner, f in ((stages, train), (stages, publish), (state, write)):
            m.setattr(owner, f.__name__, f)

    def die(self, *moment):
        moment = (*moment, *self.at)
        if self.at[0] == 1 and moment not in self.deaths:
            self.deaths.append(moment)
            raise Killed

    def step(self, progress):
        if self.at == (0, "0") and not self.deaths:
            self.deaths.append(("in the first task",))
            raise Killed
        self.die("step", progress.step)


@pytest.mark.parametrize("method", small.METHODS)
def test_killed_at_every_moment_in_turn(method, model, host, tmp_path, monkeypatch):
    want = undisturbed(model, host, tmp_path / "whole", method)
    with monkeypatch.context() as m:
        mortal, alive = Mortal(m), False
        while not alive:
            try:
                made = small.stream(model, tmp_path / "shop", method, resume=True, progress=mortal.step)
                alive = True
            except Killed:
                assert len(mortal.deaths) < 20
    assert (small.told(made.folder), pools(tmp_path / "shop")) == want
    assert len(mortal.deaths) == 1 + 2 + sum(d[0] == "step" for d in mortal.deaths) >= 5, mortal.deaths


def test_killed_by_the_system_again_and_again(tmp_path):
    done = apart.run("-m", "tests.lifelong.killed", tmp_path, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    (*killed, last), whole, resumed = json.loads(done.stdout.splitlines()[-1])
    assert last == 0 and len(killed) > 1 and {*killed} == {signal.SIGKILL}
    assert resumed == whole, "other bits"


def test_a_further_task_goes_on_where_the_stream_stood(model, host, tmp_path):
    short = small.stream(model, tmp_path / "a", "ewc")
    longer = small.stream(model, tmp_path / "a", "ewc", n=3, resume=True)
    once = small.stream(model, tmp_path / "b", "ewc", n=3, host=host)
    assert len(short.record["stages"]) == 2
    assert small.told(longer.folder) == small.told(once.folder)
    assert pools(tmp_path / "a") == pools(tmp_path / "b")


def test_what_earlier_stages_carried_is_gone_when_they_are_measured_later(model, host, tmp_path):
    small.stream(model, tmp_path / "a", "conpet", host=host)
    later = small.stream(model, tmp_path / "a", "conpet", host=host, evals=small.evals(), resume=True)
    assert ["untold" in s for s in later.record["stages"]] == [False, True]


def test_what_was_learned_is_measured_later_too(model, host, tmp_path):
    small.stream(model, tmp_path / "a", host=host)
    later = small.stream(model, tmp_path / "a", evals=small.evals(), resume=True)
    once = small.stream(model, tmp_path / "b", host=host, evals=small.evals())
    assert small.told(later.folder) == small.told(once.folder)


def test_a_stream_that_is_there_is_not_written_over(model, host, tmp_path):
    small.stream(model, tmp_path / "a", n=1, host=host)
    with pytest.raises(CommonweightError, match="a stream of 1 learned task lies there; --resume goes on"):
        small.stream(model, tmp_path / "a", n=1, host=host)
    with pytest.raises(CommonweightError, match=r"started with other settings .lr: then 0.005, now 0.1"):
        small.stream(model, tmp_path / "a", n=1, host=host, resume=True, lr=0.1)


def test_the_order_of_what_was_learned_stays(model, host, tmp_path):
    small.stream(model, tmp_path / "a", n=1, host=host)
    other = dict(reversed(small.tasks().items()))
    with pytest.raises(CommonweightError, match="learned first where the file now has second"):
        learn(
            host, other, tmp_path / "a", options=small.options("sequential"),
            resume=True, **small.RECIPE,
        )  # fmt: skip
    fewer_rows = small.tasks(1, rows=9)
    with pytest.raises(CommonweightError, match=r"a/streams/stream, task first: .* other settings .*train rows"):
        learn(host, fewer_rows, tmp_path / "a", options=small.options("sequential"), resume=True, **small.RECIPE)
    small.stream(model, tmp_path / "a", n=2, host=host, resume=True)
    with pytest.raises(CommonweightError, match="2 tasks were learned, first, second, and here are 1; name them all"):
        small.stream(model, tmp_path / "a", n=1, host=host, resume=True)


@pytest.mark.parametrize(
    "text, told",
    [
        (None, "memory-0.jsonl"),  # gone
        ("", "0 rows of first, where 4 were written"),
        ('{"task": 1', "memory-0.jsonl: what the stream carried over is damaged"),
        ("[1]", "is damaged"),
    ],
)
def test_kept_rows_that_are_lost_are_missed(text, told, model, tmp_path):
    """Training without them would be another method."""
    made = small.stream(model, tmp_path, "replay", n=1)
    memory = made.folder / "memory-0.jsonl"
    memory.unlink() if text is None else memory.write_text(text)
    with pytest.raises(CommonweightError) as e:
        small.stream(model, tmp_path, "replay", resume=True)
    assert told in str(e.value) and "another store" in str(e.value)


def test_a_tenant_that_the_stream_goes_on_from_was_removed(model, tmp_path):
    made = small.stream(model, tmp_path, n=1)
    with pytest.warns(UserWarning, match="went on from first@1"):
        Commons(tmp_path, make=False).remove("first")
    assert small.stream(model, tmp_path, n=1, resume=True).record["stages"] == made.record["stages"]
    with pytest.raises(CommonweightError, match="after first, first was answered by first@1, which the store has lost"):
        small.stream(model, tmp_path, resume=True)
    with pytest.raises(CommonweightError, match="which the store has lost"):
        small.stream(model, tmp_path, n=1, evals=small.evals(1), resume=True)


CHANGES = {
    "stages: wanted a list, not 3": lambda r: {**r, "stages": 3},
    "adapter: wanted a text; it is not there": lambda r: {k: v for k, v in r.items() if k != "adapter"},
    "stage 1: wanted an object, not 'first'": lambda r: {**r, "stages": ["first"]},
    "stage 1: tenants: wanted an object, not \\['first@1'\\]": lambda r: {
        **r, "stages": [{**r["stages"][0], "tenants": ["first@1"]}]
    },
    "stage 1: scores: wanted an object or nothing": lambda r: {**r, "stages": [{**r["stages"][0], "scores": 0.5}]},
}  # fmt: skip


@pytest.mark.parametrize("wanted", CHANGES)
def test_a_record_that_was_edited(wanted, tmp_path):
    stage = {"task": "first", "tenants": {"first": "first@1"}, "rows": {}, "memory": {}, "bytes": {}}
    whole = {**dict.fromkeys(("name", "method", "paper", "adapter", "task"), "x"), "stages": [stage]}
    whole |= {"adapter_options": {}, "better": ["accuracy", True], "tasks": [], "untrained": {}, "settings": {}}
    for told in (whole, CHANGES[wanted](whole)):
        (tmp_path / "stream.json").write_text(json.dumps(told))
        if told is whole:
            assert record.read(tmp_path) == whole
    with pytest.raises(CommonweightError, match=f"stream.json: cannot be read as a stream \\({wanted}"):
        record.read(tmp_path)
