"""Liger's kernels: refused where they cannot run; else put into the base, but for its losses."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from commonweight import CommonweightError
from commonweight.adapt import liger, open_host


@pytest.fixture
def library(monkeypatch):
    """A stand-in with the part that is used; gives what it was told."""
    told = {}

    def apply(rope=True, swiglu=True, fused_linear_cross_entropy=True, model=None):
        told.update(rope=rope, swiglu=swiglu, fused=fused_linear_cross_entropy, model=model)

    patch = ModuleType("liger_kernel.transformers.monkey_patch")
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply, "mixtral": apply}  # type: ignore[attr-defined]
    outer = ModuleType("liger_kernel.transformers")
    outer.monkey_patch = patch  # type: ignore[attr-defined]
    for name, module in {
        "": ModuleType("liger_kernel"),
        ".transformers": outer,
        ".transformers.monkey_patch": patch,
    }.items():
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)
    monkeypatch.setattr(liger, "check", lambda: None)
    return told


def model(kind, **more):
    return SimpleNamespace(config=SimpleNamespace(model_type=kind, **more))


def test_where_it_is_missing(llama, monkeypatch):
    monkeypatch.setattr(liger, "find_spec", lambda _: None)
    with pytest.raises(CommonweightError, match="liger needs Liger's kernels: pip install liger-kernel"):
        open_host(llama, "lm", liger=True)


def test_off_a_gpu(llama, library):
    with pytest.raises(CommonweightError, match="its kernels run on a GPU, and the model is on 'cpu'; leave it out"):
        open_host(llama, "lm", liger=True, device="cpu")


def test_losses_stay_ours_and_experts_are_read_where_a_host_sees_them(library):
    base = model("llama")
    liger.patch(base, "cuda")
    assert library == {"rope": True, "swiglu": True, "fused": False, "model": base}
    liger.patch(model("mixtral", num_local_experts=8), "cuda")
    assert library["swiglu"] is False


def test_a_model_that_it_does_not_know(library):
    with pytest.raises(CommonweightError, match="liger has no kernels for bert; it knows llama, mixtral"):
        liger.patch(model("bert"), "cuda")
