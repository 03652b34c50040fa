"""Memory that a step has freed stays with the process."""

from __future__ import annotations

import platform

import pytest

from commonweight.serve import memory


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_set_malloc_keeps_it_so(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=1")
    assert not memory.keep()


def test_only_glibc_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not memory.keep()
