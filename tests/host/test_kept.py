"""4-bit layers of bitsandbytes that lay their weight out anew in the first forward: under a host they do not."""

from __future__ import annotations

import copy
import importlib.util
import warnings

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.host import unpack, weights
from commonweight.host.kept import keep_storage
from tests.host.past import hosted, routed
from tests.host.quantised import _bitsandbytes, llama, replaced
from tests.host.test_weights import four

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def laid_out(codes: torch.Tensor, out: int, inp: int) -> torch.Tensor:
    """One code a number -> bytes as the kernel for rows in groups of 32 wants them."""
    groups = codes.view(out // 32, 32, inp // 2, 2).transpose(1, 2).reshape(-1, 64)
    return (groups[:, 32:] << 4 | groups[:, :32]).view(out, inp // 2)


@pytest.mark.parametrize("nested", [False, True])
def test_a_weight_that_was_laid_out_already_gets_its_usual_form_back(nested):
    data, state, numbers = four(nested=nested)
    codes, absmax = unpack.unpacked(data, state)
    layer = nn.Linear(64, 64)
    layer.support_avx512bf16_for_cpu = True
    layer._parameters["weight"] = packed = nn.Parameter(laid_out(codes, 64, 64), False)
    state.absmax = absmax.view(64, 1).T.bfloat16()
    state.original_dtype, state.original_nested, state.original_qshape = torch.float32, nested, data.shape
    state.dtype, state.nested, state.packing_format_for_cpu = torch.bfloat16, False, True
    packed.quant_state = state
    coarse = weights.dense(layer, steady=True)
    torch.testing.assert_close(weights.dense(layer), numbers, rtol=1e-2, atol=1e-2)
    assert keep_storage([layer]) == [(layer, True)] and not layer.support_avx512bf16_for_cpu
    assert torch.equal(layer.weight.data, data) and not state.packing_format_for_cpu
    assert torch.equal(weights.dense(layer, steady=True), coarse)


def test_other_layers_are_left_alone():
    assert not keep_storage([nn.Linear(2, 2)])


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
class TestBitsandbytes:
    def base(self, bits: int, seed: int = 0) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes as bnb

        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64))
        for i in (0, 2, 4):
            old = model[i]
            if bits == 4:
                new = bnb.nn.Linear4bit(
                    old.in_features, old.out_features, compute_dtype=torch.float32, quant_type="nf4"
                )
                new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", module=new)
            else:
                new = bnb.nn.Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(old.weight.data, requires_grad=False)
            new.bias = nn.Parameter(old.bias.data)
            model[i] = new
        return model.to("cpu").eval()

    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("bits", [4, 8])
    def test_numbers_are_those_that_the_layer_computes_with(self, bits):
        model = self.base(bits)
        layer = model[0].train()  # 4 bits: in its usual form
        eye = torch.eye(64)
        with torch.no_grad():
            want = (layer(eye) - layer(torch.zeros(1, 64))).T
        torch.testing.assert_close(weights.dense(layer).float(), want.float(), rtol=1e-3, atol=1e-3)

    @pytest.mark.filterwarnings("ignore")  # of its own
    @pytest.mark.parametrize("bits", [4, 8])
    def test_a_tenant_trains_after_an_evaluation_as_before_and_keeps_its_base(self, bits, tmp_path):
        model = self.base(bits)
        host = hosted(model)
        before = host.fingerprint

        def gradients():
            for p in host["a"].parameters():
                p.grad = None
            model.train()
            with host.route("a"):
                model(self.x).square().mean().backward()
            return [p.grad.clone() for p in host["a"].parameters()]

        first = gradients()
        model.eval()
        routed(host, "a", self.x)
        for a, b in zip(first, gradients()):
            torch.testing.assert_close(a, b)
        assert host.fingerprint == before
        host.load("again", host.save("a", tmp_path / "a"))
        host.export_peft("a", tmp_path / "peft")
        model.eval()
        assert torch.equal(routed(host, "again", self.x), routed(host, "a", self.x))
        whole = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64))
        for i in (0, 2, 4):
            whole[i].weight.data = weights.dense(model[i]).float()
            whole[i].bias.data = model[i].bias.data.float()
        whole.load_state_dict({k: v.float() for k, v in host.merged("a").items()}, strict=False)
        with torch.no_grad():
            torch.testing.assert_close(whole(self.x), routed(host, "a", self.x).float(), rtol=0.1, atol=0.1)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("method", ["full", "dora", "pissa", "svf", "oft"])
    def test_a_fresh_tenant_is_the_base(self, method, bits):
        model = self.base(bits)
        host = cw.Host(model)
        host.add("a", method)
        gap = (routed(host, "a", self.x) - routed(host, None, self.x)).abs().max()
        assert gap <= (1e-6 if method == "full" else 2e-2)

    @pytest.mark.filterwarnings("ignore")
    def test_a_base_that_ran_before_it_had_a_host(self):
        ran, fresh = self.base(4), self.base(4)
        with torch.no_grad():
            ran(self.x)
        assert cw.Host(ran).fingerprint == cw.Host(copy.deepcopy(fresh)).fingerprint


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("double", [False, True])
def test_rows_that_a_kernel_reads_otherwise_are_told(double):
    """Packed by others: bitsandbytes 0.50.2 computes with other numbers on a CPU that its own kernel is for."""
    from bitsandbytes.functional import has_avx512bf16

    make = _bitsandbytes(quant_type="nf4", compress_statistics=double)
    for wide, wrong in ((128, False), (96, True), (33, False)):
        model = replaced(llama(intermediate_size=wide), make)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cw.Host(model)
        said = [str(w.message) for w in caught if "no multiple of its block" in str(w.message)]
        assert len(said) == (wrong and has_avx512bf16())
        if said:
            assert said[0].startswith("model.layers.0.mlp.down_proj and 1 more: bitsandbytes packed rows")
