"""FedAvg whose clients send their change in few bits; what was lost is sent with the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import CommonweightError, config, option
from ...formats.codecs import Codec, get
from ..asks import Client, Diverged, Pools, Sent, Told, Train
from ..averaging import AVERAGING, mean, weights
from ..lgreco import choose
from ..message import Part, Refused, Table, payload
from ..registry import Reply, Setting, State, method

LEVELS = (*(f"compeft:density={d}" for d in (0.05, 0.1, 0.2, 0.5)), "int4", "int8")

KINDS = ("int8", "int4", "bfloat16", "compeft")  # those with a bound on their bytes, whatever the numbers are


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
        if self.codec == "l-greco":
            return None
        try:
            get(self.codec)
        except CommonweightError as e:
            return str(e)
        kind = self.codec.partition(":")[0]
        return None if kind in KINDS else f"codec={self.codec} is none of changes; wanted {', '.join(KINDS)} or l-greco"


def encode(codec: Codec, value: Tensor) -> Tensor:
    return codec.encode(value, None).contiguous().view(torch.uint8).flatten()


def decode(name: str, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Raises: CommonweightError for what the codec does not write; Refused for numbers that are not finite."""
    stored = stored.clone()
    value = get(name).decode(stored.view(torch.bfloat16).view(shape) if name == "bfloat16" else stored, shape, None)
    if not value.isfinite().all():
        raise Refused("not finite", f"its {name} decodes to NaN or infinity")
    return value


