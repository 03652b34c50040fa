"""Files of tensors that are none of safetensors: what they are is said, and what to do."""

import json
import pickle
import zipfile

import pytest
import torch

import commonweight as cw
from commonweight.formats.damaged import known
from tests.models import make


@pytest.fixture(scope="module")
def host():
    return cw.Host(make("llama")[0])


def saved(path, **how):
    torch.save({"x": torch.ones(100)}, path, **how)
    return path.read_bytes()


def archive(path):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("t.safetensors", b"")
    return path.read_bytes()


def kinds(path):
    whole, old = saved(path), saved(path, _use_new_zipfile_serialization=False)
    return {
        "a checkpoint of torch.save; a pickle can run any code.*weights_only=True.*adapter_model.safetensors": whole,
        "a checkpoint of torch.save, or another archive, without its end: it is not whole; copy it": whole[:-30],
        "a zip archive and no checkpoint of torch.save; unpack it": archive(path),
        "a pickle, as torch.save made them once; a pickle can run any code": old,
        "a pickle, as torch.save made them once": pickle.dumps({}),
        "it is empty; copy it again": b"",
        "neither a checkpoint of torch.save nor a file of safetensors: it is damaged": b"\0" * 200,
        "a pointer of Git LFS in the place of the file; fetch it": b"version https://git-lfs.github.com/spec/v1",
        "a web page in the place of the file; download it again": b"\n<!DOCTYPE html><html>",
    }


@pytest.mark.parametrize("name", ["adapter_model.bin", "t.pt"])
def test_each_kind_by_its_name(host, tmp_path, name):
    path = tmp_path / name
    for says, data in kinds(tmp_path / "adapter_model.bin").items():
        path.write_bytes(data)
        says = says.replace("adapter_model", path.stem)
        with pytest.raises(cw.CommonweightError, match=f"{name}: {says}"):
            host.load("t", path)
        if "weights_only" not in says:  # which is torchtune's format
            with pytest.raises(cw.CommonweightError, match=f"{name}: {says}"):
                host.load_adapter(path)
        if name == "adapter_model.bin":
            (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
            with pytest.raises(cw.CommonweightError, match=f"{name}: {says}"):
                host.import_peft("t", tmp_path)
            (tmp_path / "adapter_config.json").unlink()


def test_a_damaged_file_of_safetensors_is_called_so(host, tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"\x10" + b"\0" * 300)
    assert known(path) is None
    with pytest.raises(cw.CommonweightError, match=r"not a whole safetensors file \(.*\); copy it again"):
        host.load("t", path)


@pytest.mark.parametrize(
    "data", [b"\x10" + b"\0" * 300, b"\1\0", b"text", b"\xff" * 50], ids=["zeros", "cut", "text", "ones"]
)
def test_of_a_file_called_safetensors_nothing_else_is_thought(host, tmp_path, data):
    (path := tmp_path / "t.safetensors").write_bytes(data)
    with pytest.raises(cw.CommonweightError, match=r"t\.safetensors: not a whole safetensors file; copy it again"):
        host.load_adapter(path)


def test_the_length_of_a_header_is_no_pickle(host, tmp_path):
    path = tmp_path / "t.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(0x280)
    path.write_bytes(len(header).to_bytes(8, "little") + header)  # begins as a pickle of protocol 2, and has no numbers
    assert path.read_bytes().startswith(b"\x80\x02")
    assert known(path) is None
    for load in (lambda: host.load("t", path), lambda: host.load_adapter(path)):
        with pytest.raises(cw.CommonweightError, match="safetensors"):
            load()


def test_a_checkpoint_is_read_whatever_its_ending(host, tmp_path):
    path = tmp_path / "t.safetensors"
    saved(path)
    with pytest.raises(cw.CommonweightError, match=r"x: |does not say its alpha|x is no"):
        host.load_adapter(path)
