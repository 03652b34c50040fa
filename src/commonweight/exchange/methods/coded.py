"""FedAvg whose clients send their change in few bits; what was lost is sent with the next one."""

from __future__ import annotations

from typing import Any, Literal

from ...core import config, option
from ..averaging import AVERAGING
from ..codes import wrong
from ..registry import Coding, method


@config
class Coded:
    codec: str = option(
        "int8", "int8, int4, bfloat16 or compeft:density=0.1; l-greco: one of these for each pool, so that together "
        "they err as int4 and take the fewest bytes"
    )  # fmt: skip
    down: Literal["float32", "bfloat16", "int8"] = option("float32", "how the server's pools come down")
    feedback: bool = option(True, "what a client's codec lost is added to its next change")
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")

    def check(self) -> str | None:
        return wrong(self.codec)


def coding(config: Coded) -> Coding:
    down = None if config.down == "float32" else config.down
    return Coding(config.codec, down, "clients" if config.feedback else "none")


@method(
    "coded",
    Coded,
    paper="Error Feedback Fixes SignSGD and other Gradient Compression Schemes, arXiv 1901.09847; L-GreCo: Layerwise-"
    "Adaptive Gradient Compression, arXiv 2210.17357",
    id=426,
    **{
        **AVERAGING, "coding": coding, "each": "what its codec lost",
        "formula": "bits p / 8 and 2 for every 64 numbers up (int8, int4), fewer by compeft; 4 p down, or coded",
    },
)  # fmt: skip
def adapter(config: Coded) -> tuple[str, dict[str, Any]]:
    """e_t = c_t + (what was lost before); sent: C(e_t); lost: e_t - C(e_t).

    Source: arXiv 1901.09847, algorithm 2, with the codecs of stored tenants. This is `fedavg` with the codecs of
    `exchange.coding`, which every other method of floats takes as options of the run.
    """
    return config.adapter, dict(config.options)
