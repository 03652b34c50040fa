"""A route belongs to a unit of work: event loops, threads, executors, generators."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool

import pytest
import torch
from torch import nn

import commonweight as cw

from .routed import NAMES, small

# -- event loops -------------------------------------------------------------------------------------------------------


def test_tasks_of_one_event_loop_have_their_own_routes():
    host, say, want = small()

    async def task(name, given):
        wrong = 0
        for _ in range(5):
            if given:
                with host.route(name):
                    await asyncio.sleep(0)
                    wrong += not torch.equal(say(), want[name])
            else:
                await asyncio.sleep(0)
                wrong += not torch.equal(say(), want[None])
        return wrong

    async def main():
        return await asyncio.gather(task("a", True), task("b", True), task(None, True), task(None, False))

    assert asyncio.run(main()) == [0, 0, 0, 0]
    assert torch.equal(say(), want[None]), "nothing stays in force"


def test_work_that_a_task_hands_to_threads_is_the_tasks_own():
    host, say, want = small()

    async def task(name):
        with host.route(name):
            loop = asyncio.get_running_loop()
            return [await asyncio.to_thread(say), await loop.run_in_executor(None, say)]

    async def main():
        return await asyncio.gather(*(task(n) for n in NAMES))

    for name, answers in zip(NAMES, asyncio.run(main())):
        assert all(torch.equal(found, want[name]) for found in answers)


def test_a_compiled_model_in_an_event_loop():
    host, _, _ = small()
    torch._dynamo.reset()
    compiled = torch.compile(host.model, backend="eager")
    x = torch.randn(2, 8)
    with torch.no_grad():
        right = {}
        for n in NAMES:
            with host.route(n):
                right[n] = host.model(x)

    async def task(name):
        wrong = 0
        for _ in range(3):
            with host.route(name):
                await asyncio.sleep(0)
                with torch.no_grad():  # torch's own state is the thread's: it must not be held across an await
                    wrong += not torch.allclose(compiled(x), right[name])
        return wrong

    async def main():
        return await asyncio.gather(*(task(n) for n in NAMES))

    assert asyncio.run(main()) == [0, 0, 0]


def test_a_model_inside_of_what_is_compiled():
    host, _, _ = small()
    torch._dynamo.reset()
    whole = torch.compile(Outer(host.model), backend="eager")
    x = torch.randn(2, 8)
    for n in ("a", "b", None, "a"):
        with torch.no_grad(), host.route(n):
            torch.testing.assert_close(whole(x), host.model(x) + 1)


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1


# -- threads -----------------------------------------------------------------------------------------------------------


def in_thread(run):
    found = []

    def work():
        try:
            found.append(run())
        except cw.CommonweightError as e:
            found.append(e)

    t = threading.Thread(target=work)
    t.start()
    t.join()
    return found[0]


def test_a_thread_started_in_a_route_keeps_it_though_the_route_closes():
    host, say, want = small()
    go, found = threading.Event(), []

    def work():
        go.wait()
        found.append(say())

    with host.route("a"):
        assert torch.equal(in_thread(say), want["a"])
        late = threading.Thread(target=work)
        late.start()
    with host.route("b"):
        go.set()
        late.join()
    assert torch.equal(found[0], want["a"])


def test_an_executor_runs_each_item_as_whoever_gave_it():
    host, say, want = small()
    with ThreadPoolExecutor(1) as pool:
        for n in ("a", "b", None, "a"):
            with host.route(n):
                assert torch.equal(pool.submit(say).result(), want[n])
                assert all(torch.equal(y, want[n]) for y in pool.map(lambda _: say(), range(3)))
        assert torch.equal(pool.submit(say).result(), want[None])


def test_where_it_cannot_be_known_whose_work_a_thread_does_the_model_says_so():
    host, say, want = small()
    with ThreadPool(1) as pool:
        assert torch.equal(pool.apply(say), want[None])
        with host.route("a"), pytest.raises(cw.CommonweightError, match="cannot be known whose work this is"):
            pool.apply(say)

        def based():
            with host.route(None):
                return say()

        with host.route("a"):
            assert torch.equal(pool.apply(based), want[None]), "a thread that says what it wants is believed"


def test_threads_that_share_a_mixed_route_run_side_by_side():
    host, say, want = small()
    wrong = []

    def work():
        for _ in range(20):
            y = say()
            if not torch.allclose(y, torch.stack([want["a"][0], want["b"][1]]), rtol=1e-4, atol=1e-4):
                wrong.append(y)

    with host.route(["a", "b"]):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_generators_that_take_turns_are_told():
    host, _, _ = small()

    def stream(name):
        with host.route(name):
            yield
            yield

    one, two = stream("a"), stream("b")
    next(one)
    next(two)
    next(one)
    with pytest.raises(cw.CommonweightError, match="closed while one that was opened after it was still open"):
        next(one, None)
    two.close()


def test_a_generator_that_is_resumed_in_another_context_is_told_before_it_answers():
    host, say, want = small()

    def stream():
        with host.route("a"):
            for _ in range(2):
                yield say()

    async def stream_later():
        with host.route("a"):
            for _ in range(2):
                yield say()

    async def from_threads(values):  # as web servers do
        return [await asyncio.to_thread(next, values) for _ in range(2)]

    async def from_tasks(values):
        return [await asyncio.create_task(anext(values)) for _ in range(2)]

    for run in (from_threads(stream()), from_tasks(stream_later())):
        with pytest.raises(cw.CommonweightError, match="is resumed in another context"):
            asyncio.run(run)
    assert all(torch.equal(y, want["a"]) for y in stream())
    values = stream()
    assert torch.equal(next(values), want["a"])
    with host.route("b"):  # what is done beside a generator that waits is not its work
        assert torch.equal(say(), want["b"])
    assert torch.equal(next(values), want["a"])


def test_a_route_of_a_generator_that_waits_answers_nobody_else():
    host, say, want = small()

    def stream():
        with host.route("a"):
            for _ in range(3):
                yield say()

    async def later():
        with host.route("a"):
            for _ in range(3):
                yield say()
                task = asyncio.create_task(asyncio.to_thread(say))
                yield await task  # work that is handed on keeps it

    values = stream()
    next(values)
    with pytest.raises(cw.CommonweightError, match="waits at a yield"):
        say()
    with host.route(None):
        assert torch.equal(say(), want[None])
    with pytest.raises(cw.CommonweightError, match="is resumed in another context"), host.route("b"):
        next(values)
    assert torch.equal(say(), want[None])  # its end has put back what was there

    other, one = stream(), stream()
    assert torch.equal(next(other), want["a"]) and torch.equal(next(one), want["a"])
    with pytest.raises(cw.CommonweightError, match="is resumed in another context"):
        next(other)
    one.close()

    async def consumed():
        values = later()
        assert torch.equal(await anext(values), want["a"])
        with pytest.raises(cw.CommonweightError, match="waits at a yield"):
            say()
        assert torch.equal(await anext(values), want["a"])
        await values.aclose()
        assert torch.equal(say(), want[None])

    asyncio.run(consumed())


def test_a_route_as_the_decorator_of_a_coroutine_lasts_until_its_end():
    host, say, want = small()

    @host.route("a")
    async def answered():
        await asyncio.sleep(0)
        return say()

    assert torch.equal(asyncio.run(answered()), want["a"])
    with pytest.raises(cw.CommonweightError, match="is a generator"):

        @host.route("a")
        def stream():
            yield say()


def test_a_route_is_a_decorator_and_serves_a_context_manager_of_ones_own():
    host, say, want = small()

    @contextmanager
    def legal():
        with host.route("a"):
            yield

    with legal():
        assert torch.equal(say(), want["a"])
    as_b = host.route("b")(say)
    assert torch.equal(as_b(), want["b"])
    assert torch.equal(as_b(), want["b"])
