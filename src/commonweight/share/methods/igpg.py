"""IGPG's first stage: all weights are written in one vocabulary of chunks, which a decoder turns into numbers."""

from __future__ import annotations

from typing import Literal

from ...address import Decoded
from ...bind import Replace
from ...builder import Anatomy, Layout
from ...core import Pool, Read, Use, config, option
from ..families import PARTS, families, instead
from ..registry import method
from ..vocabulary import Chunks


@config
class IGPG:
    entries: int = option(1536, "entries K of the vocabulary", ge=1)
    chunk: int = option(8, "numbers c that one token stands for", ge=1)
    dim: int | None = option(
        None, "width m of an entry, which the decoder turns into a chunk; none: that of a chunk", ge=1
    )
    parts: Literal["attention", "qkv", "ffn", "all"] = option("all", "whose weights")

    def check(self) -> str | None:
        return f"dim={self.dim} is wider than a chunk of {self.chunk}" if (self.dim or 0) > self.chunk else None


@method(
    "igpg",
    IGPG,
    paper="Instruction-Guided Autoregressive Neural Network Parameter Generation, arXiv 2504.02012",
    shares="one vocabulary of chunks, in which all weights are written, and its decoder",
    sizes=lambda depth: [{"chunk": 4}, {"chunk": 8}],
)
def plan(anatomy: Anatomy, config: IGPG) -> Layout:
    """W = mean + std * decoder(entries[tokens]), chunk by chunk; entries and decoder are common to all weights.

    Shapes: entries (K, m), decoder (c, m), tokens of each weight: its numbers / c, int16; mean and std its own.
    Parameters: K m + c m, 2 bytes for each c numbers, 2 for each weight. Tokens do not train; entries and decoder do.
    With as many entries as chunks and m = c it is the original. Source: arXiv 2504.02012; code sorobedio/igpg, the
    first stage. Differs: entries begin with k-means, and the decoder is a linear map, where theirs are a convolutional
    VQ-VAE with Gumbel noise; chunk and the order of chunks, row by row, are ours. Its second stage, a language model
    of the tokens that an instruction guides, is not built: no code of it was found.
    """
    found = families(anatomy, "igpg", PARTS[config.parts])
    names = tuple(f"{at}.{w.name}" for family in found for at, w in family)
    dtype, m = anatomy.blocks[0][0].dtype, config.dim or config.chunk
    of = {"of": names, "entries": config.entries, "chunk": config.chunk}
    pools = {
        "entries": Pool((config.entries, m), Chunks(part="codebook", **of), dtype=dtype),
        "decoder": Pool((config.chunk, m), Chunks(part="decoder", **of), dtype=dtype),
    }
    number = "int16" if config.entries <= 2**15 else "int32"
    uses = []
    for family in found:
        for at, w in family:
            site = f"{at}.{w.name}"
            n = -(-w.shape[0] * w.shape[1] // config.chunk)
            pools[f"{site}.tokens"] = Pool((n,), Chunks(part="tokens", mine=site, **of), train=False, dtype=number)
            pools[f"{site}.size"] = Pool((2,), Chunks(part="size", mine=site, **of), dtype=w.dtype)
            read = Read(Decoded(w.shape), ("entries", f"{site}.tokens", "decoder", f"{site}.size"))
            uses.append(Use(site, Replace(), {"weight": read}))
    return instead(anatomy, pools, uses)
