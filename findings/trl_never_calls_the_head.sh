#!/usr/bin/env bash
# TRL's SFTTrainer computes the loss without calling the output head: hooks on `lm_head` never run.
#
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
# What runs: two steps of SFTTrainer and two of transformers' Trainer on the same model, with a forward hook on `lm_head`
#   that counts its calls. TRL's settings are its defaults (besides CPU and step count).
# Expected: the head runs once a step in both; a hook there can watch or change the logits.
# What came: Trainer calls it at every step, SFTTrainer never. It swaps the model's forward for one that multiplies the hidden
#   states by `lm_head.weight` in pieces. TRL refuses PEFT adapters on `lm_head` for this reason, by name; a hook,
#   a parametrised forward or a head of another class is passed by without a word.
# Output:
#   calls of the head in two steps: Trainer 2, SFTTrainer 0
#   calls of the model in two steps: Trainer 2, SFTTrainer 2
# Who it hurts: adapters, probes and logit processors that work by hooks on the head.
# Our test: tests/host/test_module.py (test_a_weight_that_others_multiply_by_is_the_tenants).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 trl==1.16.0
cd "$work"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_DATASETS_CACHE="$work/cache" "$work/venv/bin/python" - <<'EOF'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", "red", "green", "blue", "sky"])}
raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
)
how = dict(
    output_dir="out", per_device_train_batch_size=2, max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
    save_strategy="no", bf16=False,
)  # fmt: skip


def counted(train):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    )
    head, whole = [], []
    model.lm_head.register_forward_hook(lambda *_: head.append(1))
    model.register_forward_hook(lambda *_: whole.append(1))
    train(model)
    return len(head), len(whole)


def trainer(model):
    rows = [{"input_ids": r, "labels": r} for r in torch.randint(4, 8, (4, 6))]
    Trainer(model=model, args=TrainingArguments(**how), train_dataset=rows).train()


def sft(model):
    rows = Dataset.from_list([{"text": "blue sky"}, {"text": "red sky"}] * 2)
    args = SFTConfig(gradient_checkpointing=False, **how)
    SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer).train()


(a, whole_a), (b, whole_b) = counted(trainer), counted(sft)
print(f"calls of the head in two steps: Trainer {a}, SFTTrainer {b}")
print(f"calls of the model in two steps: Trainer {whole_a}, SFTTrainer {whole_b}")
raise SystemExit((a, b, whole_a, whole_b) != (2, 0, 2, 2))
EOF
