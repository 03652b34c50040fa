"""Quantised weights, packed here number by number as their formats say, come back as their formulas say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw

NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
     0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)  # fmt: skip
FP4 = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3]) / 12


def four_bit(name, shape, code, kind, block, nested, g, storage=torch.uint8):
    """(tensors of the file, the weight), value by value."""
    n = shape[0] * shape[1]
    halves = torch.randint(0, 16, (n,), generator=g).tolist()
    data = torch.tensor([(halves[i] << 4) | halves[i + 1] for i in range(0, n, 2)], dtype=torch.uint8)
    blocks = -(-n // block)
    about = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(shape)}
    out = {name: data.view(storage)[:, None], f"{name}.quant_map": code}
    if nested:
        table, offset, nested_block = torch.linspace(-1, 1, 256), 0.25, 4
        scale = torch.rand(-(-blocks // nested_block), generator=g) + 0.5
        numbers = torch.randint(0, 256, (blocks,), generator=g)
        absmax = [table[numbers[i]].item() * scale[i // nested_block].item() + offset for i in range(blocks)]
        about |= {"nested_blocksize": nested_block, "nested_dtype": "float32", "nested_offset": offset}
        out |= {f"{name}.nested_absmax": scale, f"{name}.nested_quant_map": table}
        out[f"{name}.absmax"] = numbers.to(torch.uint8)
    else:
        out[f"{name}.absmax"] = torch.rand(blocks, generator=g) + 0.5
        absmax = out[f"{name}.absmax"].tolist()
    out[f"{name}.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    weight = torch.tensor([code[h].item() * absmax[i // block] for i, h in enumerate(halves)]).view(shape)
    return out, weight


def gptq(name, d_out, d_in, bits, groups, g, version="gptq", order=True):
    per, top = 32 // bits, 2**bits
    q = torch.randint(0, top, (d_in, d_out), generator=g)
    zero = torch.randint(1, top, (groups, d_out), generator=g)
    scale = (torch.rand(groups, d_out, generator=g) + 0.1).half()
    index = torch.arange(d_in) // (d_in // groups)
    if order:
        index = index[torch.randperm(d_in, generator=g)]
    stored = zero - 1 if version == "gptq" else zero

    def signed(x):
        return x - 2**32 if x >= 2**31 else x

    qweight = [
        [signed(sum(int(q[i * per + j, o]) << (bits * j) for j in range(per))) for o in range(d_out)]
        for i in range(d_in // per)
    ]
    qzeros = [
        [signed(sum(int(stored[k, o * per + j]) << (bits * j) for j in range(per))) for o in range(d_out // per)]
        for k in range(groups)
    ]
    weight = torch.empty(d_out, d_in)
    for o in range(d_out):
        for i in range(d_in):
            k = int(index[i])
            weight[o, i] = scale[k, o].float() * float(int(q[i, o]) - int(zero[k, o]))
    tensors = {
        f"{name}.qweight": torch.tensor(qweight, dtype=torch.int32),
        f"{name}.qzeros": torch.tensor(qzeros, dtype=torch.int32),
        f"{name}.scales": scale,
    }
    return tensors | ({f"{name}.g_idx": index.int()} if order else {}), weight


def folder(path, tensors, **quantization):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": quantization, "hidden_size": 4}))
    return path


def check(path, name, weight):
    """Read whole by a merge in memory; in pieces that begin and end anywhere."""
    from commonweight.merge.sources.model import open_source

    source = open_source(path, "model")
    assert set(source.shapes) == {name, "norm.weight"}
    torch.testing.assert_close(source.read(name), weight, atol=1e-6, rtol=1e-5)
    for start, count in [(0, 1), (1, 1), (3, 50), (weight.numel() - 7, 7)]:
        torch.testing.assert_close(
            source.flat(name, start, count), weight.reshape(-1)[start : start + count], atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes(kind, nested, storage, tmp_path):
    g = torch.Generator().manual_seed(0)
    code = NF4 if kind == "nf4" else FP4
    tensors, weight = four_bit("a.weight", (12, 40), code, kind, 64, nested, g, storage)
    tensors["norm.weight"] = torch.ones(40)
    check(folder(tmp_path / "m", tensors, quant_method="bitsandbytes", load_in_4bit=True), "a.weight", weight)


@pytest.mark.parametrize("version, order", [("gptq", True), ("gptq", False), ("gptq_v2", True)])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(bits, version, order, tmp_path):
    g = torch.Generator().manual_seed(0)
    tensors, weight = gptq("a", 16, 32, bits, 4, g, version, order)
    tensors["norm.weight"] = torch.ones(40)
    about = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}
    check(folder(tmp_path / "m", tensors, **about), "a.weight", weight)


def test_in_a_recipe_with_a_notice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    tensors, weight = four_bit("a.weight", (12, 40), NF4, "nf4", 64, True, g)
    folder(tmp_path / "m", tensors, quant_method="bitsandbytes")
    save_file({"a.weight": torch.ones(12, 40)}, "full.safetensors")
    done = cw.merge.make({"method": "linear", "models": ["m", "full.safetensors"]}, "out")
    torch.testing.assert_close(load_file(done.folder / "model.safetensors")["a.weight"], (weight + 1) / 2)
    assert json.loads((done.folder / "config.json").read_text()) == {"hidden_size": 4}
    assert "m: bitsandbytes 4-bit: 1 weight dequantised" in (done.folder / "merge.json").read_text()


def test_the_plan_counts_what_is_unpacked(tmp_path, monkeypatch):
    """GPTQ's packed matrices and tables of scales, beside the pieces; of two sources the double."""
    from commonweight.merge.plan import figures as plan
    from commonweight.merge.recipe import load
    from commonweight.merge.recipe.build import build
    from commonweight.merge.sources.model import open_source
    from commonweight.merge.sources.source import held

    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    packed, weight = gptq("a", 64, 32, 4, 4, g)
    for name in ("m0", "m1"):
        folder(tmp_path / name, packed, quant_method="gptq")
    save_file({"a.weight": weight}, "full.safetensors")

    def memory(*models):
        return plan.plan(build(load({"method": "linear", "models": list(models)})), 2).memory

    plain, one, two = (
        memory("full.safetensors", "full.safetensors"),
        memory("m0", "full.safetensors"),
        memory("m0", "m1"),
    )
    source = open_source("m0", "m")
    for start in range(0, weight.numel(), 100):
        source.flat("a.weight", start, min(100, weight.numel() - start))
    kept = sum(t.nbytes for t in source._kept.values()) + sum(t.nbytes for t in source._gptq["a.weight"][2:])
    assert one - plain == two - one == held(source, weight.numel(), 2) > kept + 2 * 4 * weight.numel()
    assert held(open_source("full.safetensors", "m"), 100, 2) == 0


