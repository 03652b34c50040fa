"""Loading beside others: nobody waits for a tenant that is being read but those who ask for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from commonweight.commons import Commons
from commonweight.core import CommonweightError
from commonweight.host import Host
from commonweight.serve import Engine
from commonweight.serve.flight import Flights
from commonweight.serve.tenants import Tenants

from .http.live import until
from .served import add, ask, make


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Tenants s and t, and two of one common."""
    host, found = Host(make()), Commons(tmp_path_factory.mktemp("store"))
    for name in ("s", "t"):
        add(host, name, "lora")
        found.publish(host, name)
    for name in ("m1", "m2"):
        add(host, name, "mos", common="pool")
    for name in ("m1", "m2"):
        found.publish(host, name)
    return found


class Slow:
    """A store whose tenant `name` is not read before `go` is set; `began` tells that it is asked for."""

    def __init__(self, store, name):
        self.store, self.name, self.folder = store, name, store.folder
        self.began, self.go, self.fetched = threading.Event(), threading.Event(), []

    def fetch(self, name):
        self.fetched.append(name)
        if name == self.name:
            self.began.set()
            assert self.go.wait(60)
        return self.store.fetch(name)


@pytest.fixture
def tenants(store):
    host = Host(make())
    add(host, "warm", "lora")
    return Tenants(host, Slow(store, "s"), None)


def test_a_cold_tenant_holds_nobody_back(tenants):
    slow = tenants.store
    with ThreadPoolExecutor(4) as pool:
        cold = [pool.submit(tenants.edition, "s") for _ in range(2)]
        assert slow.began.wait(60) and not tenants.ready("s")
        assert tenants.edition("warm") is not None and tenants.edition("t") is not None
        assert tenants.ready("warm") and tenants.ready("t") and not tenants.drop("s")
        assert [r.name for r in tenants.resident()] == ["warm", "t"] and not any(f.done() for f in cold)
        slow.go.set()
        assert cold[0].result(60) is cold[1].result(60)
    assert slow.fetched == ["s", "t", "s"]  # read again: it was dropped meanwhile


def test_what_cannot_be_read_is_an_error_for_all_who_wait(tenants, store, monkeypatch):
    slow = tenants.store
    with ThreadPoolExecutor(2) as pool:
        cold = [pool.submit(tenants.get, "s") for _ in range(2)]
        assert slow.began.wait(60)
        monkeypatch.setattr(slow, "store", Commons(store.folder / "nothing"))
        slow.go.set()
        for one in cold:
            with pytest.raises(CommonweightError):
                one.result(60)
    monkeypatch.undo()
    assert tenants.get("s").name == "s"


def test_a_tenant_that_takes_the_name_meanwhile_is_the_one(tenants):
    slow = tenants.store
    with ThreadPoolExecutor(1) as pool:
        cold = pool.submit(tenants.get, "s")
        assert slow.began.wait(60)
        tenants.rename("warm", "s")
        slow.go.set()
        assert cold.result(60) is tenants.host["s"]
    assert [r.level for r in tenants.resident()] == ["host"]


def test_tenants_of_one_common_that_come_at_once_share_it(store):
    tenants = Tenants(Host(make()), store, None)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(tenants.get, ["m1", "m2"])
    assert one.common is other.common is tenants.host.common("pool") and one.common.tenants == 2
    assert one.number != other.number


def test_flights():
    flights, began, go, calls = Flights(), threading.Event(), threading.Event(), []

    def work():
        calls.append(1)
        began.set()
        assert go.wait(60)
        return len(calls)

    with ThreadPoolExecutor(1) as pool:
        one = pool.submit(flights, "x", work)
        assert began.wait(60) and "x" in flights
        assert flights("y", lambda: "other") == "other"
        go.set()
        assert one.result(60) == 1
    assert "x" not in flights and flights("x", work) == 2


def test_an_error_that_is_over_when_somebody_asks_is_not_theirs():
    """A load that began while the store had no such tenant, and requests that came after it was published."""
    flights, began, go, there, calls = Flights(), threading.Event(), threading.Event(), threading.Event(), []

    def work():
        calls.append(1)
        found = there.is_set()
        began.set()
        assert go.wait(60)
        if not found:
            raise KeyError("no such tenant")
        return "tenant"

    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(flights, "x", work)
        assert began.wait(60)
        there.set()
        after = [pool.submit(flights, "x", work) for _ in range(4)]
        time.sleep(0.05)  # they wait for the first one's work by now
        go.set()
        assert [f.result(60) for f in after] == ["tenant"] * 4
        with pytest.raises(KeyError):
            first.result(60)
    began.clear()
    there.clear()
    go.clear()
    calls.clear()
    with ThreadPoolExecutor(5) as pool:
        every = [pool.submit(flights, "x", work) for _ in range(5)]
        assert began.wait(60)
        time.sleep(0.05)
        go.set()
        assert all(isinstance(f.exception(60), KeyError) for f in every)
    assert len(calls) <= 5, "nobody tries what is wrong for good more than once"


class Answer:
    """One that is being made."""

    def __init__(self, *readers):
        self.readers, self.reason = readers, None


def test_who_was_read_makes_room_when_the_answers_have_ended(store):
    tenants = Tenants(Host(make()), store, 1)
    held = []
    for name in ("s", "t"):
        held.append(Answer(tenants.get(name)))
        tenants.hold(held[-1])
    tenants.get("m1")
    tenants.trim()
    assert sorted(tenants.host) == ["m1", "s", "t"]
    held[0].reason = "stop"
    tenants.trim()
    assert sorted(tenants.host) == ["m1", "t"]
    held[1].reason = "stop"
    tenants.trim()
    assert sorted(tenants.host) == ["m1"] and tenants.left.is_set()


def test_an_engine_makes_room_when_it_has_nothing_to_do(store):
    with Engine(Host(make()), store=store, tenant_memory=1, max_requests=2, page_size=8) as engine:
        assert not any(a.error for a in engine.generate([ask(n, max_new_tokens=12) for n in ("s", "t", "m1", "m2")]))
        until(lambda: len(engine.host) == 1)
