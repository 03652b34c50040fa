"""FedAvg of any method of this library; of LoRA it is the usual baseline, whose error is told."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..averaging import AVERAGING
from ..factors import mean_pools
from ..registry import method


@config
class FedAvg:
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


@method(
    "fedavg",
    FedAvg,
    paper="Communication-Efficient Learning of Deep Networks from Decentralized Data, arXiv 1602.05629",
    **{**AVERAGING, "gather": mean_pools},
)
def adapter(config: FedAvg) -> tuple[str, dict[str, Any]]:
    return config.adapter, dict(config.options)
