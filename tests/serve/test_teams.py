"""Threads of torch's operations: whoever waits has none, so that an engine's need not sleep between two of them."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import commonweight as cw
from commonweight.serve import Encoder, teams

from . import encoders, served

pytestmark = pytest.mark.skipif(not teams._libraries(), reason="torch's threads are not libgomp's")


@pytest.fixture(autouse=True)
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    teams.rest()
    yield
    torch.set_num_threads(before)
    teams.rest()


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def more(before: set[str]) -> int:
    """Threads that have come since, and are there."""
    return len(threads() - before)


def compute() -> None:
    x = torch.ones(300, 300)
    (x @ x).exp_()


def left(before: set[str], most: int) -> bool:
    """Whether no more of those that have come are there, soon."""
    until = time.monotonic() + 5
    while more(before) > most and time.monotonic() < until:
        time.sleep(0.01)
    return more(before) == most


def test_a_team_comes_with_an_operation_and_goes_when_it_is_told_to():
    before = threads()
    compute()
    assert more(before) == 1
    teams.rest()
    assert left(before, 0)


def test_another_threads_team_stays():
    before, seen = threads(), []

    def other() -> None:
        compute()
        seen.append(more(before))
        teams.rest()
        seen.append(left(before, 2))

    compute()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [3, True], "its own thread and two of teams; and without its own team"


def test_alone_means_this_thread_and_no_other():
    def work() -> tuple[int, int]:
        before = threads()
        compute()
        return torch.get_num_threads(), more(before)

    with ThreadPoolExecutor(1, initializer=teams.alone) as pool:
        assert pool.submit(work).result() == (1, 0)
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == (2, 1)


def test_alone_of_two_threads_at_once_leaves_the_rest_as_they_were(monkeypatch):
    set_to, first, seen = torch.set_num_threads, threading.Event(), []

    def slowly(n: int) -> None:
        time.sleep(0.1 if threading.current_thread().name == "two" else 0.02)
        set_to(n)
        first.set()

    monkeypatch.setattr(torch, "set_num_threads", slowly)
    one = threading.Thread(target=teams.alone, name="one")
    two = threading.Thread(target=lambda: (first.wait(), teams.alone()), name="two")
    late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    one.start()
    two.start()
    one.join()
    two.join()
    late.start()
    late.join()
    assert seen == [2]


def _asked(kind: str, reader: Any) -> None:
    if kind == "engine":
        assert all(a.error is None for a in reader.generate([served.ask("a"), served.ask(None)]))
    else:
        assert all(f.error is None for f in reader.embed([served.prompt(0), served.prompt(1)], "three"))


@pytest.mark.parametrize("kind", ("engine", "encoder"))
def test_who_has_asked_and_who_has_answered_let_their_teams_go(kind):
    """Each of the two threads makes a team: the caller before it asks, the other one in each step."""
    made = served.make() if kind == "engine" else encoders.host(encoders.bert())
    teams.rest()
    before, seen = threads(), list[int]()

    def step(*args: Any) -> None:
        compute()
        seen.append(more(before))

    if kind == "engine":
        host = cw.Host(made)
        served.add(host, "a")
        reader: Any = cw.Engine(host, max_requests=4)
        reader.stepped = step
    else:
        reader = Encoder(made)
        inside = reader._read
        reader._read = lambda batch: (step(), inside(batch))[1]
    with reader:
        assert left(before, 1), "the reader's own thread"
        compute()
        assert more(before) == 2
        _asked(kind, reader)
        assert seen and max(seen) == 2, "the caller's team is there while the reader computes"
        assert left(before, 1)