def test_what_is_refused(tmp_path):
    from commonweight.merge.sources.model import open_source

    g = torch.Generator().manual_seed(0)
    plain = {"a.weight": torch.ones(4, 4)}
    with pytest.raises(cw.CommonweightError, match="quantised by awq; bitsandbytes 4-bit and GPTQ are read"):
        open_source(folder(tmp_path / "awq", plain, quant_method="awq"), "m")
    eight = {**plain, "a.SCB": torch.ones(4)}
    with pytest.raises(cw.CommonweightError, match=r"bitsandbytes \(a.SCB\)"):
        open_source(folder(tmp_path / "eight", eight, quant_method="bitsandbytes"), "m")
    tensors, _ = four_bit("a.weight", (12, 40), NF4, "nf4", 64, False, g)
    short = {**tensors, "a.weight": tensors["a.weight"][:-1].clone()}
    with pytest.raises(cw.CommonweightError, match=r"a.weight: m .* nf4 weight what does not fit"):
        open_source(folder(tmp_path / "short", short, quant_method="bitsandbytes"), "m")
    gone = {k: t for k, t in tensors.items() if not k.endswith("absmax")}
    with pytest.raises(cw.CommonweightError, match="does not fit"):
        open_source(folder(tmp_path / "gone", gone, quant_method="bitsandbytes"), "m")
    packed, _ = gptq("a", 16, 32, 4, 4, g)
    three = {**packed, "a.qzeros": torch.zeros(4, 3, dtype=torch.int32)}
    with pytest.raises(cw.CommonweightError, match=r"6 bits, .* 4 and 8 bits of GPTQ are read"):
        open_source(folder(tmp_path / "three", three, quant_method="gptq"), "m")


