"""commonweight adapt: train one tenant on one data file, several together, or one that comes late to a common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import one_file
from .said import Said
from .training import line, run

__all__ = ["EXAMPLES", "command", "line"]

EXAMPLES = """[bold]Examples[/bold]

A classifier of six classes, measured on a test file:

  commonweight adapt sentence-transformers/all-MiniLM-L6-v2 train.tsv --method mos -o rank=8 --eval test.tsv --out legal.safetensors

A language model on prompt and completion, with a tenth of the rows held out:

  commonweight adapt ./my-model chats.jsonl --task lm --method lora --dev 0.1 --out tone.safetensors

Preferences (prompt, chosen, rejected), by DPO:

  commonweight adapt ./my-model pairs.jsonl --task dpo --method lora --dev 0.1 --out taste.safetensors

Several tenants that share parameters, trained together into a store; then a late tenant, which adds only its own numbers:

  commonweight adapt MODEL --tenants tenants.yaml --store store

  commonweight adapt MODEL cr.tsv --dev 0.1 --store store --common sentences --tenant cr

A tenant that weighs two of the store, for rows that are between them:

  commonweight adapt MODEL both.tsv --method xlora --over legal,tone --store store --tenant both

Tasks that come one after another, with a page of what is forgotten:

  commonweight adapt MODEL --stream tasks.yaml --method replay --store shop --eval

The same from a file, with another seed:

  commonweight adapt tone.yaml --seed 1 --out tone1.safetensors

A run that was killed goes on where it stopped, and ends with the same bits:

  commonweight adapt ./my-model chats.jsonl --task lm --method lora --dev 0.1 --out tone.safetensors --resume
