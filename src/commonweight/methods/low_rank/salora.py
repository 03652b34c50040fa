"""SaLoRA: LoRA that cannot change what a model's safe answers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...address import Outside
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, config, option
from ...core.spectrum import svd
from ..registry import method
from ..shown import KEPT, WEIGHT, Statistics, begun
from ..widths import ranked
from .anchored import started
from .lora_xs import fits


@config
class SaLoRA:
    rank: int = option(16, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)
    safe: int = option(32, "directions of a layer's outputs, those of the rows to keep, that no update reaches", ge=1)
    task: int = option(32, "directions of its outputs, those of the task's rows, in which B begins", ge=1)
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: from both kinds of rows; random: as LoRA, everywhere; given: what a start from rows becomes"
    )


def directions(w: Tensor, C: Tensor, r: int) -> Tensor:
    """The first r directions (d_out, r) of what a layer gives, w x over inputs x with C = X^T X / n."""
    _, vectors = torch.linalg.eigh((w.double() @ C.double()) @ w.double().mT)
    return vectors[:, -r:].flip(1).float()


def begin(config: SaLoRA, sites: Sequence[Site], seen: Statistics) -> tuple[SaLoRA, dict[str, Tensor]]:
    """W ~ U S V^T: A = S^(1/2) V^T, B = V_t V_t^T U S^(1/2), V_t and V_s the first directions of what the layer gives
    the task's rows, and the answers to keep."""
    s, r, values = 1.0 if config.alpha is None else config.alpha / config.rank, config.rank, {}
    for site in sites:
        _fits(site, config)
        w = seen[WEIGHT + site.name]
        Vs, Vt = (directions(w, seen[n], k) for n, k in ((KEPT + site.name, config.safe), (site.name, config.task)))
        U, S, V = svd(w)
        root = (S[:r] / s).sqrt()
        A, B = root[:, None] * V[:r], Vt @ (Vt.mT @ (U[:, :r] * root))
        values |= {f"{site.name}.{k}{twin}": p.clone() for k, p in (("A", A), ("B", B)) for twin in ("", "0")}
        values[f"{site.name}.V"] = Vs.contiguous()
    return replace(config, start="given"), values


def _unfit(config: SaLoRA, site: Site) -> str:
    if wide := ranked()(config, site):
        return wide
    if max(config.safe + 1, config.task) > site.out:
        return f"safe={config.safe}, task={config.task}"
    return ""


def _fits(site: Site, config: SaLoRA) -> None:
    fits("salora", site, config.rank)
    if _unfit(config, site):
        raise CommonweightError(
            f"salora: {site.name}: safe={config.safe} and task={config.task} directions of {site.out} outputs leave "
            "none; lower them, or exclude the site"
        )


@method(
    "salora",
    SaLoRA,
    paper="SaLoRA: Safety-Alignment Preserved Low-Rank Adaptation, arXiv 2501.01765",
    formula="sum over sites of r (d_in + d_out); the file holds the start and the kept directions too",
    kinds=("linear",),
    unfit=_unfit,
    lr=5e-4,
    wants=lambda config: "inputs" if config.start == "rows" else "",
    keeps=lambda config: "answers" if config.start == "rows" else "",
    begin=begin,
    ends=begun,
)
def plan(sites: Sequence[Site], config: SaLoRA) -> Plan:
    """W' = W + s (I - V_s V_s^T) (B A - B0 A0): what is added has no part in the directions V_s.

    Shapes: A (r, d_in), B (d_out, r), V_s (d_out, safe). Linear in: A and B, each alone. Cost: as LoRA of twice the
    rank, and 2 r safe d_out products once a step. Source: arXiv 2501.01765; github.com/homles11/SaLoRA @3f73de1. The
    rows to keep are given beside those of the task (`retain=`, `--retain`): prompts with safe answers, whose tokens
    count. Differs: exact eigenvectors of X^T X in place of a random SVD of the outputs; a layer's bias is
    left out of these; the base, which others read too, keeps W, and the start lies in the file.
    Raises: CommonweightError where a layer has no more outputs than directions, and for a rank above its own.
    """
    for site in sites:
        _fits(site, config)
    s, begun = 1.0 if config.alpha is None else config.alpha / config.rank, config.start == "given"
    made = started(sites, config.rank, s, begun)
    if not begun:
        return made
    pools, uses = dict(made.pools), []
    for use in made.uses:
        at = f"{use.site}.V"
        pools[at] = Pool((pools[f"{use.site}.B"].shape[0], config.safe), ZEROS, train=False)
        outside = {k: Read(Outside(), (f"{use.site}.{k}", at)) for k in ("B", "B0")}
        uses.append(use._replace(reads={**use.reads, **outside}))
    return made._replace(pools=pools, uses=tuple(uses))
