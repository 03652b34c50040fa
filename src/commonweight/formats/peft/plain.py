"""Methods whose tensors PEFT keeps site by site, as ours are: one table, read and written by the same two functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from ..pairs import commonest, others
from .common import PREFIX, Native, Subject, is_off, number, patterns, split, understood

Found = Mapping[str, Mapping[str, Tensor]]


class Plain(NamedTuple):
    """One peft_type.

    slots: PEFT's name of a tensor -> ours, with a final "^T" where ours is transposed. options: PEFT's option -> ours.
    says: what PEFT's config holds beside, of our config. not_here: whether only PEFT computes such a config.
    stored: our method keeps its frozen pools in the file where its option `stored` says so. silent: no matter.
    sizes: PEFT's options for the last dimension of a site's first tensor, and for that of sites where it is another;
    ours for the latter.
    """

    kind: str
    method: str
    slots: Mapping[str, str]
    options: Mapping[str, str]
    says: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    not_here: Callable[[Mapping[str, Any]], bool] = lambda config: False
    stored: bool = False
    silent: tuple[str, ...] = ()
    sizes: tuple[str, str, str] | None = None

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether our own method can say it; else PEFT computes."""
        return all(is_off(k, v) or k in self.known for k, v in config.items()) and not self.not_here(config)

    @property
    def known(self) -> tuple[str, ...]:
        return *self.options, *self.silent, *(() if self.sizes is None else self.sizes[:2])

    def read(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
    ) -> Adapter:
        understood(config, *self.known)
        found = split(tensors, tuple(self.slots), sites)
        values: dict[str, Tensor] = {}
        for key, given in found.items():
            for theirs, value in given.items():
                ours = self.slots[theirs]
                if ours.endswith("^T"):
                    if value.dim() != 2:
                        raise CommonweightError(
                            f"adapter_model.safetensors: {PREFIX}{key}.{theirs} has {value.dim()} dimensions; wanted 2"
                        )
                    value = value.T.contiguous()
                values[f"{sites[key].name}.{ours.removesuffix('^T')}"] = value
        options: dict[str, Any] = {
            ours: _as(config, theirs) for theirs, ours in self.options.items() if theirs in config
        }
        if self.sizes is not None:
            options |= self._sized(self.sizes, config, found, sites)
        if self.stored:
            options["stored"] = True
        return Adapter(self.method, options, tuple(sites[k].name for k in found), values)

    def _sized(
        self, sizes: tuple[str, str, str], config: Mapping[str, Any], found: Found, sites: Mapping[str, Site]
    ) -> dict[str, Any]:
        """Our options for the sizes of a file. Raises: CommonweightError for one that its config does not name."""
        usual, pattern, ours = sizes
        slot = next(iter(self.slots))
        last = {k: given[slot].shape[-1] for k, given in found.items() if slot in given and given[slot].dim()}
        named = {*patterns(config, pattern).values(), *([number(config, usual)] if usual in config else last.values())}
        if wrong := next(((k, b) for k, b in last.items() if b not in named), None):
            raise CommonweightError(
                f"adapter_model.safetensors: {PREFIX}{wrong[0]}.{slot} has {usual}={wrong[1]}, adapter_config.json "
                f"says {', '.join(str(b) for b in sorted(named))}; made for another config"
            )
        most = commonest(last.values()) if last else None
        return {self.options[usual]: most, ours: others({sites[k].name: b for k, b in last.items()}, most)}

    def write(self, subject: Subject) -> Native:
        tensors: dict[str, Tensor] = {}
        for name in subject.sites:
            reads = [u.reads for u in subject.plan.uses if u.site == name]
            mine = {p for r in reads for read in r.values() for p in read.pools}
            for theirs, ours in self.slots.items():
                pool = f"{name}.{ours.removesuffix('^T')}"
                if pool in mine:
                    value = subject.pools[pool]
                    tensors[f"{name}.{theirs}"] = value.T.contiguous() if ours.endswith("^T") else value
        config = {theirs: getattr(subject.config, ours) for theirs, ours in self.options.items()}
        if self.sizes is not None:
            slot = next(iter(self.slots))
            last = {n: tensors[f"{n}.{slot}"].shape[-1] for n in subject.sites}
            usual = commonest(last.values())
            config |= {
                self.sizes[0]: usual,
                self.sizes[1]: dict(others({subject.short(n): b for n, b in last.items()}, usual)),  # by whole names
            }
        return Native({"peft_type": self.kind, **config, **self.says(subject.config)}, tensors)


