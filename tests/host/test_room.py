"""What no machine can hold is refused before it is made, with its bytes and what to lower."""

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.host import room
from tests.models import make


@pytest.fixture(scope="module")
def host():
    return cw.Host(make("llama")[0])


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        (
            "lora",
            {"rank": 10**12},
            r"lora: rank=10{12} wants 4 TB and more .* at model.layers.0.self_attn.q_proj",
        ),
        ("lora", {"rank": 2**62}, r"wants 18.4 EB"),
        ("dora", {"rank": 10**11 * 4}, r"lower rank"),
        ("mos", {"rank": 10**13}, r"mos: rank=10{13} wants 40 TB"),
        ("vera", {"rank": 10**13}, r"lower rank"),
        ("bottleneck", {"size": 10**13}, r"bottleneck: size=10000000000000 wants 40 TB"),
    ],
)
def test_a_size_that_fills_the_machine_by_itself(host, method, options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        host.add("t", method, **options)
    assert "t" not in host


def test_a_plan_that_does_not_fit(host, monkeypatch):
    monkeypatch.setattr(room, "memory", lambda: 10**6)
    with pytest.raises(
        cw.CommonweightError,
        match=r"0.mlp.gate_proj: lora wants 256 kB there, 64,000 numbers of shape \(64, 1000\), and 1.15 MB in all; "
        r"this machine has 1 MB: lower rank=1000, or choose fewer sites",
    ):
        host.add("t", "lora", rank=1000, sites="*.0.mlp.*")
    host.add("t", "lora", rank=2)
    host.remove("t")


def test_what_to_lower_is_what_was_given_for_the_site(host, monkeypatch):
    monkeypatch.setattr(room, "memory", lambda: 10**6)
    with pytest.raises(cw.CommonweightError, match=r"0.mlp.gate_proj: .*: lower ranks, which gives model.layers.0.mlp"):
        host.add("t", "lora", sites="*.0.mlp.*", ranks=[["*.gate_proj", 3000]])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 233. TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes"),
        torch.OutOfMemoryError("CUDA out of memory"),
        ValueError("Maximum allowed dimension exceeded"),
    ],
)
def test_where_making_them_fails(host, monkeypatch, error):
    def fails(**how):
        raise error

    monkeypatch.setattr(np.random, "Philox", fails)
    with pytest.raises(cw.CommonweightError, match=r"lora wants .* there is no room for them: lower rank=3") as e:
        host.add("t", "lora", rank=3)
    assert e.value.__cause__ is error and "t" not in host


def test_another_error_stays_what_it_is(host, monkeypatch):
    def fails(**how):
        raise ValueError("something else")

    monkeypatch.setattr(np.random, "Philox", fails)
    with pytest.raises(ValueError, match="something else"):
        host.add("t", "lora")


def test_coverage_refuses_it_too(host):
    with pytest.raises(cw.CommonweightError, match=r"lora wants .* in all; this machine has .*: lower rank=1000000000"):
        host.coverage("lora", rank=10**9)
