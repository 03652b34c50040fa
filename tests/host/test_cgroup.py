"""The limit of a container, from folders as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from commonweight.host import cgroup, room


def tree(root: Path, own: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": own, **files}.items():
        at = root / name
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"sys/fs/cgroup/memory.max": "4294967296\n"}, 4294967296),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "max\n"}, None),
        (
            "0::/kube/pod\n",
            {"sys/fs/cgroup/kube/pod/memory.max": "max\n", "sys/fs/cgroup/kube/memory.max": "2000\n"},
            2000,
        ),
        (  # the outer limit is the lower one
            "0::/a/b\n",
            {"sys/fs/cgroup/a/b/memory.max": "9000\n", "sys/fs/cgroup/a/memory.max": "8000\n"},
            8000,
        ),
        ("0::/of/the/host\n", {"sys/fs/cgroup/memory.max": "3000\n"}, 3000),
        (
            "9:cpu:/\n4:memory:/docker/x\n1:name=systemd:/\n0::/\n",
            {"sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "5000\n"},
            5000,
        ),
        ("4:cpu,memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n"}, 5000),
        ("not a line\n\n", {}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_least_limit_on_the_way_up(tmp_path, own, files, limit):
    assert cgroup.limit(tree(tmp_path, own, files)) == limit


def test_a_machine_without_control_groups(tmp_path):
    assert cgroup.limit(tmp_path) is None


@pytest.mark.parametrize(("limit", "said"), [(10**6, 10**6), (None, 10**9), (2**63 - 4096, 10**9)])
def test_the_memory_is_what_the_container_gives_of_the_machines(monkeypatch, limit, said):
    monkeypatch.setattr(room.cgroup, "limit", lambda: limit)
    monkeypatch.setattr(room.os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 10**6}.__getitem__, raising=False)
    assert room.memory.__wrapped__() == said
