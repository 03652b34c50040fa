"""Tenants found by a text: each is described by texts of its task, as one vector of a sentence encoder.

The vectors of all tenants lie in one file of the store, beside the name of the encoder that made them. AutoLoRA finds
adapters by their weights, with an encoder trained on many of them (github.com/lzws/AutoLoRA @cf7491f); here nothing is
trained, and what is compared are texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core import CommonweightError, unknown
from ..formats import atomic
from .store import Commons

FILE = "descriptions.safetensors"
Encode = Callable[[Sequence[str]], Tensor]  # texts -> unit vectors (n, d), float32


class Descriptions(NamedTuple):
    """names: n. vectors: (n, d) of length 1, float16. encoder: what made them."""

    names: tuple[str, ...]
    vectors: Tensor
    encoder: str


class Found(NamedTuple):
    """score: the cosine of the text and of what describes the tenant."""

    name: str
    score: float


def read(store: Commons) -> Descriptions | None:
    """None where no tenant is described. Raises: CommonweightError for a damaged file."""
    at = store.folder / FILE
    if not at.exists():
        return None
    try:
        with safe_open(at, "pt") as f:
            said = json.loads((f.metadata() or {})["commonweight"])
            found = Descriptions(tuple(said["names"]), f.get_tensor("vectors"), said["encoder"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        raise CommonweightError(f"{at}: not a whole file of descriptions ({e}); delete it, and describe anew") from e
    if found.vectors.dim() != 2 or len(found.names) != len(found.vectors):
        raise CommonweightError(
            f"{at}: it has {len(found.names)} names for vectors {tuple(found.vectors.shape)}; delete it"
        )
    return found


def describe(store: Commons, texts: Mapping[str, Sequence[str]], encode: Encode, encoder: str) -> Descriptions:
    """Describes tenants of a store by texts of their tasks; those that were described before are described anew.

    encoder: its name, which must be that of the others. Cost: an encoding of every text, and the file of all vectors.
    Raises: CommonweightError for a tenant that is not there, one without texts, and for another encoder.
    """
    there = store.newest()
    for name, some in texts.items():
        if name not in there:
            raise CommonweightError(f"{store.folder}: {unknown('tenant', name, there)}")
        if not some:
            raise CommonweightError(f"{name}: no text that describes it; give some of its rows")
    made = {n: mean(encode([*some])) for n, some in texts.items()}
    with store._locked():
        before = read(store)
        if before is not None and before.encoder != encoder:
            raise CommonweightError(
                f"{store.folder}: its tenants are described by {before.encoder}, not {encoder}; take that one, or "
                f"delete {FILE} and describe all anew"
            )
        old = {} if before is None else dict(zip(before.names, before.vectors))
        held = {n: v for n, v in {**old, **made}.items() if n in store.newest()}
        found = Descriptions(tuple(sorted(held)), torch.stack([held[n].half() for n in sorted(held)]), encoder)
        text = json.dumps({"names": found.names, "encoder": encoder})
        atomic.write(store.folder / FILE, save({"vectors": found.vectors}, {"commonweight": text}))
    return found


def mean(vectors: Tensor) -> Tensor:
    """The direction of the mean of vectors (n, d): (d,)."""
    return torch.nn.functional.normalize(vectors.float().mean(0), dim=0)


def find(described: Descriptions, vector: Tensor, many: int = 5, among: Mapping[str, int] | None = None) -> list[Found]:
    """The tenants whose descriptions are most like a unit vector (d,), the best first. among: those that count.

    Cost: a product (n, d). Raises: CommonweightError for a vector of another width."""
    if vector.shape != described.vectors.shape[1:]:
        raise CommonweightError(
            f"a text's vector has {vector.shape[-1]} numbers, the descriptions have {described.vectors.shape[1]}; "
            f"encode it with {described.encoder}"
        )
    scores = described.vectors.float() @ vector.float()
    best = scores.argsort(descending=True, stable=True).tolist()
    out: list[Found] = []
    for i in best:
        if len(out) == many:
            break
        if among is None or described.names[i] in among:
            out.append(Found(described.names[i], min(1.0, round(float(scores[i]), 4))))
    return out


def encoder(model: str, device: str = "cpu") -> Encode:
    """Texts as sentence encoders read them: the mean of the last states of an encoder's tokens, of length 1.

    model: a folder or a name on the hub. Texts are cut at 256 tokens. Raises: CommonweightError for what is no encoder
    with a tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        inner = AutoModel.from_pretrained(model, dtype=torch.float32).eval().to(device)
    except (OSError, ValueError, KeyError) as e:
        raise CommonweightError(f"--encoder {model}: not opened as an encoder with a tokenizer ({e})") from e

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for i in range(0, len(texts), 32):
            some = [texts[j] for j in order[i : i + 32]]
            batch = tokenizer(some, return_tensors="pt", padding=True, truncation=True, max_length=256).to(device)
            mask = batch["attention_mask"][..., None].float()
            states = inner(**batch).last_hidden_state.float()
            parts.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()].clone()

    return encode
