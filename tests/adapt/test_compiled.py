"""A compiled base trains as the plain one; what cannot be compiled is refused."""

import pytest
import torch

from commonweight import CommonweightError
from commonweight.adapt import adapt, compiled, open_host
from tests.adapt import tiny
from tests.adapt.test_packing import rows


@pytest.fixture
def traced(monkeypatch):
    """The whole way but the last: no code is generated."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "kind,more", [("llama", {"method": "lora"}), pytest.param("bert", {"method": "dora"}, marks=pytest.mark.slow)]
)
def test_the_numbers_are_the_same(tmp_path, traced, kind, more):
    model, task = tiny.base(tmp_path, kind, layers=1), "lm" if kind == "llama" else "classify"
    if kind == "llama":  # batches of one shape, and of another once: each is traced
        given = [{"prompt": "w3 w4", "completion": f"w{i} w{i + 1}"} for i in range(5, 13)]
    else:
        given = [{"text": f"w{20 + i} w{i % 3} w9", "label": "law sport food".split()[i % 3]} for i in range(8)]

    def run(**how):
        host = open_host(model, task, dtype="float32")
        made = adapt(host, "t", given, dev_rows=given[:4], task=task, options={"rank": 2}, epochs=2, batch_size=4,
                     lr=1e-2, **more, **how)  # fmt: skip
        assert all(m._compiled_call_impl is None for m in host.model.modules())
        return made

    want = run()
    traced.clear()
    got = run(compile=True)
    assert traced["frames"]["ok"] > 0 and not traced["graph_break"]
    assert [c["loss"] for c in got.curve] == pytest.approx([c["loss"] for c in want.curve], abs=1e-4)
    assert got.metrics == pytest.approx(want.metrics, abs=1e-4)


def test_what_does_not_go_together_with_it(llama):
    host = open_host(llama, "lm", dtype="float32")
    with pytest.raises(CommonweightError, match="compile does not go together with gradient_checkpointing"):
        adapt(host, "t", rows(), task="lm", method="lora", compile=True, gradient_checkpointing=True)
    assert "t" not in host


def test_without_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(CommonweightError, match=r"needs a C\+\+ compiler, and none was found"):
        compiled.check(torch.device("cpu"))
    monkeypatch.setattr(compiled, "find_spec", lambda _: None)
    with pytest.raises(CommonweightError, match="compile on a GPU needs Triton: pip install triton"):
        compiled.check(torch.device("cuda"))
