"""Updates that are merged while they train, where layers' B have become alike."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..builder.shared import stack_of
from ..core import CommonweightError


class Merging:
    """A `progress` of `heal`: from step `start` on, every `every` steps, two neighbours' B of each kind become one.

    The pair whose running means over all steps are nearest, S_ij = ||mean B_i - mean B_j||, is merged: the lower layer
    reads the upper one's B, until `groups` are left. All but the updates is frozen. by: "means", or "disturbance",
    ||(B_i - B_j) A||, which does not depend on how B and A share their product. Cost: a copy of the B.
    Source: ASLoRA, arXiv 2412.10135, algorithm 1. The paper does not say, and here it is: neighbours in depth, each
    kind of matrix for itself, a group keeps its upper layer's mean, how many groups are left is asked for.
    Raises: CommonweightError for a model without updates that share A (method `aslora`).
    """

    def __init__(
        self, model: Any, start: int, every: int, groups: int = 1, by: Literal["means", "disturbance"] = "means"
    ):
        if min(every, groups) < 1 or by not in ("means", "disturbance"):
            raise CommonweightError(
                f"every={every}, groups={groups}, by={by!r}; wanted numbers of at least 1, and means or disturbance"
            )
        self.model, self.start, self.every, self.left, self.by = model, start, every, groups, by
        sharing = getattr(model.config, "sharing", {})
        _, self.blocks = stack_of(model, sharing["path"]) if sharing else ("", None)
        self.kinds = sorted({f["at"] for f in sharing.get("forms", ()) if f["form"] == "Relaxed"})
        tied = sharing.get("tied", {})
        if not self.kinds or any(f"{k}.A" not in tied for k in self.kinds):
            raise CommonweightError(f"{type(model).__name__} has no updates that share A; make it with method aslora")
        for name, p in model.named_parameters():
            p.requires_grad_(name.rpartition(".")[2] in ("A", "B"))
        depths = range(len(self.blocks))  # type: ignore[arg-type]
        self.members = {k: [[d] for d in depths if hasattr(self.layer(d, k), "B")] for k in self.kinds}
        self.means = {k: {d: torch.zeros_like(self.layer(d, k).B) for (d,) in g} for k, g in self.members.items()}
        self.step = 0

    def layer(self, depth: int, kind: str) -> Any:
        return self.blocks.get_submodule(f"{depth}.{kind}")  # type: ignore[union-attr]

    @torch.no_grad()
    def __call__(self, progress: Any) -> None:
        """After each step. Raises: CommonweightError where steps were missed, as in a run that is resumed."""
        self.step += 1
        if progress.step != self.step:
            raise CommonweightError(
                f"merging has seen {self.step - 1} steps and is told of step {progress.step}; a run that merges cannot "
                "be resumed"
            )
        for kind, means in self.means.items():
            for group in self.members[kind]:
                means[group[-1]].add_((self.layer(group[-1], kind).B - means[group[-1]]) / self.step)
        if self.step > self.start and (self.step - self.start) % self.every == 0:
            for kind in self.kinds:
                self.merge(kind)

    def merge(self, kind: str) -> None:
        groups = self.members[kind]
        if len(groups) <= self.left:
            return
        at = min(range(len(groups) - 1), key=lambda i: self.distance(kind, groups[i][-1], groups[i + 1][-1]))
        lower, upper = groups[at], groups[at + 1]
        name, kept = f"{kind}.B", self.layer(upper[-1], kind).B
        for depth in lower:
            self.layer(depth, kind).B = kept
        del self.means[kind][lower[-1]]
        groups[at : at + 2] = [[*lower, *upper]]
        sharing = self.model.config.sharing
        owners = [None] * len(self.blocks)  # type: ignore[arg-type]
        for group in groups:
            for depth in group:
                owners[depth] = group[0]  # type: ignore[call-overload]
        sharing["tied"] = {**sharing["tied"], name: owners}
        self.model.know()

    def distance(self, kind: str, lower: int, upper: int) -> float:
        if self.by == "means":
            return float(torch.linalg.norm(self.means[kind][lower] - self.means[kind][upper]))
        a: Tensor = self.layer(lower, kind).A
        return float(torch.linalg.norm((self.layer(lower, kind).B - self.layer(upper, kind).B) @ a))
