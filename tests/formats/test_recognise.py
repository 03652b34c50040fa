"""Which tool wrote a file: told by what is in it. Whatever is in it, it is read or refused, never a crash."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

import commonweight as cw
from commonweight.formats.kohya.modules import SLOTS
from commonweight.formats.recognise import FORMATS, recognise
from tests.drawn import drawn
from tests.laws.subjects import stir
from tests.models import make


@pytest.fixture(scope="module")
def host():
    return cw.Host(make("llama")[0])


@pytest.fixture(scope="module")
def written(host, tmp_path_factory):
    at = tmp_path_factory.mktemp("files")
    stir(host.add("w", "lora", rank=2, sites="*.q_proj"))
    host.save("w", at / "x.bin")
    host.export("w", at / "x.peft", "peft")
    host.export("w", at / "x.txt", "mlx")
    host.export("w", at / "x.safetensors", "gguf")
    save_file({"lora_unet_a.lora_up.weight": torch.ones(2, 2)}, at / "x.gguf")
    torch.save({"layers.0.attn.q_proj.lora_a.weight": torch.ones(2, 2)}, at / "x.json")
    host.remove("w")
    return at


@pytest.mark.parametrize(
    "name, wanted",
    [("x.bin", "commonweight"), ("x.peft", "peft"), ("x.txt", "mlx"), ("x.safetensors", "gguf"), ("x.gguf", "kohya"),
     ("x.json", "torchtune")],
)  # fmt: skip
def test_names_do_not_matter(written, name, wanted):
    assert recognise(written / name)[0] == wanted in FORMATS


def test_a_name_from_the_file_and_another_format_asked_for(host, written):
    assert host.load_adapter(written / "x.bin").name == "x"
    with pytest.raises(cw.CommonweightError, match="the tenant name 'x' is taken"):
        host.load_adapter(written / "x.safetensors")
    host.remove("x")
    for kind in FORMATS:
        for name in ("x.safetensors", "x.txt", "nothing"):
            if (kind, name) not in (("gguf", "x.safetensors"), ("mlx", "x.txt")):
                with pytest.raises(cw.CommonweightError):
                    host.load_adapter(written / name, "y", format=kind)
    with pytest.raises(cw.CommonweightError, match="unknown format 'onnx'"):
        host.load_adapter(written / "x.bin", "y", format="onnx")
    for option, says in (
        ({"alpha": 2.0}, "alpha is for"),
        ({"part": "te"}, "part is for"),
        ({"labels": 2}, "labels is for"),
    ):
        with pytest.raises(cw.CommonweightError, match=says):
            host.load_adapter(written / "x.bin", "y", **option)


@pytest.mark.parametrize(
    "files, says",
    [
        ({}, "no adapter_config.json and no adapter's file in it"),
        ({"adapter_config.json": b"{}"}, "names neither a peft_type nor lora_parameters"),
        ({"adapter_config.json": b"["}, "adapter_config.json"),
        ({"a": b"GGUF", "b": b"GGUF"}, r"holds 2 adapters \(a, b\); name one"),
    ],
)
def test_folders_that_are_none(host, tmp_path, files, says):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(cw.CommonweightError, match=says):
        host.load_adapter(tmp_path, "t")


def test_a_config_that_was_left_behind_is_named(host, tmp_path):
    for end, says in (("lora_a", "an adapter of mlx-lm without its adapter_config.json"),
                      ("lora_A.weight", "an adapter of PEFT without its adapter_config.json")):  # fmt: skip
        save_file({f"model.layers.0.self_attn.q_proj.{end}": torch.ones(2, 2)}, tmp_path / "a.safetensors")
        with pytest.raises(cw.CommonweightError, match=says):
            host.load_adapter(tmp_path / "a.safetensors", "t")


Q = "model_layers_0_self_attn_q_proj"
SHAPES = st.sampled_from(
    [(), (1,), (32,), (2, 32), (32, 2), (32, 32), (0, 32), (4, 4), (8, 8), (2, 32, 1, 1), (8, 4, 4), (2, 2, 2, 2)]
)


@drawn(100)
@given(
    parts=st.dictionaries(st.sampled_from(SLOTS), SHAPES, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.int64, torch.bfloat16]),
    dotted=st.booleans(),
)
@example(parts={"w_norm": ()}, dtype=torch.float32, dotted=False)
@example(parts={"diff": (32, 32), "diff_b": ()}, dtype=torch.float32, dotted=True)
def test_junk_of_kohyas_kind(host, tmp_path, parts, dtype, dotted):
    start = "unet.model.layers.0.self_attn.q_proj" if dotted else f"lycoris_{Q}"
    save_file({f"{start}.{k}": torch.ones(s, dtype=dtype) for k, s in parts.items()}, tmp_path / "a.safetensors")
    tried(host, tmp_path / "a.safetensors", "kohya")


NUMBERS = st.sampled_from([1, -1, None, "x", 1e40, 0.5])


@drawn(60)
@given(
    parts=st.dictionaries(st.sampled_from(["lora_a", "lora_b", "m", "x"]), SHAPES, max_size=3),
    parameters=st.one_of(st.none(), st.dictionaries(st.sampled_from(["rank", "scale", "dropout"]), NUMBERS)),
    kind=st.sampled_from(["lora", "dora", "full", 3]),
)  # fmt: skip
def test_junk_of_mlxs_kind(host, tmp_path, parts, parameters, kind):
    tensors = {f"model.layers.0.self_attn.q_proj.{k}": torch.ones(s) for k, s in parts.items()}
    save_file(tensors, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": kind, "lora_parameters": parameters}))
    tried(host, tmp_path, "mlx")


def tried(host, path, kind):
    """Loads it or refuses it, and leaves the host as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            host.load_adapter(path, "junk", format=kind)
        except cw.CommonweightError:
            assert "junk" not in host
        else:
            host.remove("junk")
