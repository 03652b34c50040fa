"""commonweight store import of other tools' adapters, and commonweight export."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import commonweight as cw
from commonweight.adapt import open_host
from tests.cli.test_cli import call
from tests.laws.subjects import stir
from tests.models import make


@pytest.fixture
def at(tmp_path):
    """A base in a folder, and one tenant of it in four formats."""
    model: Any = make("llama")[0]
    host = cw.Host(model)
    model.save_pretrained(tmp_path / "base")
    stir(host.add("t", "lora", rank=2, sites="*.q_proj"))
    host.save("t", tmp_path / "own.safetensors")
    host.export_peft("t", tmp_path / "peft")
    host.export("t", tmp_path / "mlx", "mlx")
    host.export("t", tmp_path / "llama.gguf", "gguf")
    return tmp_path


def test_every_format_in_one_go(at, capsys):
    files = [at / n for n in ("own.safetensors", "peft", "mlx", "llama.gguf")]
    code, out, err = call(capsys, "store", "import", at / "store", *files, "--model", at / "base")
    assert code == 0 and err.count("lora at 2 sites, 256 numbers") == 4
    assert [line.split(":")[0] for line in out.splitlines()] == ["own@1", "peft@1", "mlx@1", "llama@1"]
    host, store = cw.Host(make("llama")[0]), cw.Commons(at / "store")
    merged = {n: host.merged(host.load_from(store, n).name) for n in ("own", "peft", "mlx", "llama")}
    for name, weights in merged.items():
        for key, w in weights.items():
            torch.testing.assert_close(w, merged["own"][key], rtol=1e-5, atol=1e-6, msg=name)


def test_one_that_is_wrong_leaves_nothing(at, capsys):
    (at / "bad.gguf").write_bytes(b"GGUF" + bytes(30))
    for more, says in (
        ([at / "bad.gguf", "--model", at / "base"], "bad.gguf: GGUF of version 0"),
        ([], "llama.cpp's LoRA file; it needs its base: --model"),
        ([at / "none", "--model", at / "base"], "none: no such file or folder"),
        (["--model", at / "base", "--format", "onnx"], "unknown format 'onnx'"),
    ):
        code, out, err = call(capsys, "store", "import", at / "store", at / "llama.gguf", *more)
        assert code == 2 and says in err and "Traceback" not in err and not out and not (at / "store").exists()


@pytest.mark.parametrize("format, name", [("gguf", "o.gguf"), ("mlx", "o"), ("peft", "o")])
def test_export_and_back(at, capsys, format, name):
    args = "export", at / "own.safetensors", "--format", format, "--base", at / "base", "--out", at / name
    code, out, _ = call(capsys, *args)
    assert code == 0 and out.startswith(f"{at / name}: {format}, ")
    host = cw.Host(make("llama")[0])
    host.load("own", at / "own.safetensors")
    host.load_adapter(at / name, "back")
    for key, w in host.merged("own").items():
        torch.testing.assert_close(host.merged("back")[key], w, rtol=1e-5, atol=1e-6)
    code, _, err = call(capsys, *args)
    assert code == 2 and "already exists" in err
    assert call(capsys, *args, "--overwrite")[0] == 0


def test_a_tenant_that_goes_by_tasks_is_exported_as_one_of_them(at, capsys):
    host = cw.Host(make("llama")[0])
    stir(host.add("t", "poly", tasks="a,b", skills=2, rank=2, sites="*.q_proj"))
    host.save("t", at / "t.safetensors")
    args = "export", at / "t.safetensors", "--format", "mlx", "--base", at / "base", "--out", at / "o"
    code, _, err = call(capsys, *args)
    assert code == 2 and "it goes by tasks; say which is to be written with --task-name, of a, b" in err
    assert call(capsys, *args, "--task-name", "1")[0] == 0
    host.load_adapter(at / "o", "back")
    for key, w in host.merged("t", task="b").items():
        torch.testing.assert_close(host.merged("back")[key], w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [None, "pooler", "cls"])
def test_a_tenant_with_classes_is_exported_whatever_its_head_reads(tmp_path, capsys, pool):
    model: Any = make("bert")[0]
    model.save_pretrained(tmp_path / "base")
    host = open_host(tmp_path / "base", pool=pool, dtype="float32")
    stir(host.add("t", "lora", rank=2, labels=["a", "b"], sites="*.query"))
    host.save("t", tmp_path / "own.safetensors")
    args = "export", tmp_path / "own.safetensors", "--format", "peft", "--base", tmp_path / "base"
    code, out, err = call(capsys, *args, "--out", tmp_path / "o")
    assert code == 0 and out.startswith(f"{tmp_path / 'o'}: peft, "), err
    plain = cw.Host(make("bert")[0])
    plain.load_adapter(tmp_path / "o", "back")
    for key, w in plain.merged("back").items():
        torch.testing.assert_close(w, host.merged("t")[f"encoder.{key}"], rtol=1e-5, atol=1e-6)


def test_what_needs_an_error_is_written_when_one_is_allowed(at, capsys):
    host = cw.Host(make("llama")[0])
    stir(host.add("t", "ia3", sites="*.k_proj"))
    host.save("t", at / "ia3.safetensors")
    args = "export", at / "ia3.safetensors", "--format", "gguf", "--base", at / "base", "--out", at / "o.gguf"
    code, _, err = call(capsys, *args)
    assert code == 2 and "ia3 is no product of two factors" in err and not (at / "o.gguf").exists()
    code, out, _ = call(capsys, *args, "--tolerance", "0.2")
    assert code == 0 and out.startswith(f"{at / 'o.gguf'}: gguf")


def test_a_part_is_of_pipelines_alone(at, capsys):
    args = "export", at / "own.safetensors", "--base", at / "base", "--out", at / "o", "--format"
    for more, says in (
        (("gguf", "--part", "unet"), "--part is of diffusers and kohya; gguf has one model alone"),
        (("kohya",), "LlamaForCausalLM: kohya holds adapters of a pipeline's models"),
        (("kohya", "--part", "../te"), "part='../te': wanted what kohya calls a model: unet, te, te1"),
    ):
        code, _, err = call(capsys, *args, *more)
        assert code == 2 and says in " ".join(err.split()) and not (at / "o").exists()


def test_a_unet_of_diffusers(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    at = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{at}.lora_up.weight": torch.ones(16, 2), f"{at}.lora_down.weight": torch.ones(2, 16)}, tmp_path / "k")
    code, out, err = call(capsys, "store", "import", tmp_path / "s", tmp_path / "k", "--model", tmp_path / "unet")
    assert (code, out.split(":")[0]) == (0, "k@1"), err
    for format in ("diffusers", "kohya"):
        args = "export", tmp_path / "k", "--format", format, "--base", tmp_path / "unet", "--out", tmp_path / format
        code, out, err = call(capsys, *args)
        assert code == 0 and out.startswith(f"{tmp_path / format}: {format}, "), err
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**config, "_class_name": "Nothing"}))
    code, _, err = call(capsys, "store", "import", tmp_path / "s", tmp_path / "k", "--model", tmp_path / "unet")
    assert code == 2 and "has no model Nothing" in err
