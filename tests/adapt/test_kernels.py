"""oneDNN is told to keep few kernels, before its first product, and by nobody who has been told otherwise."""

import os

from commonweight.adapt import kernels, open_host


def test_a_host_on_the_cpu_keeps_few(bert, monkeypatch):
    for name in kernels._CACHES:
        monkeypatch.delenv(name, raising=False)
    open_host(bert, device="cpu")
    assert [os.environ[name] for name in kernels._CACHES] == ["128", "128"]


def test_the_environment_goes_before(monkeypatch):
    first, second = kernels._CACHES
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    kernels.few()
    assert (os.environ[first], os.environ[second]) == ("7", "128")
