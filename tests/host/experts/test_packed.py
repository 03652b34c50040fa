"""Experts in codes and scales are sites as others are: each method does what it does on the dequantised model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.host import merged, origin, packs
from tests.mixtures import mixture
from tests.packs import PACKS, packed

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


def tenant(host: cw.Host, method: str, **options: Any) -> Any:
    torch.manual_seed(3)
    made = host.add("t", method, sites="*experts*|*.q_proj", **options)
    torch.manual_seed(4)
    for p in made.parameters():
        p.data.add_(torch.randn(p.shape) * 0.05)
    return made


def in_float(kind: str) -> Any:
    """The same model as its library would dequantise it, from the sites' weights."""
    return merged.in_float(cw.Host(packed(kind)[0]).base, {})


@pytest.mark.parametrize("kind", PACKS)
def test_a_tenant_is_the_same_as_on_the_dequantised_model(kind):
    model, batch = packed(kind)
    host = cw.Host(model)
    experts = [s for s in host.base.every if s.kind == "expert"]
    assert {s.name.rpartition(".")[2].split("[")[0] for s in experts} == {"gate_up_proj", "down_proj"}
    plain = cw.Host(in_float(kind))
    assert {(s.name, s.out, s.inp) for s in plain.base.every if s.kind == "expert"} == {
        (s.name, s.out, s.inp) for s in experts
    }
    both = [(h, tenant(h, "lora", rank=2)) for h in (host, plain)]
    answers = []
    for h, t in both:
        with h.route("t"):
            y = h.base.model(**batch).logits
        y.float().square().mean().backward()
        answers.append((y.detach(), [p.grad for p in t.parameters()]))
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=1e-3, atol=1e-6)
    with torch.no_grad(), host.route(["t", None, "t", None]):
        mixed = host.base.model(**batch).logits
    with torch.no_grad():
        base = plain.base.model(**batch).logits
    torch.testing.assert_close(mixed[::2], answers[0][0][::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1::2], base[1::2], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        whole = host.merged_model("t")(**batch).logits
    torch.testing.assert_close(whole, answers[1][0], rtol=1e-4, atol=1e-5)
    if kind.startswith("bitsandbytes"):
        again(host)
        return
    with pytest.raises(cw.CommonweightError, match=r"packed experts .* cannot be packed again"):
        host.merged("t", requantise=True)


def again(host: cw.Host) -> None:
    """Changed experts are packed as the library packs them."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    plain, found = host.merged("t"), host.merged("t", requantise=True)
    assert {k for k in plain if "experts" not in k} == {k for k in found if "experts" not in k}
    for k in (k for k in plain if "experts" in k):
        about = {n.removeprefix(f"{k}."): t for n, t in found.items() if n.startswith(f"{k}.")}
        state = QuantState.from_dict(about, device=torch.device("cpu"))
        shape, state.shape = state.shape, torch.Size([plain[k].numel() // 32, 32])  # rows that begin blocks
        w = dequantize_4bit(found[k], state).view(shape)
        assert w.shape == plain[k].shape and (w - plain[k]).norm() < 0.15 * plain[k].norm()


@pytest.mark.parametrize("method", ["dora", "pissa", "svf", "ia3", "oft", "mos", "full"])
@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_methods_that_read_the_weight_read_it_dequantised(kind, method):
    model, batch = packed(kind)
    found = []
    for host in (cw.Host(model), cw.Host(in_float(kind))):
        tenant(host, method, **({"block_size": 4} if method == "oft" else {}))
        with torch.no_grad(), host.route("t"):
            found.append(host.base.model(**batch).logits)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_weights_are_those_that_transformers_dequantises():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    for kind in ("fp8, one scale", "fp8, ue8m0", "fp4"):
        model, _ = packed(kind)
        m = next(m.experts for m in model.modules() if hasattr(m, "experts"))
        read = Fp8Dequantize(None)._dequantize_one
        for slot in ("gate_up_proj", "down_proj"):
            pack: Any = packs.packed_in(m, slot)
            want = read(getattr(m, slot).data, getattr(m, f"{slot}_scale_inv").data, torch.float32)
            torch.testing.assert_close(torch.stack([pack.open()(e) for e in range(4)]), want)
    model, _ = packed("mxfp4")
    m = next(m.experts for m in model.modules() if hasattr(m, "experts"))
    pack = packs.packed_in(m, "down_proj")
    scales = m.down_proj_precision_config.weight_scale.storage.data.mT
    blocks = m.down_proj.storage.data.mT.reshape(*scales.shape, 16)
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).mT
    torch.testing.assert_close(torch.stack([pack.open()(e) for e in range(4)]), want)


def test_the_halves_of_gate_and_up_begin_blocks_of_their_own():
    model, _ = packed("fp8, wide blocks")  # 48 rows each, blocks of 128
    m = next(m.experts for m in model.modules() if hasattr(m, "experts"))
    m.gate_up_proj_scale_inv.data[:] = torch.tensor([[1.0], [2.0]])
    read = packs.packed_in(m, "gate_up_proj").open()  # type: ignore[union-attr]
    codes = m.gate_up_proj.data[1].float()
    torch.testing.assert_close(read(1), torch.cat([codes[:48], 2 * codes[48:]]))


def test_the_library_multiplies_where_it_rounds_the_input(monkeypatch):
    """Rows of a batch whose tenant leaves an expert as it is get what the base gives alone."""
    from transformers.integrations import finegrained_fp8

    def rounded(x, weight, scale, block_size=None, bias=None, activation_scale=None, allow_deepgemm=True):
        w = finegrained_fp8._dequantize_fp8_weight(weight, scale, block_size, x.dtype)
        return x.detach().to(torch.float8_e4m3fn).to(x.dtype) @ w.T

    monkeypatch.setattr(finegrained_fp8, "fp8_linear", rounded)
    monkeypatch.setattr("commonweight.host.experts.packed._OWN", {})
    model, batch = packed("fp8")
    host = cw.Host(model)
    t = host.add("t", "lora", sites="*experts*", rank=2)
    with torch.no_grad():
        base = model(**batch).logits
        with host.route("t"):
            torch.testing.assert_close(model(**batch).logits, base)
    for p in t.parameters():
        p.data.normal_(0, 0.1)
    with torch.no_grad():
        with host.route("t"):
            alone = model(**batch).logits
        with host.route(["t", None, "t", None]):
            mixed = model(**batch).logits
    torch.testing.assert_close(mixed[1::2], base[1::2])
    torch.testing.assert_close(mixed[::2], alone[::2])
    assert not torch.allclose(alone, base)
    with host.route("t"):
        model(**batch).logits.sum().backward()
    assert all(p.grad is not None for p in t.parameters())


@pytest.mark.parametrize("kind", ["mxfp4", "gguf"])
def test_a_tenant_of_other_layers_gets_its_gradients_through_packed_experts(kind, monkeypatch):
    """The kernels of these have no backward pass."""
    model, batch = packed(kind)
    found = []
    for host in (cw.Host(model), cw.Host(in_float(kind))):
        t = host.add("t", "lora", sites="model.layers.0.self_attn.*", rank=2)
        with host.route("t"):
            host.base.model(**batch).logits.square().mean().backward()
        found.append([p.grad for p in t.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-7)


def test_a_router_of_packed_experts_is_read():
    model, batch = packed("mxfp4")
    found = []
    for host in (cw.Host(model), cw.Host(in_float("mxfp4"))):
        t = host.add("t", "full", sites="*router*|*experts*")
        for n, p in t.named_parameters():
            if "router" in n:
                p.data.add_(torch.linspace(-1, 1, p.numel()).view(p.shape))
        with torch.no_grad(), host.route("t"):
            found.append(host.base.model(**batch).logits)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_files_coverage_and_what_the_base_is(tmp_path):
    model, batch = packed("fp8")
    host = cw.Host(model)
    read = host.coverage("lora")
    assert not any("packed" in x.family for x in read.left)
    assert read.total == cw.Host(in_float("fp8")).coverage("lora").total
    assert read.read + sum(x.numbers for x in read.left) == read.total
    assert "transformers FP8Experts" in (origin.quantised(model) or "")
    tenant(host, "lora", rank=2)
    host.save("t", tmp_path / "t.safetensors")
    host.export_peft("t", tmp_path / "peft")
    again = cw.Host(packed("fp8")[0])
    again.load("a", tmp_path / "t.safetensors")
    again.load_adapter(tmp_path / "peft", "b")
    found = []
    for h, name in ((host, "t"), (again, "a"), (again, "b")):
        with torch.no_grad(), h.route(name):
            found.append(h.base.model(**batch).logits)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-5)


class Unknown(nn.Module):
    """Experts in codes that nobody here has heard of."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        for slot in ("gate_up_proj", "down_proj"):
            self.register_parameter(slot, nn.Parameter(torch.zeros(4, 8, 8).to(dtype), requires_grad=False))
            self.register_parameter(f"{slot}_scale_inv", nn.Parameter(torch.ones(4, 2, 2)))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_experts_in_an_unknown_form_are_told_and_their_scales_are_no_sites(dtype):
    model, batch = mixture("qwen3_moe")
    for module in model.modules():
        if hasattr(module, "experts"):
            module.experts = Unknown(dtype)
    host = cw.Host(model)
    assert not any(s.kind == "expert" for s in host.base.every)
    found = host.coverage("lora")
    left = next(x for x in found.left if "packed experts" in x.family)
    assert left.family == "packed experts (Unknown)" and left.numbers % (2 * 4 * (64 + 4)) == 0
    for text in (found.line, str(found)):
        assert "Unknown is no site: load the model with its quantisation config's dequantize=True" in text
    assert found.read + sum(x.numbers for x in found.left) == found.total
    with pytest.raises(cw.CommonweightError, match=r"packed \(Unknown\), and packed experts of this form are no sites"):
        host.add("t", "lora", sites="*.experts.*")
    host.add("t", "lora", rank=2)
    with torch.no_grad(), host.route(["t", None, "t", "t"]):
        model(**batch)
