"""What an encoder says of a row: a vector, or scores of classes; and how its folder wants them made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapt.classifier import Classifier, decoder_only, pooled
from ..core import CommonweightError
from ..host import Host, Tenant

_POOLS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}  # sentence-transformers' names -> ours


class Outputs:
    """Vectors and scores of one hosted encoder.

    The model is a `Classifier` (whose tenants bring heads), a model of transformers with a head of its own (one of
    `AutoModelForSequenceClassification`), or one without (of `AutoModel`). pool: "mean", "last" or "cls", of a model
    that is no Classifier; None: "last" for decoders, "mean" for others. A Classifier pools as it was made.
    """

    def __init__(self, model: nn.Module, pool: str | None = None):
        self.model: Any = model
        self.config: Any = model.config
        self.ours = isinstance(model, Classifier)
        self.pool = model.pool if isinstance(model, Classifier) else pool or usual(self.config)
        self.headed = not self.ours and any("ForSequenceClassification" in c.__name__ for c in type(model).__mro__)
        names = getattr(self.config, "id2label", None) or {}
        self.own = tuple(str(names[i]) for i in sorted(names)) if self.headed else None

    def labels(self, tenant: Tenant | None) -> tuple[str, ...] | None:
        """The classes that a reader tells apart; None for one without a head."""
        return self.own if tenant is None or tenant.labels is None else tenant.labels

    def vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, d) in float32, not of unit length."""
        if self.ours:
            return self.model(**batch, output_features=True).hidden_states[0].float()
        out = self.model(**batch, output_hidden_states=True) if self.headed else self.model(**batch)
        hidden = out.hidden_states[-1] if self.headed else out.last_hidden_state
        return pooled(hidden.float(), batch["attention_mask"], self.pool)

    def scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes) in float32; narrower heads of a mixed batch end in -inf."""
        return self.model(**batch).logits.float()

    def shares(self, logits: Tensor, tenant: Tenant | None) -> Tensor:
        """Of each class, from 0 to 1: a softmax; each by itself (sigmoid) for one class, or where the config says that
        several hold at once. The number itself for a regression."""
        whose = self.config if tenant is None or tenant.labels is None else None
        kind = getattr(whose, "problem_type", None)
        if kind == "regression" or (len(logits) == 1 and self._plain):
            return logits
        if len(logits) == 1 or kind == "multi_label_classification":
            return logits.sigmoid()
        return logits.softmax(-1)

    @property
    def _plain(self) -> bool:
        """Whether sentence-transformers would give a cross-encoder's score as it is."""
        told = (getattr(self.config, "sentence_transformers", None) or {}).get("activation_fn")
        told = told or getattr(self.config, "sbert_ce_default_activation_function", None)
        return str(told).endswith("Identity")


def usual(config: Any) -> str:
    return "last" if decoder_only(config) else "mean"


def headed(model: str) -> bool:
    """Whether a folder or hub name is a classifier with a head of its own."""
    return any("ForSequenceClassification" in a for a in _said(model, "config.json").get("architectures") or ())


def generates(model: str) -> bool:
    """Whether a folder or hub name is a language model, or does not say what it is."""
    names = _said(model, "config.json").get("architectures") or ("ForCausalLM",)
    return any(a.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in names)


def pool_of(model: str) -> str | None:
    """How sentence-transformers pools a model's vectors, by the files in its folder; None where it does not say.

    Raises: CommonweightError for a way of pooling, or a layer after it, that is not served.
    """
    modules = _said(model, "modules.json", [])
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
    if more := [k for k in kinds if k not in ("Transformer", "Pooling", "Normalize")]:
        raise CommonweightError(
            f"{model}: its vectors go through {more[0]} after pooling, which is not served; name the pooling "
            "(mean, last or cls) to serve the pooled vectors as they are"
        )
    folder = next((str(m.get("path", "")) for m, k in zip(modules, kinds) if k == "Pooling"), None)
    if folder is None:
        return None
    told = _said(model, f"{folder}/config.json")
    modes = [m.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for m, on in told.items() if on is True and m.startswith("pooling_mode_")]  # fmt: skip  # noqa: E501
    modes = modes or [str(told.get("pooling_mode", "mean"))]
    if len(modes) != 1 or modes[0] not in _POOLS:
        raise CommonweightError(
            f"{model}: its vectors are pooled by {' and '.join(modes)}, which is not served; name another pooling "
            "(mean, last or cls)"
        )
    return _POOLS[modes[0]]


def length_of(model: str) -> int | None:
    """The most tokens that sentence-transformers reads of a text, where its folder says."""
    found = _said(model, "sentence_bert_config.json").get("max_seq_length")
    return int(found) if found else None


def _said(model: str, name: str, otherwise: Any = None) -> Any:
    """A JSON file beside a model, of a folder or the hub."""
    otherwise = {} if otherwise is None else otherwise
    if not model:
        return otherwise
    path: Any = Path(model) / name
    if not Path(model).exists():
        from transformers.utils.hub import cached_file

        try:
            path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        except OSError:
            return otherwise
    try:
        return json.loads(Path(path).read_text("utf-8")) if path is not None and Path(path).is_file() else otherwise
    except ValueError as e:
        raise CommonweightError(f"{model}: {name} is no JSON: {e}") from e


def opened(model: str, task: str, dtype: str = "auto", device: str = "cpu", pool: str | None = None) -> Host:
    """A host of an encoder from its folder or the hub.

    task: "rerank", and "auto" for a model that has a head, keep its own head; "embed" and "classify" put the encoder
    alone into a `Classifier`, which is what `commonweight adapt` trains tenants on. dtype: "auto" is the files' own.
    Raises: CommonweightError where it cannot be loaded.
    """
    from ..adapt.base import open_host
    from ..builder.load import opened as read_by

    if dtype == "auto":
        told = _said(model, "config.json")
        dtype = "bfloat16" if (told.get("dtype") or told.get("torch_dtype")) == "bfloat16" else "float32"
    if task in ("auto", "rerank") and headed(model):
        from transformers import AutoModelForSequenceClassification

        try:
            kind = getattr(torch, dtype)
            found: Any = read_by(AutoModelForSequenceClassification, model, dtype=kind)
        except (OSError, ValueError) as e:
            raise CommonweightError(f"{model}: no classifier can be loaded there: {str(e).splitlines()[0]}") from e
        return Host(found.eval().to(torch.device(device)))
    host = open_host(model, "embed", dtype=dtype, device=device, pool=pool or pool_of(model))
    host.model.config._name_or_path = model  # type: ignore[union-attr]
    return host
