"""What is said of a file of tensors that cannot be opened, by what its first bytes are."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..core import CommonweightError

PICKLES = ".bin", ".pt", ".pth", ".ckpt"
_PROTOCOLS = b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"
_ANY = "a pickle can run any code, it is not read. If you trust it, write its tensors as safetensors"


def not_whole(path: Path, e: BaseException) -> CommonweightError:
    """For a file that should have been of safetensors."""
    said = known(path)
    return CommonweightError(f"{path}: {said or f'not a whole safetensors file ({e}); copy it again'}")


def known(path: Path) -> str | None:
    """What a file is that is none of safetensors, and what to do; None where its bytes do not tell."""
    try:
        with open(path, "rb") as f:
            first = f.read(64)
    except OSError:
        return None
    if not first:
        return "it is empty; copy it again"
    if first.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            return "a checkpoint of torch.save, or another archive, without its end: it is not whole; copy it again"
        with zipfile.ZipFile(path) as z:
            if not any(n.endswith("data.pkl") for n in z.namelist()):
                return "a zip archive and no checkpoint of torch.save; unpack it, and name the file in it"
        return f"a checkpoint of torch.save; {_ANY}: {_way(path)}"
    if first[:2] in _PROTOCOLS and first[4:9] != b"\0\0\0\0{":  # as the length of a safetensors header may begin too
        return f"a pickle, as torch.save made them once; {_ANY}: {_way(path)}"
    if first.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in the place of the file; fetch it with `git lfs pull`"
    if first.startswith(b"GGUF"):
        return "a GGUF file; host.load_adapter and `commonweight store import` read LoRA of llama.cpp"
    if first.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page in the place of the file; download it again"
    if path.suffix in PICKLES:
        return "neither a checkpoint of torch.save nor a file of safetensors: it is damaged; copy it again"
    return None


def _way(path: Path) -> str:
    to = path.with_suffix(".safetensors").name
    more = "or open it with the tool that wrote it, and save it as safetensors"
    return f'safetensors.torch.save_file(torch.load("{path.name}", weights_only=True), "{to}"); {more}'
