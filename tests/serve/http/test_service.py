"""Loads that several calls wait for."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from commonweight.core import Unknown
from commonweight.serve.http.errors import Refused
from commonweight.serve.http.service import Service


@pytest.fixture
def service():
    made = Service.__new__(Service)
    made.engine = SimpleNamespace(tenants=SimpleNamespace(ready=lambda name: False, store=None))  # type: ignore[assignment]
    made._loading = {}
    with ThreadPoolExecutor(2) as made.loaders:
        yield made


@pytest.mark.parametrize("published", [True, False])
def test_a_load_that_began_before_a_tenant_was_published_is_not_the_later_calls_answer(service, published):
    go, there, calls = threading.Event(), threading.Event(), []

    def load(name):
        calls.append(name)
        found = there.is_set()
        assert go.wait(60)
        if not found:
            raise Unknown("no such tenant")
        return "tenant"

    async def run():
        first = asyncio.ensure_future(service.loaded("x", load))
        while not calls:
            await asyncio.sleep(0.001)
        if published:
            there.set()
        after = [asyncio.ensure_future(service.loaded("x", load)) for _ in range(3)]
        await asyncio.sleep(0.01)
        go.set()
        return await asyncio.gather(first, *after, return_exceptions=True)

    first, *after = asyncio.run(run())
    assert isinstance(first, Refused) and first.status == 404
    if published:
        assert after == ["tenant"] * 3
    else:
        assert all(isinstance(a, Refused) and a.status == 404 for a in after)
    assert calls == ["x", "x"], "one load for all who came later"
