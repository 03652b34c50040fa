"""Every way of storing a weight is read in one place, or refused by name with what still works."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.host import weights
from commonweight.host.fingerprint import of_base
from tests.host.past import Packed, blocks, hosted, merged, packed, routed
from tests.laws.subjects import stir

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
SITES = "*.up|*.down"


def linear(out: int = 8, inp: int = 16) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inp, out)


def test_a_plain_weight_is_the_parameter_itself():
    layer = linear()
    assert weights.dense(layer) is layer.weight and not weights.packed(layer)


def test_a_packed_layer_is_read_by_its_answers_to_unit_vectors():
    layer = Packed(linear(700, 600))
    torch.testing.assert_close(weights.dense(layer), layer.numbers())


def test_blocks_of_a_gguf_file():
    """transformers' layer: for a few rows it wants a kernel that there is no CPU form of."""
    utils = pytest.importorskip("transformers.integrations.gguf.utils")
    blocks_ = linear(64, 64).weight.detach().view(64, 2, 32)
    scale = (blocks_.abs().amax(-1, keepdim=True) / 127).half()  # Q8_0: a scale and 32 codes
    codes = (blocks_ / scale.float()).round().clamp(-127, 127).to(torch.int8)
    layer = utils.GgufLinear(64, 64, 8)
    layer.weight.data = torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], -1).reshape(64, -1)
    assert torch.equal(weights.dense(layer), (codes.float() * scale.float()).view(64, 64))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(64, 8)).eval()
    assert [s.name for s in hosted(model)["a"].sites] == ["0", "2"]


def test_blocks_whose_layer_reads_its_input_in_another_order():
    utils = pytest.importorskip("transformers.integrations.gguf.utils")
    layer = utils.GgufLinear(64, 8, 8)
    codes = torch.randint(-99, 99, (8, 2, 32)).to(torch.int8)
    scale = torch.full((8, 2, 1), 0.5).half()
    layer.weight.data = torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], -1).reshape(8, -1)
    layer.input_permutation = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(100, 64)
    torch.testing.assert_close(x @ weights.dense(layer).T, layer(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(16, 24), None])
def test_fine_grained_fp8(size):
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    layer = fp8.FP8Linear(40, 24, size)  # blocks that do not divide the sides
    layer.weight.data = torch.randn(24, 40).to(torch.float8_e4m3fn)
    layer.weight_scale_inv.data = torch.rand_like(layer.weight_scale_inv) + 0.5
    want = layer.weight.float()
    for i in range(24):
        for j in range(40):
            want[i, j] *= layer.weight_scale_inv[i // size[0], j // size[1]] if size else layer.weight_scale_inv
    torch.testing.assert_close(weights.dense(layer), want)


def test_awq():
    """Eight codes a number of 32 bits, in the order in which AWQ's kernels unpack them; written out once more here."""

    class WQLinear_GEMM(nn.Module):
        def __init__(self, codes, zeros, scales):
            super().__init__()
            self.in_features, self.out_features = codes.shape
            pack = lambda t: sum(t[:, o::8].int() << 4 * i for i, o in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))  # noqa: E731
            self.register_buffer("qweight", pack(codes))
            self.register_buffer("qzeros", pack(zeros))
            self.register_buffer("scales", scales)

    codes, zeros = torch.randint(0, 16, (64, 24)), torch.randint(0, 16, (2, 24))
    scales = torch.rand(2, 24).half()
    want = torch.stack([(codes[i] - zeros[i // 32]) * scales[i // 32].float() for i in range(64)]).T
    torch.testing.assert_close(weights.dense(WQLinear_GEMM(codes, zeros, scales)), want)


def test_packed_experts_are_refused_by_name():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(4, 8, 4, dtype=torch.uint8), requires_grad=False)

    model = blocks()
    model.layers[1].experts = Experts()
    with pytest.raises(cw.CommonweightError, match=r"layers\.1\.experts: .*packed \(Experts\).*dequantize=True"):
        cw.Host(model, sites="*.experts.gate_up_proj")


def test_a_layer_that_dequantises_itself():
    layer = Packed(linear())
    layer.dequantize = lambda: layer.numbers() + 0.0
    layer.forward = None
    assert torch.equal(weights.dense(layer), layer.numbers())
    del layer.dequantize
    layer.dequantize_weight = lambda: layer.numbers().T
    assert torch.equal(weights.dense(layer), layer.numbers())


def test_a_tensor_that_dequantises_itself():
    class Codes(torch.Tensor):
        def dequantize(self):
            return self.as_subclass(torch.Tensor) * 2

    layer = linear()
    want = layer.weight.detach() * 2
    layer.__dict__["weight"] = layer._parameters.pop("weight").detach().as_subclass(Codes)
    assert torch.equal(weights.dense(layer), want)


def test_what_is_not_linear_has_no_weight():
    layer = Packed(linear())
    layer.forward = lambda x: torch.tanh(4 * x @ layer.numbers().T)
    with pytest.raises(
        cw.CommonweightError, match=r"h\.up: Packed is not linear in its input.*lora and mos.* still work"
    ):
        weights.dense(layer, "weight", "h.up")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:3].reshape(-1), "a part of it lies"),
        (lambda w: w.to("meta"), "on the meta device"),
        (lambda w: w.to(torch.int8), "is packed"),
        (lambda w: w.to(torch.float8_e4m3fn), "packed"),
    ],
)
def test_what_cannot_be_read_is_named(change, message):
    layer = linear()
    layer.weight = nn.Parameter(change(layer.weight.detach()), False)
    if "packed" in message:
        layer.forward = types.MethodType(lambda self, x: 1 / 0, layer)
    with pytest.raises(cw.CommonweightError, match=rf"h\.up: .*{message}"):
        weights.dense(layer, "weight", "h.up")


