"""LoRA adapters of PEFT merged into one: folders in, a folder out, without their model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...core import CommonweightError
from ...formats import atomic, peft
from ...formats.peft import low_rank
from ...formats.peft.folder import CONFIG, TENSORS
from ...formats.peft.low_rank import Low
from ..inputs.checks import plain
from ..registry import get
from ..sources.adapted import module_scales, plain_config
from ..sources.source import Files
from .lora import A, B, lora
from .tenants import coefficients


class MergedFolder(NamedTuple):
    """error: per module, |left out|_F / |wanted|_F of the update; notices: in what the adapters differ."""

    folder: Path
    error: dict[str, float]
    notices: tuple[str, ...]


def is_folder(path: str | Path) -> bool:
    """Whether this is an adapter's folder of PEFT."""
    return (Path(path).expanduser() / CONFIG).is_file()


def adapter_folders(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "linear",
    weights: Any = None,
    rank: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> MergedFolder:
    """Writes the folder of one LoRA adapter, the merge of others. method, weights, options: as of models (linear
    without weights is the mean); rank, and what other methods do: as in `adapters.lora`.

    linear is exact, of the sum of the ranks. The scales (lora_alpha, with patterns and rslora) are in the result's B.
    The base, task and targets that the config names are the first adapter's. Raises: CommonweightError for what is no
    plain LoRA, for other modules than the first one's, and for a folder that is there already, unless `overwrite`: then
    an adapter's folder is replaced.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise atomic.taken(out)
    if len(inputs) < 2:
        raise CommonweightError(f"adapters: {len(inputs)} given; give at least two")
    configs, states = zip(*(_read(Path(x).expanduser()) for x in inputs))
    weights = plain(weights)
    given = {} if weights is None else {"weights": weights}
    if method == "linear":
        sums = coefficients(get(method), {**options, **given}, len(inputs))
        done = lora(states, weights=sums, rank=rank)
    else:
        sums = [weights] * len(inputs) if isinstance(weights, int | float) else weights
        done = lora(states, weights=sums, method=method, rank=rank, **options)
    modules = sorted(k.removesuffix(A) for k in done.adapter if k.endswith(A))
    found = {m: Low(done.adapter[m + A], done.adapter[m + B], done.error.get(m, 0.0)) for m in modules}
    kept = {k: v for k, v in configs[0].items() if k not in ("loftq_config", "eva_config", "corda_config")}
    config = {**kept, **low_rank.config(found, configs[0].get("lora_dropout") or 0.0), "inference_mode": True}
    notices = tuple(
        f"{x}: its base is called {c.get(_BASE)!r}, that of {inputs[0]} {configs[0].get(_BASE)!r}; that they are the "
        "same cannot be seen here"
        for x, c in zip(inputs, configs)
        if c.get(_BASE) != configs[0].get(_BASE)
    )
    report = {
        "method": f"{method} of adapters",
        "of": [str(x) for x in inputs],
        "weights": sums,
        "options": options,
        "modules": {m: {"rank": len(x.A), "error": x.error} for m, x in found.items()},
        "notices": list(notices),
    }
    keyed = {peft.PREFIX + k: t for k, t in low_rank.tensors(found).items()}
    return MergedFolder(peft.folder.write(out, config, keyed, report, overwrite), done.error, notices)


_BASE = "base_model_name_or_path"


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """(config, factors by the names of modules, with the scale in B)."""
    label = f"adapter ({path})"
    config = plain_config(label, path)
    file = Files(label, [path / TENSORS])
    scales, out = module_scales(label, config, file), {}
    for module, scale in scales.items():
        for end, by in ((A, 1.0), (B, scale)):
            if peft.PREFIX + module + end not in file.shapes:
                raise CommonweightError(f"{label}: {peft.PREFIX + module + end} is missing beside its other factor")
            out[module + end] = file.read(peft.PREFIX + module + end).float() * by
    if len(file.shapes) != len(out):
        odd = next(k for k in file.shapes if k.removeprefix(peft.PREFIX) not in out)
        raise CommonweightError(f"{label}: {odd} has no A beside it")
    return config, out
