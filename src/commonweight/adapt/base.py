"""Opening a base model for a task: its dtype, its tokenizer, its host."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..builder.adapter import folder_of
from ..builder.load import opened, reading, speaking
from ..builder.load import tokenizer as tokenizer_at
from ..core import CommonweightError, counted, first_line, unknown
from ..host import Host
from ..host.coverage import in_float
from ..host.origin import quantised
from ..host.weights import device_of
from . import kernels, offload, processes
from . import liger as ligers
from . import shard as shards
from .classifier import POOLER, Classifier, pool_of_transformers
from .names import CAUSAL, DEVICES, DTYPES, EXPERTS
from .quantise import configuration
from .sensed import Sensed
from .suited import check_alone, check_causal, check_reads
from .tasks import get
from .tasks.sensing import EXTRA


def native_bf16(device: str = "cpu") -> bool:
    """Whether the processor multiplies bfloat16 in hardware: AVX512-BF16 or AMX, or a CUDA device that does."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def pick_device(device: str = "auto") -> str:
    """The CUDA device in use, else the CPU; or as named: cpu, mps, cuda, cuda:1, which is then the one in use.

    Raises: CommonweightError for another name, and for a device that torch does not see.
    """
    if not re.fullmatch(DEVICES, str(device)):
        raise CommonweightError(f"device {device!r}: wanted auto, cpu, cuda, cuda:1 or mps")
    if processes.world() > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{processes.local()}"
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise CommonweightError(f"device {device!r}: torch sees {there} CUDA devices; choose another, or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise CommonweightError("device 'mps': torch has no MPS here; choose cpu")
    if number:
        torch.cuda.set_device(int(number))  # the loop runs on the one in use
    return kind


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """The frozen base's dtype by name; "auto" is bfloat16 where the processor has it. Pools stay float32."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if dtype == "auto":
        dtype = "bfloat16" if native_bf16(device) else "float32"
    return getattr(torch, dtype)


def open_host(
    model: str | Path, task: str = "classify", *, dtype: str = "auto", sites: Any = None, pool: str | None = None,
    device: str = "auto", quantize: str | None = None, shard: bool = False,
    device_map: offload.Map | None = None, liger: bool = False,
) -> Host:  # fmt: skip
    """A host of a model from a folder or the hub, ready for a task's tenants.

    Hosts for classify and embed wrap the encoder in a `Classifier`; a host for lm has the causal model. pool: how
    features are pooled for heads; "transformers" pools like transformers' own classifier, for heads from PEFT.
    By default its tenants read the language's sites alone, where the model has other senses too: rows are texts.
    device: see `pick_device`. quantize: packs the frozen base as it is loaded, ``"nf4"``; see `names.QUANTISED`.
    shard: each of several processes holds a share of the base, see `shard`; all of them must then ask for whatever
    reads it. device_map: where its parts lie, as transformers has it, see `offload`. liger: Liger's kernels, on a GPU.
    Raises: CommonweightError if the model cannot be read, or does not suit the task.
    """
    get(task)
    if task in CAUSAL:
        check_alone(model, task)
    auto = speaking(model) if task in CAUSAL else reading(model)
    device, shard = pick_device(device), shards.asked(shard)
    for what, said in {"quantize": quantize, "device_map": device_map}.items() if shard else ():
        if said is not None:
            raise CommonweightError(f"shard: with {what} {said!r} the base cannot be sharded; leave one of the two out")
    if liger:
        ligers.check()
    if device == "cpu":
        kernels.few()
    wanted = pick_dtype(dtype, device)
    # On a CPU in bfloat16 the backward pass of torch's fused attention takes a third of a step over short rows.
    short = device == "cpu" and wanted is torch.bfloat16 and task not in CAUSAL
    how: dict[str, Any] = {"attn_implementation": "eager"} if short else {}
    if quantize is not None:
        how |= {"quantization_config": configuration(quantize, wanted, model), "device_map": {"": device}}
    folder = None
    if device_map is not None:
        more, folder = offload.how(device_map)
        how |= more
    path = Path(model)
    if path.exists() and not (path / "config.json").is_file() and folder_of(path) is None:
        raise CommonweightError(
            f"model {str(model)!r}: no config.json there; wanted a folder that save_pretrained wrote"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base: Any
            base, found = opened(auto, model, dtype=wanted, output_loading_info=True, **how)
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError, SafetensorError) as e:
        raise CommonweightError(
            f"model {str(model)!r} cannot be read for the task {task!r}: {first_line(e)}; give a folder "
            "with config.json and model.safetensors, or a name on the hub"
        ) from e
    if folder is not None:
        offload.placed(base, folder)
    if liger:
        ligers.patch(base, device)

    def settled(whole: nn.Module) -> nn.Module:
        if shard:
            return shards.shard(whole, device)
        return whole if quantize or device_map is not None else whole.to(device)

    if task in CAUSAL:
        host = Host(settled(base).eval(), sites=sites)
        host.base.only("language")
        check_causal(
            host.model, str(model), sorted(found["missing_keys"])
        )  # under a host packed layers stay as they are
        return _warn(host, quantize)
    if sensed := check_reads(base, str(model), task):
        if pool == "transformers":
            raise CommonweightError(f"pool 'transformers' is of texts; of {sensed} take mean, cls or pooler")
        return _warn(Host(settled(Sensed(base, pool)).eval(), sites=sites), quantize)
    if pool == "transformers":
        pool = pool_of_transformers(base.eval())
    if pool == POOLER and (lost := [k for k in found["missing_keys"] if "pooler" in k]):
        raise CommonweightError(f"model {str(model)!r} has no weights for {lost[0]}, which its classifier reads")
    host = Host(settled(Classifier(base, pool)).eval(), sites=sites)
    host.base.only("language")
    return _warn(host, quantize)


def where(host: Host) -> str:
    """What a run computes on, for people: ``device: cpu, 2 threads; the base in bfloat16``."""
    dtype, device = next(host.model.parameters()).dtype, device_of(host.model)
    if device.type == "cuda":
        on = f"{device}, {torch.cuda.get_device_name(device)}"
    else:
        threads = counted(torch.get_num_threads(), "thread")
        on = f"{device}, {threads}" if device.type == "cpu" else str(device)
    more = ""
    if (form := quantised(host.model)) is not None:
        more = f", packed as {form}{_but_for(host)}"
    if away := sum(p.numel() for p in host.model.parameters() if p.device.type == "meta"):
        more += f", {away / sum(p.numel() for p in host.model.parameters()):.0%} of it put away until it runs"
    if shards.sharded(host.model):
        more += f", shared by {processes.world()} processes"
    return f"device: {on}; the base in {str(dtype).removeprefix('torch.')}{more}"


def _but_for(host: Host) -> str:
    """What of a packed base is not packed."""
    kept = in_float(host.base)
    parts = [f"{k} {n:.0%}" for k, n in kept.items() if n >= 0.005]
    return f" but for {sum(kept.values()):.0%} of the weights ({', '.join(parts)})" if parts else ""


def _warn(host: Host, quantize: str | None) -> Host:
    """Tells of experts that no library packs: they are most of a mixture; and of layers that a CPU's kernel cannot."""
    kept = {} if quantize is None else in_float(host.base)
    if (share := kept.get("experts", 0)) >= 0.005:
        more = "" if quantize in EXPERTS else f"; {', '.join(EXPERTS)} pack experts"
        _left(host, quantize, f"experts, {share:.0%}, are left as they were{more}")
    if quantize in EXPERTS and device_of(host.model).type == "cpu" and (share := kept.get("layers", 0)) >= 0.005:
        rows = "of rows of no multiple of 64 bitsandbytes reads other numbers on a CPU"
        _left(host, quantize, f"layers, {share:.0%}, are left as they were; {rows}")
    return host


def _left(host: Host, quantize: str | None, what: str) -> None:
    warnings.warn(f"quantize={quantize!r}: the base is packed{_but_for(host)}; its {what}", stacklevel=4)


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer that lies beside a model's weights, padding on the right, with a pad token."""
    known = model.__dict__.get("_cw_tokenizer")
    if known is not None:
        return known
    where = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not where:
        raise CommonweightError("this model does not name its source; give adapt() its tokenizer")
    return take_tokenizer(model, where)


def take_tokenizer(model: nn.Module, where: str) -> Any:
    """From now on the model's texts are read with the tokenizer of a folder or hub name."""
    sense: Any = getattr(model, "sense", None)
    if sense is not None:
        model.__dict__["_cw_tokenizer"] = processor_at(where, sense)
        return model.__dict__["_cw_tokenizer"]
    try:
        tokenizer = tokenizer_at(where)
    except (OSError, ValueError, KeyError, ImportError) as e:
        raise CommonweightError(
            f"no tokenizer can be read at {str(where)!r}: {first_line(e)}; give --tokenizer (tokenizer=) a folder that "
            "a tokenizer was saved into (save_pretrained), or a name on the hub"
        ) from e
    model.__dict__["_cw_tokenizer"] = prepare(tokenizer)
    return tokenizer


def processor_at(where: str, sense: str) -> Any:
    """The image processor or feature extractor of a folder or hub name. Raises: CommonweightError for none there."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    auto = AutoImageProcessor if sense == "image" else AutoFeatureExtractor
    try:
        return auto.from_pretrained(str(where))
    except (OSError, ValueError, KeyError, TypeError, ImportError) as e:
        raise CommonweightError(
            f"no {'image processor' if sense == 'image' else 'feature extractor'} can be read at {str(where)!r}: "
            f"{first_line(e)}; give --tokenizer (tokenizer=) a folder with its preprocessor_config.json, or a name on "
            "the hub" + (f" ({EXTRA})" if isinstance(e, ImportError) else "")
        ) from e


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hex digits that two tokenizers share when they make the same tokens of every text and chat."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    tokens = dict(tokenizer.get_vocab()) if fast is None else json.loads(fast.to_str())
    about_a_call = {"truncation", "padding"} if fast is not None else set()
    tokens = {k: v for k, v in tokens.items() if k not in about_a_call}
    about = [tokens, tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.model_max_length]
    told = json.dumps(about, sort_keys=True, default=str)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def prepare(tokenizer: Any) -> Any:
    """Pads on the right; a tokenizer without a pad token pads with its end token."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise CommonweightError("the tokenizer has neither a pad nor an end token; set tokenizer.pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def limit(model: nn.Module, tokenizer: Any, wanted: int | None, usual: int) -> int:
    """Tokens per row: as wanted, or the usual number where the model has room for it.

    Raises: CommonweightError when more is wanted than the model has positions for.
    """
    config = getattr(model, "config", None)
    room = [n for n in (getattr(config, k, None) for k in ("max_position_embeddings", "n_positions")) if n]
    # RoBERTa's kind loses the places up to its pad token's number.
    shift = (getattr(config, "pad_token_id", 0) or 0) + 1 if "roberta" in getattr(config, "model_type", "") else 0
    most = min([*room, tokenizer.model_max_length]) - shift if room else tokenizer.model_max_length
    if wanted is not None and wanted > most:
        raise CommonweightError(f"max_length={wanted} is more than the model's {most} positions; lower it")
    return min(wanted or usual, most)