"""  # noqa: E501

DATA, METHOD, TRAINING, READING = "Data", "Method", "Training", "Reading the data"


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder or hub name of the base model; it is never written. Or a YAML file, see --config.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Training rows: a .jsonl, .csv, .tsv or .parquet file, a hub data set, or a folder of images or "
            "sounds with a folder for each class.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The tenant's file, ending in .safetensors; a .json report is written beside it. With --tenants, a "
            "folder."
        ),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Publish into this store, in place of --out.")] = None,
    tenants: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Train several tenants together, as described in a YAML file."),
    ] = None,
    stream: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Learn the tasks of a YAML file one after another, into --store. --method is then one of `methods "
            "--lifelong`; --eval, without a file, measures all tasks after each.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the flags from a YAML file, as in batch_size: 8, with MODEL and DATA as model and data, and -o "
            "as options: {rank: 8}. Paths are relative to the file. Flags on the command line take precedence.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    common: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --store: train a late tenant of this common. The common's pools do not change; method, options "
            "and layers are those of its tenants.",
        ),
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Tenants that the new one stands on and weighs, for --method psec, xlora, lorahub, autolora, arrow or "
            "phatgoose: names in --store, as in legal,tone@2, or with --out their files. They do not change.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classify: text and label. lm: text, prompt and completion, or a chat. embed: pairs of texts. "
            "dpo, orpo: prompt, chosen, rejected. kto: prompt, completion, label. grpo: prompt, and --reward. "
            "Without it, classify."
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant's name; without it, the name of the file.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", help="The method (mos); `commonweight methods` lists all.", rich_help_panel=METHOD
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="An option of the method; may be repeated.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Which layers, as a pattern: '*.query|*.value'. Without it, the method's own, which are ... in a "
            "pattern: '...|embeddings'; ! leaves out: '!*.layers.0.*'.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    modules_to_save: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Modules whose weights are trained and stored whole, beside the method: embed_tokens,lm_head.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    token_rows: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Entries of the table of tokens that are trained beside the method: 5,7,32000-32003; or added: those "
            "that the tokenizer has beyond the base's.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of a tokenizer with tokens or a chat template of its own; serve, generate and "
            "chat are then given the same. Without it, MODEL's.",
            rich_help_panel=READING,
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Store the pools in fewer bytes: bfloat16, int8, int4, compeft or onebit, or ordered, the places of "
            "sparse methods. What is measured is what the file holds.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    eval_file: Annotated[
        str | None,
        typer.Option("--eval", metavar="FILE", help="Rows to measure the trained tenant on.", rich_help_panel=DATA),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FRACTION",
            help="Rows, or a share of the training rows, to measure after each epoch; the best state is kept, and "
            "training stops early.",
            rich_help_panel=DATA,
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data (3; more for few rows).", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows at a time (32).", rich_help_panel=TRAINING)] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Batches per step (1): the step of a larger batch in the memory of a small one.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    eval_batch_size: Annotated[
        int | None, typer.Option(help="Rows at a time when measuring (as --batch-size).", rich_help_panel=TRAINING)
    ] = None,
    packing: Annotated[
        bool,
        typer.Option(
            "--packing",
            help="lm: rows side by side in sequences of --max-length tokens; none sees another. --batch-size counts "
            "sequences.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    beta: Annotated[
        float | None,
        typer.Option(
            help="dpo, kto, grpo: how strongly the base pulls; orpo: weight of the odds ratio (TRL's own).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    generations: Annotated[
        int | None,
        typer.Option(help="grpo: completions of each prompt (8); --batch-size counts them.", rich_help_panel=TRAINING),
    ] = None,
    completion_length: Annotated[
        int | None, typer.Option(help="grpo: tokens of a completion (256).", rich_help_panel=TRAINING)
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="grpo: the reward, also FILE.py:FUNCTION. It gets prompts, completions and the other columns, and "
            "gives one number for each completion.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adamw (without it), adamw-8bit, adafactor, lion, lion-8bit, muon, prodigy, schedule-free, sgd, or "
            "gradnormlorp for whole weights (-m full).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lora_plus: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="LoRA+: B's learning rate over A's, 16 say.", rich_help_panel=TRAINING),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Less memory, about a third more time, the same result.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16",
            help="Compute in bfloat16, keep and update the numbers as they are (mixed precision).",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate (the method's own).", rich_help_panel=TRAINING)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens per row (128; lm: 512).", rich_help_panel=TRAINING)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Epochs without a better dev score before it stops (3).", rich_help_panel=TRAINING),
    ] = None,
    rows_shown: Annotated[
        int | None,
        typer.Option(help="Rows from which eva, fish and lora-ga begin (256).", rich_help_panel=TRAINING),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Rows of which salora, and corda with -o mode=kpm, keep what the model makes.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same result, bit for bit (0).", rich_help_panel=TRAINING)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Dtype of the frozen base: auto, float32 or bfloat16. auto: bfloat16 where the device is fast in it.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda, cuda:1 or mps. auto: CUDA where there is one.", rich_help_panel=TRAINING),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="Pack the frozen base as it is loaded: nf4, nf4-double, fp4 or int8 (bitsandbytes), torchao-int8, "
            "torchao-int4, torchao-float8, quanto-int8, quanto-int4.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Started by torchrun: each process holds a share of the frozen base (FSDP2), not all of it.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="auto|JSON",
            help="Where parts of the frozen base lie, as in transformers: auto, or modules with a device, cpu or disk "
            "each. What lies elsewhere is loaded when it runs.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the base's blocks.", rich_help_panel=TRAINING)
    ] = False,
    liger: Annotated[
        bool, typer.Option("--liger", help="Liger's kernels in the base, on a GPU.", rich_help_panel=TRAINING)
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints (100).", rich_help_panel=TRAINING)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a killed run of the same settings.", rich_help_panel=TRAINING)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show how the rows were read, and stop before the first step. Nothing is written.",
            rich_help_panel=READING,
        ),
    ] = False,
    log_to: Annotated[
        str | None,
        typer.Option(
            metavar="tensorboard|trackio[:FOLDER]", help="Write the curves there too.", rich_help_panel=TRAINING
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Upload the tenant's file and its report to the Hugging Face hub, into a private repository or one "
            "that is there; needs `hf auth login`, and --out.",
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text (embed: of the anchor).", rich_help_panel=READING)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the label (embed: of the positive).", rich_help_panel=READING)
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="lm: column of the prompt, which is not scored.", rich_help_panel=READING)
    ] = None,
    completion_column: Annotated[
        str | None, typer.Option(help="lm: column of the completion, which is scored.", rich_help_panel=READING)
    ] = None,
    task_column: Annotated[
        str | None,
        typer.Option(
            help="classify: column of a row's task, for methods that go by tasks (poly tasks=trec,sst2).",
            rich_help_panel=READING,
        ),
    ] = None,
    truncation_side: Annotated[
        str | None,
        typer.Option(
            metavar="left|right",
            help="Where rows longer than --max-length are cut (lm: chats at their end, pairs first at the beginning of "
            "the prompt).",
            rich_help_panel=READING,
        ),
    ] = None,
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="The first line of a CSV or TSV file is data.", rich_help_panel=READING),
    ] = False,
) -> None:
    """Train one tenant of a base model and write it to one small file, or publish it into a store.

    The base stays frozen. A CSV file has a header line. A TSV file has a header line of usual column names, or one or
    two columns and no header. Quotation marks in TSV files are plain characters. With --tenants, several tenants are
    trained together, and the file has all settings.
    """
    said = {k: v for k, v in locals().items() if not (v is None or v is False or v == [])}
    if config is None and model is not None and model.endswith((".yaml", ".yml")) and not Path(model).is_dir():
        said["config"] = Path(said.pop("model"))
    options: dict[str, Any] = {}
    if "config" in said:
        said, options = one_file.filled(said.pop("config"), said)
    run(Said(**said), options)
