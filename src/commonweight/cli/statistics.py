"""commonweight statistics: what merge methods must know of data, collected once from a model and rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

EXAMPLES = """[bold]Examples[/bold]

For Fisher merging and RegMean, of a classifier on a part of its training rows:

  commonweight statistics ./legal train.tsv --rows 256 --out legal.stats.safetensors

A language model's Gram matrices alone:

  commonweight statistics ./tone chats.jsonl --task lm --kinds gram --out tone.stats.safetensors

Then pass one file for each model, in order:

  cw.merge.fisher((legal, news), statistics=("legal.stats.safetensors", "news.stats.safetensors"))
"""

READING = "Reading the data"


def command(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a fine-tuned model; it is never written.")],
    data: Annotated[str, typer.Argument(help="Rows: a .jsonl, .csv, .tsv or .parquet file, or a hub data set.")],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .safetensors.")],
    task: Annotated[
        str, typer.Option(help="classify: texts (labels are needed for --labels data). lm: as in adapt.")
    ] = "classify",
    kinds: Annotated[
        str, typer.Option(help="Which statistics, separated by commas: fisher, gram, activations.")
    ] = "fisher,gram",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Labels for fisher: exact (all classes; the default of classify), sample (drawn from the model; the "
            "default of lm) or data (those of the rows)."
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Use this many rows, drawn by the seed (all).")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to keep for each layer, for activations.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Rows in one forward pass; does not change the result.")] = 16,
    max_length: Annotated[int | None, typer.Option(help="Tokens per row (128; lm: 512).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for --rows and --labels sample.")] = 0,
    text_column: Annotated[str | None, typer.Option(help="Column of the text.", rich_help_panel=READING)] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label.", rich_help_panel=READING)] = None,
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="The first line of a CSV or TSV file is data.", rich_help_panel=READING),
    ] = False,
) -> None:
    """Collect statistics of a model for the merge methods that need them, in one file.

    fisher: the diagonal of the Fisher information, exact row by row. gram: X'X of what comes into each linear layer.
    activations: the first of those inputs themselves.
    """
    from ..adapt.rows import read
    from ..core import CommonweightError, unknown
    from ..formats import atomic
    from . import early

    early.model(model, task)
    early.rows(data)
    if out.suffix != ".safetensors":
        raise CommonweightError(f"--out {out}: wanted a name like {out.stem}.safetensors")
    atomic.free(out, "--out", overwrite=overwrite)

    from ..merge.statistics.collect import KINDS, collect

    if task not in ("classify", "lm"):
        raise unknown("task", task, ("classify", "lm"))
    asked = [k.strip() for k in kinds.split(",") if k.strip()]
    for kind in asked:
        if kind not in KINDS:
            raise unknown("kind of statistics", kind, KINDS)
    how = labels or ("sample" if task == "lm" else "exact")
    if how not in ("exact", "sample", "data"):
        raise unknown("--labels", how, ("exact", "sample", "data"))
    for name, n in (("--rows", rows), ("--tokens", tokens), ("--batch-size", batch_size)):
        if n is not None and n < 1:
            raise CommonweightError(f"{name} is {n}; it must be at least 1")
    columns = [c for c in (text_column, label_column) if c]
    found = _drawn(read(data, columns, no_header=no_header, say=lambda s: typer.echo(s, err=True)), rows, seed)
    net, tokenizer = _open(model, task, "fisher" in asked)
    where = {"text_column": text_column, "label_column": label_column}
    batches = _batches(net, tokenizer, task, found, how, max_length, batch_size, where)
    header = {"model": model, "task": task, "data": data, "rows": _digest(batches)}
    collected = collect(net, batches, asked, labels=how, tokens=tokens, seed=seed, header=header)
    file = collected.save(out, overwrite=overwrite)
    typer.echo(f"{out}: {', '.join(asked)} of {counted(len(found), 'row')}, {file.stat().st_size:,} bytes")


def _drawn(found: list[Any], n: int | None, seed: int) -> list[Any]:
    from ..core import Rng

    if n is None or n >= len(found):
        return found
    return [found[i] for i in sorted(Rng(seed, "rows").permutation(len(found))[:n].tolist())]


def _open(model: str, task: str, needs_head: bool) -> tuple[nn.Module, Any]:
    """The model in float32 with the head that the task reads, and its tokenizer."""
    import transformers as tf
    from transformers.utils import logging

    from ..adapt.base import tokenizer_of
    from ..builder.load import config_of, opened
    from ..core import CommonweightError, first_line

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        kinds = config_of(model).architectures or [""]
        head = kinds[0].endswith("ForSequenceClassification")
        if task == "classify" and needs_head and not head:
            raise CommonweightError(
                f"model {model!r} is a {kinds[0] or 'model of unknown kind'} without a classifier, which fisher needs; "
                "give a ...ForSequenceClassification, or --kinds gram"
            )
        auto = tf.AutoModelForCausalLM if task == "lm" else tf.AutoModelForSequenceClassification if head else None
        net = opened(auto or tf.AutoModel, model, dtype="float32")
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as e:
        if isinstance(e, CommonweightError):
            raise
        raise CommonweightError(f"model {model!r} cannot be read for the task {task!r}: {first_line(e)}") from e
    return net, tokenizer_of(net)


def _batches(
    net: nn.Module, tokenizer: Any, task: str, rows: Sequence[Any], how: str, max_length: int | None, size: int,
    where: Mapping[str, str | None],
) -> list[dict[str, Tensor]]:  # fmt: skip
    from ..adapt.base import limit
    from ..adapt.rows import TEXT, column, text_of
    from ..adapt.tasks import LM, Classify
    from ..adapt.tasks.base import padded

    kind = LM if task == "lm" else Classify
    length = limit(net, tokenizer, max_length, kind.usual_length)
    if task == "classify" and how != "data":  # no labels are read
        name = column(rows, where["text_column"], TEXT, "text")
        texts = [text_of(r, name, i) for i, r in enumerate(rows)]
        ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        return [padded(ids[i : i + size], tokenizer.pad_token_id) for i in range(0, len(ids), size)]
    names = None if task == "lm" else _classes(net, rows, where["label_column"])
    doing = kind(tokenizer, length, names, **where)
    examples = doing.examples(rows)
    return [doing.collate(examples[i : i + size]) for i in range(0, len(examples), size)]


def _classes(net: Any, rows: Sequence[Any], label_column: str | None) -> tuple[str, ...]:
    """The model's classes by their names; where it has none but LABEL_0, ..., the rows' own, in their order."""
    from ..adapt.tasks import Classify
    from ..core import CommonweightError

    told = [str(net.config.id2label[i]) for i in range(net.config.num_labels)]
    if not all(name == f"LABEL_{i}" for i, name in enumerate(told)):
        return tuple(told)
    found = Classify.classes(rows, label_column)
    if len(found) != len(told):
        raise CommonweightError(
            f"the rows have {counted(len(found), 'label')}, the model {len(told)} classes without names; name them "
            "in its config"
        )
    return found


def _digest(batches: Sequence[Mapping[str, Tensor]]) -> str:
    """Of the rows as the model reads them, whatever the size of a batch."""
    import hashlib

    h, count = hashlib.blake2b(digest_size=8), 0
    for batch in batches:
        mask = batch["attention_mask"].bool()
        for i in range(len(mask)):
            count += 1
            for name, t in sorted(batch.items()):
                kept = t[i] if t.dim() == 1 else t[i][mask[i]]
                h.update(f"{name} {kept.tolist()}\n".encode())
    return f"{count} rows {h.hexdigest()}"