def _as(config: Mapping[str, Any], key: str) -> Any:
    """A flag as it is, a whole number as one, any other number as a float."""
    if isinstance(config[key], bool):
        return config[key]
    value = number(config, key)
    return int(value) if value == int(value) and not isinstance(value, float) else float(value)


LOHA = Plain(
    "LOHA", "loha",
    {"hada_w1_a": "B1^T", "hada_w1_b": "A1", "hada_w2_a": "B2^T", "hada_w2_b": "A2"},
    {"r": "rank", "alpha": "alpha"},
    lambda c: {"alpha": c.rank if c.alpha is None else c.alpha},
)  # fmt: skip
LOKR = Plain(
    "LOKR", "lokr",
    {"lokr_w1": "L", "lokr_w1_a": "L_a", "lokr_w1_b": "L_b", "lokr_w2": "R", "lokr_w2_a": "R_a", "lokr_w2_b": "R_b"},
    {"r": "rank", "alpha": "alpha", "decompose_both": "both", "decompose_factor": "factor"},
    lambda c: {"alpha": c.rank if c.alpha is None else c.alpha},
)  # fmt: skip
HIRA = Plain("HIRA", "hira", {"hira_A": "A", "hira_B": "B"}, {"r": "rank"})
HRA = Plain("HRA", "hra", {"hra_u": "U"}, {"r": "rank"}, not_here=lambda c: bool(c.get("r", 8) % 2))
MISS = Plain(
    "MISS", "miss", {"miss_block": "B^T"}, {"r": "rank", "miss_dropout": "dropout"}, lambda c: {"mini_r": 1},
    lambda c: c.get("init_weights") in ("bat", "mini"), silent=("mini_r",),
)  # fmt: skip
C3A = Plain(
    "C3A",
    "c3a",
    {"c3a_kernel": "k"},
    {"block_size": "block_size"},
    sizes=("block_size", "block_size_pattern", "block_sizes"),
)
GRALORA = Plain(
    "GRALORA", "gralora",
    {"gralora_A": "A", "gralora_B": "B", "gralora_A_general.weight": "G_A",
     "gralora_B_general.weight": "G_B"},
    {"r": "rank", "alpha": "alpha", "gralora_k": "blocks", "hybrid_r": "hybrid", "gralora_dropout": "dropout"},
    lambda c: {"alpha": 2 * (c.rank + c.hybrid) if c.alpha is None else c.alpha},
)  # fmt: skip
FOURIERFT = Plain(
    "FOURIERFT", "fourierft", {"fourierft_spectrum": "c"},
    {"n_frequency": "n_frequency", "scaling": "scaling", "random_loc_seed": "random_loc_seed"},
)  # fmt: skip
WAVEFT = Plain(
    "WAVEFT", "waveft", {"waveft_spectrum": "c"},
    {"n_frequency": "n_frequency", "scaling": "scaling", "random_loc_seed": "random_loc_seed"},
    lambda c: {"wavelet_family": "db1", "use_idwt": True},
    lambda c: c.get("wavelet_family", "db1") != "db1" or not c.get("use_idwt", True),
    silent=("wavelet_family", "use_idwt"),
)  # fmt: skip
DELORA = Plain(
    "DELORA", "delora", {"delora_A": "A", "delora_B": "B", "delora_lambda": "l", "delora_w_norm": "n"},
    {"r": "rank", "delora_lambda": "bound"}, stored=True,
)  # fmt: skip