def test_a_file_has_the_config_that_lies_beside_it(tmp_path):
    """GPTQ's two forms differ in their zeros by one; only config.json (or quantize_config.json) tells them apart."""
    from commonweight.merge.sources.model import open_source

    g = torch.Generator().manual_seed(0)
    tensors, weight = gptq("a", 16, 32, 4, 4, g, "gptq_v2")
    tensors["norm.weight"] = torch.ones(40)
    path = folder(tmp_path / "m", tensors, quant_method="gptq", checkpoint_format="gptq_v2")
    check(path / "model.safetensors", "a.weight", weight)
    (path / "config.json").unlink()
    for name in (path, path / "model.safetensors"):
        with pytest.raises(cw.CommonweightError, match=r"packed by GPTQ, and no config.json says in which form"):
            open_source(name, "m")
    (path / "quantize_config.json").write_text(json.dumps({"bits": 4, "checkpoint_format": "gptq_v2"}))
    check(path, "a.weight", weight)
    check(path / "model.safetensors", "a.weight", weight)
    other = folder(tmp_path / "marlin", tensors, quant_method="gptq", checkpoint_format="marlin")
    with pytest.raises(cw.CommonweightError, match="in the form 'marlin'; gptq and gptq_v2 are read"):
        open_source(other, "m")


@pytest.mark.parametrize("scale", ["a.weight_scale", "a.scale_weight", "a.input_scale"])
def test_float8_with_a_scale_of_its_own_is_refused(scale, tmp_path):
    from commonweight.merge.sources.model import open_source

    eight = {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "b.scale": torch.ones(1)}
    save_file(eight, tmp_path / "plain.safetensors")
    assert open_source(tmp_path / "plain.safetensors", "m").dtypes["a.weight"] == torch.float8_e4m3fn
    eight[scale] = torch.ones(1)
    save_file(eight, tmp_path / "model.safetensors")
    for given in (tmp_path / "model.safetensors", eight):
        with pytest.raises(cw.CommonweightError, match=rf"a.weight: m.* has it as float8 with a scale .*\({scale}\)"):
            open_source(given, "m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", r"config.json: not a whole JSON file, it cannot be read \(.*download or copy it again"),
        (b"\xff\xfe", "config.json: not a whole JSON file, it cannot be read"),
        (b"[" * 100_000, "config.json: not a whole JSON file, it cannot be read"),
        (b"[1]", "config.json: holds a list; wanted a JSON object"),
        (b'{"quantization_config": "gptq"}', "quantization_config in its config.json is a str; wanted an object"),
    ],
)
def test_a_config_that_cannot_be_read(text, message, tmp_path):
    """What it says of the weights would be lost."""
    from commonweight.merge.sources.model import open_source

    path = folder(tmp_path / "m", {"a.weight": torch.ones(4, 4)})
    (path / "config.json").write_bytes(text)
    for name in (path, path / "model.safetensors"):
        with pytest.raises(cw.CommonweightError, match=message):
            open_source(name, "m")


@pytest.mark.parametrize("key", ["a.qweight", "a.qzeros", "a.scales", "a.g_idx"])
@pytest.mark.parametrize(
    "change", [lambda t: t.reshape(-1)[:0], lambda t: t[None].clone(), lambda t: t[:1].clone(), lambda t: t.bool()]
)
def test_damaged_gptq(key, change, tmp_path):
    from commonweight.merge.sources.model import open_source

    tensors, _ = gptq("a", 16, 32, 4, 4, torch.Generator().manual_seed(0))
    tensors[key] = change(tensors[key])
    with pytest.raises(cw.CommonweightError, match=r"a.qweight: m .* has a packed weight that does not fit"):
        open_source(folder(tmp_path / "m", tensors, quant_method="gptq"), "m")


@pytest.mark.parametrize("part", ["nested_absmax", "nested_quant_map", "absmax", "quant_map"])
def test_damaged_four_bit(part, tmp_path):
    from commonweight.merge.sources.model import open_source

    tensors, _ = four_bit("a.weight", (12, 40), NF4, "nf4", 16, True, torch.Generator().manual_seed(0))
    tensors[f"a.weight.{part}"] = tensors[f"a.weight.{part}"][:3].clone()
    with pytest.raises(cw.CommonweightError, match=r"a.weight: m .* nf4 weight what does not fit"):
        open_source(folder(tmp_path / "m", tensors, quant_method="bitsandbytes"), "m")