def state(codes: torch.Tensor, absmax: torch.Tensor, shape, block: int, **more):
    base = {"code": torch.linspace(-1, 1, 16), "shape": shape, "blocksize": block, "absmax": absmax, "nested": False,
            "dtype": torch.float32}  # fmt: skip
    return types.SimpleNamespace(**{**base, **more})


def four(shape=(64, 64), block: int = 64, nested: bool = False):
    """(bytes, state, the numbers) of a weight as bitsandbytes holds it in 4 bits."""
    g = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (shape[0] * shape[1],), generator=g, dtype=torch.uint8)
    absmax = torch.rand(codes.numel() // block, generator=g) + 0.5
    more = {}
    if nested:
        inner = types.SimpleNamespace(blocksize=16, code=torch.linspace(-1, 1, 256), absmax=torch.rand(4, generator=g))
        held = torch.randint(0, 256, absmax.shape, generator=g, dtype=torch.uint8)
        absmax = inner.code[held.long()] * inner.absmax.repeat_interleave(16) + 1.5
        more = {"nested": True, "state2": inner, "offset": torch.tensor(1.5)}
    found = state(codes, held if nested else absmax, shape, block, **more)
    numbers = (found.code[codes.long()].view(-1, block) * absmax[:, None]).view(shape)
    return (codes[::2] << 4 | codes[1::2])[:, None], found, numbers


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits(nested):
    data, found, numbers = four(nested=nested)
    layer = linear(64, 64)
    layer._parameters["weight"] = nn.Parameter(data, False)
    layer.quant_state = found
    torch.testing.assert_close(weights.dense(layer), numbers)


def test_eight_bits_before_and_after_the_first_forward():
    layer = linear()
    codes, scale = torch.randint(-127, 128, (8, 16)).to(torch.int8), torch.rand(8)
    layer._parameters["weight"] = nn.Parameter(codes, False)
    layer._parameters["weight"].SCB = scale
    want = codes.float() * scale[:, None] / 127
    assert torch.equal(weights.dense(layer), want)
    layer._parameters["weight"].SCB, layer.state = None, types.SimpleNamespace(SCB=scale)
    assert torch.equal(weights.dense(layer), want)


class TestPackedBase:
    """Layers of a class that nobody has heard of."""

    def test_they_do_not_vanish(self):
        host = cw.Host(packed())
        for method in ("lora", "mos"):
            with pytest.raises(cw.CommonweightError, match=r"layers\.1\.up and 3 more: Packed says widths.*sites="):
                host.add(method, method)
        assert len(host) == 0
        assert host.add("norms", "lora", rank=2, sites="*.proj").sites

    @pytest.mark.parametrize("method", ["lora", "ia3", "dora", "full", "pissa"])
    def test_named_they_are_sites_in_every_form(self, method):
        host = cw.Host(packed())
        with torch.no_grad():
            base = host.model(X)
        for i, name in enumerate("ab"):
            host.add(name, method, sites=SITES, seed=i)
        if method == "full":  # no change is none to the bit, though the layer computes with codes
            assert torch.equal(routed(host, "a", X), base)
        for i, name in enumerate("ab"):
            stir(host[name], i)
        like = blocks()
        for at in (1, 3):
            for n in ("up", "down"):
                getattr(like.layers[at], n).weight.data = getattr(host.model.layers[at], n).numbers()
        want = merged(host, "a", like, X)
        torch.testing.assert_close(routed(host, "a", X), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(routed(host, ["a", None, "b"], X)[0], want[0], rtol=1e-4, atol=1e-5)

    def test_a_tenant_is_saved_loaded_and_exported(self, tmp_path):
        host = cw.Host(packed())
        stir(host.add("a", "lora", rank=2, sites=SITES))
        want = routed(host, "a", X)
        host.export_peft("a", tmp_path / "peft")
        again = cw.Host(packed())
        again.load("a", host.save("a", tmp_path / "a.safetensors"))
        assert torch.equal(routed(again, "a", X), want)

    def test_the_fingerprint_is_of_the_numbers_and_stays(self):
        model = packed()
        before = of_base(model)
        with torch.no_grad():
            model(X)
        assert of_base(model) == before == of_base(packed()) != of_base(packed(1))
        model.layers[1].up.scale.mul_(1.5)
        assert of_base(model) != before

    def test_what_cannot_be_read_is_known_by_its_codes(self):
        model, other = packed(), packed()
        for m in (model, other):
            m.layers[1].up.forward = lambda x: torch.tanh(x)
        assert of_base(model) == of_base(other)
        other.layers[1].up.codes[:] += 1
        assert of_base(model) != of_base(other)


def test_a_layer_of_known_widths_and_a_plain_weight_is_an_ordinary_site():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features, self.weight = 16, 16, nn.Parameter(torch.randn(16, 16))

        def forward(self, x):
            return x @ self.weight.T

    host = hosted(nn.Sequential(Parallel(), Parallel()).eval())
    assert [s.name for s in host["a"].sites] == ["0", "1"]
    like = nn.Sequential(Parallel(), Parallel())
    like.load_state_dict(host.model.state_dict())
    torch.testing.assert_close(routed(host, "a", X), merged(host, "a", like, X))


def test_a_base_that_accelerate_has_put_away(tmp_path):
    from accelerate import cpu_offload

    model = blocks()
    fingerprint = cw.Host(blocks()).fingerprint
    cpu_offload(model, execution_device=torch.device("cpu"))
    plain = hosted(blocks(), "dora")
    host = cw.Host(model)
    for name in "ab":
        host.load(name, plain.save(name, tmp_path / name))
    assert host.fingerprint == fingerprint
    assert {p.device.type for p in host["a"].parameters()} == {"cpu"}
    torch.testing.assert_close(routed(host, "a", X), routed(plain, "a", X))
    torch.testing.assert_close(routed(host, ["a", None, "b"], X), routed(plain, ["a", None, "b"], X))
    want = plain.merged("a")
    assert all(torch.equal(v, want[k]) for k, v in host.merged("a").items())
    stir(host.add("p", "pissa", rank=2))
    assert routed(host, "p", X).isfinite().all()


def test_parameters_that_accelerate_has_put_away(tmp_path):
    """What a module computes with by itself: sinks of gpt-oss."""
    import transformers as tf
    from accelerate import cpu_offload

    def made():
        torch.manual_seed(0)
        return tf.GptOssForCausalLM(tf.GptOssConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, vocab_size=32, num_local_experts=4, pad_token_id=0, eos_token_id=1,
        )).eval()  # fmt: skip

    plain, away, ids = cw.Host(made()), made(), torch.tensor([[3, 4, 5]])
    stir(plain.add("a", "full"))
    cpu_offload(away, execution_device=torch.device("cpu"))
    host = cw.Host(away)
    assert host.sites == plain.sites and any(s.kind == "parameter" for s in host.sites)
    host.load("a", plain.save("a", tmp_path / "a"))
    with plain.route("a"), host.route("a"), torch.no_grad():
        torch.testing.assert_close(away(ids).logits, plain.model(ids).logits)


def test_shards_are_gathered(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = hosted(blocks())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model, mesh = blocks(), init_device_mesh("cpu", (1,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        host = hosted(model)
        with host.route("a"):
            model(X).square().mean().backward()
        assert all(p.grad is not None for p in host["a"].parameters())
        assert host.fingerprint == plain.fingerprint
        host.save("a", tmp_path / "a")
        want = plain.merged("a")
        assert all(torch.equal(v, want[k]) for k, v in host.merged("a").items())
        torch.testing.assert_close(routed(host, ["a", None, "b"], X), routed(plain, ["a", None, "b"], X))
    finally:
        dist.destroy_process_group()


class Rounding(Packed):
    """As torchao's layers that round their input: no graph, and a view of what was made."""

    def forward(self, x):
        with torch.no_grad():
            y = super().forward((x * 1024).round() / 1024)
            return torch.cat([y.flatten(0, -2), y.flatten(0, -2)])[: y.flatten(0, -2).shape[0]].view(y.shape)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "mos"])
def test_a_layer_without_gradients_gets_those_of_its_weight(method):
    found = []
    for kind in (Rounding, Packed):
        model = blocks()
        for mlp in (model.layers[1], model.layers[3]):
            mlp.up, mlp.down = kind(mlp.up), kind(mlp.down)
        host = cw.Host(model)
        stir(host.add("a", method, sites=SITES))
        with host.route("a"):
            model(X).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in host["a"].parameters()]))
    assert found[1].norm() > 0
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.01 * found[1].abs().max().item())
