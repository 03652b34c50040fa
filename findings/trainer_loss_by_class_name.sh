#!/usr/bin/env bash
# Trainer counts and smooths labels by the NAME of the model's class: a renamed subclass has another loss.
#
# Versions: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# What runs: `Trainer.evaluate` on LlamaForCausalLM and on `class Assistant(LlamaForCausalLM): pass` with the same weights and
#   rows (12 tokens each), with and without label smoothing.
# Expected: the same loss; an empty subclass is the same model. The models' own `.loss` is equal.
# What came: without smoothing the subclass reports 11/12 of the loss: the sum over shifted labels is divided by the count of
#   unshifted ones, because `loss_type` is guessed from the class's name. With smoothing its labels are not shifted
#   at all (the class's name is looked up in a list): another objective. On a random model that looks harmless; on a model that
#   predicts the next token well it trains the wrong one.
# Output:
#   model's own loss: equal True
#   eval_loss, no smoothing: subclass / class = 0.9167 (11/12 = 0.9167)
#   smoothing 0.1: the class scores the next token True, the subclass the token it has just read True
# Who it hurts: who subclasses or wraps a model and reads perplexity from Trainer, or uses label smoothing.
# Our test: tests/host/test_module.py (test_trainer_reports_the_loss_of_the_model_itself,
#   test_label_smoothing_shifts_labels_as_for_the_model_itself).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$work"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Assistant(LlamaForCausalLM):
    pass


def build(kind):
    torch.manual_seed(0)
    return kind(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    ).eval()


ids = torch.randint(3, 64, (8, 12), generator=torch.Generator().manual_seed(1))
rows = [{"input_ids": r, "labels": r} for r in ids]


def measured(kind, smoothing):
    how = TrainingArguments(
        output_dir="out", report_to=[], use_cpu=True, disable_tqdm=True, label_smoothing_factor=smoothing
    )
    return Trainer(model=build(kind), args=how, eval_dataset=rows).evaluate()["eval_loss"]


def smooth(logits, labels, factor=0.1):
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=factor).item()


def near(a, b):
    return abs(a - b) < 1e-4


with torch.no_grad():
    logits = build(LlamaForCausalLM)(ids).logits
    own = [build(kind)(ids, labels=ids).loss.item() for kind in (LlamaForCausalLM, Assistant)]
plain = [measured(kind, 0.0) for kind in (LlamaForCausalLM, Assistant)]
smoothed = [measured(kind, 0.1) for kind in (LlamaForCausalLM, Assistant)]
shifted, unshifted = smooth(logits[:, :-1], ids[:, 1:]), smooth(logits, ids)
same, ratio = own[0] == own[1], plain[1] / plain[0]
nexts, read = near(smoothed[0], shifted), near(smoothed[1], unshifted)
print("model's own loss: equal", same)
print(f"eval_loss, no smoothing: subclass / class = {ratio:.4f} (11/12 = {11 / 12:.4f})")
print(f"smoothing 0.1: the class scores the next token {nexts}, the subclass the token it has just read {read}")
raise SystemExit(not (same and near(ratio, 11 / 12) and nexts and read and abs(shifted - unshifted) > 0.01))
EOF