def longest(name: str, n: int) -> int:
    """Bytes of n numbers, at most."""
    if name.startswith("compeft"):  # its places as a bit mask, and the signs
        return 11 + -(-n // 8) + -(-max(1, round(getattr(get(name), "density") * n)) // 8) + 1  # noqa: B009
    return {"bfloat16": 2 * n, "int8": 2 * -(-n // 64) + n, "int4": 2 * -(-n // 64) + -(-n // 2)}[name]


def varies(setting: Setting) -> bool:
    return setting.config.codec.startswith(("compeft", "l-greco"))


def down(setting: Setting, round: int, client: int) -> Table:
    """The pools, or the bytes of all, one behind the other."""
    if setting.config.down == "float32":
        return {n: Part(p.shape, p.dtype) for n, p in setting.pools.items()}
    return {"bytes": Part((sum(longest(setting.config.down, p.numel) for p in setting.pools.values()),), "uint8")}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    if setting.config.down == "float32":
        return state.tensors
    return {"bytes": torch.cat([encode(get(setting.config.down), state.tensors[n]) for n in setting.travels])}


def came(setting: Setting, told: Told) -> Pools:
    """The server's pools, as they came."""
    name = setting.config.down
    if name == "float32":
        return told.tensors
    parts = told.tensors["bytes"].split([longest(name, p.numel) for p in setting.pools.values()])
    return {n: decode(name, b, p.shape) for (n, p), b in zip(setting.pools.items(), parts)}


def up(setting: Setting, round: int, client: int) -> Table:
    """bytes: of all pools, one behind the other; where they vary, how many each has; of l-greco which codec."""
    codec = setting.config.codec
    names = LEVELS if codec == "l-greco" else (codec,)
    total = sum(max(longest(one, p.numel) for one in names) for p in setting.pools.values())
    if not varies(setting):
        return {"bytes": Part((total,), "uint8")}
    out = {"bytes": Part((None,), "uint8", total), "lengths": Part((len(setting.travels),), "int32")}
    return out | ({"codecs": Part((len(setting.travels),), "uint8")} if codec == "l-greco" else {})


def coded(setting: Setting, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of a message."""
    name = setting.config.codec
    if name != "l-greco":
        each, which = [encode(get(name), values[n]) for n in setting.travels], None
    else:
        every = [[encode(get(one), values[n]) for one in LEVELS] for n in setting.travels]
        errors = [
            [float((decode(one, b, tuple(v.shape)) - v).double().square().sum()) for one, b in zip(LEVELS, row)]
            for row, v in zip(every, (values[n] for n in setting.travels))
        ]
        budget = sum(e[LEVELS.index("int4")] for e in errors) * 1.01  # the errors' rounding up to bins
        which = choose([[len(b) for b in row] for row in every], errors, budget)
        which = which or [LEVELS.index("int8")] * len(every)
        each = [row[c] for row, c in zip(every, which)]
    out = {"bytes": torch.cat(each)}
    if varies(setting):
        out["lengths"] = torch.tensor([len(b) for b in each], dtype=torch.int32)
    return out if which is None else out | {"codecs": torch.tensor(which, dtype=torch.uint8)}


def read(setting: Setting, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A message's changes. Raises: Refused where it does not hold together."""
    pools, codec = setting.pools, setting.config.codec
    if "lengths" in sent:
        lengths = sent["lengths"].tolist()
    else:
        lengths = [longest(codec, p.numel) for p in pools.values()]
    if sum(lengths) != len(sent["bytes"]) or min(lengths) < 0:
        raise Refused("wrong shape", "its lengths are not those of its bytes")
    which = sent["codecs"].tolist() if "codecs" in sent else None
    if which is not None and max(which) >= len(LEVELS):
        raise Refused("wrong shape", f"it names codec {max(which)} of {len(LEVELS)}")
    names = [codec] * len(pools) if which is None else [LEVELS[c] for c in which]
    parts = sent["bytes"].split(lengths)
    try:
        return {n: decode(one, b, p.shape) for (n, p), one, b in zip(pools.items(), names, parts)}
    except Refused:
        raise
    except CommonweightError as e:
        raise Refused("wrong shape", f"its {codec} cannot be read ({e})") from e


def check(setting: Setting, tensors: Pools) -> None:
    """Whether an answer decodes. Raises: Refused."""
    read(setting, tensors)


def client(setting: Setting, told: Told) -> Client:
    """Sends the coded change + what earlier codings lost; keeps what this one loses."""
    mine = {n: told.keep.get(n, told.start[n]) for n in setting.private}
    try:
        theirs = came(setting, told)
    except Refused as e:
        raise Diverged(f"coded: what came down cannot be read: {e}") from e
    done = yield Train({**theirs, **mine})
    change = {n: done.pools[n] - theirs[n] for n in setting.travels}
    if setting.config.feedback:
        change = {n: v + told.keep[f"lost/{n}"] if f"lost/{n}" in told.keep else v for n, v in change.items()}
    keep = {n: done.pools[n] for n in setting.private}
    try:
        sent = coded(setting, change)
        if setting.config.feedback:
            keep |= {f"lost/{n}": change[n] - v for n, v in read(setting, sent).items()}
    except Refused as e:
        raise Diverged(f"coded: the change is too large for {setting.config.codec}: {e}") from e
    return Sent(sent, keep, done.loss)


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """theta <- theta + sum_n w_n decoded change_n."""
    changes, shares = [read(setting, r.tensors) for r in replies], weights(replies, setting.weigh)
    return State({n: v + mean([c[n] for c in changes], shares) for n, v in state.tensors.items()}, state.facts)


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return payload(up(setting, round, client)), payload(down(setting, round, client))


@method(
    "coded",
    Coded,
    paper="Error Feedback Fixes SignSGD and other Gradient Compression Schemes, arXiv 1901.09847; L-GreCo: Layerwise-"
    "Adaptive Gradient Compression, arXiv 2210.17357",
    id=426,
    **{
        **AVERAGING, "down": down, "up": up, "tell": tell, "client": client, "gather": gather, "nbytes": nbytes,
        "check": check,
        "formula": "bits p / 8 and 2 for every 64 numbers up (int8, int4), fewer by compeft; 4 p down, or coded",
        "each": "what its codec lost", "noise": "what travels is coded: clip and add noise before it is",
    },
)  # fmt: skip
def adapter(config: Coded) -> tuple[str, dict[str, Any]]:
    """e_t = c_t + (what was lost before); sent: C(e_t); lost: e_t - C(e_t).

    Source: arXiv 1901.09847, algorithm 2, with the codecs of stored tenants. The server keeps its pools in float32 and
    adds changes to them, so that what `down` loses does not add up: a client's change is against what came to it.
    """
    return config.adapter, dict(config.options)
