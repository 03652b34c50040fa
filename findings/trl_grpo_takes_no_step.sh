#!/usr/bin/env bash
# trl 1.16.0, transformers 5.23.0, torch 2.13.0. Run 2026-11-29.
#
# GRPO reads prompts in groups: a batch of 32 completions with 8 of each prompt are 4 prompts a step. With fewer prompts than that (3 here)
# GRPOTrainer.train() ends at once without a step and without an error, and the model that is saved is the one that came in: the sampler
# leaves out what does not fill a step. The log has a warning of transformers, which says that this is expected of an IterableDataset; this is
# none. With 4 prompts it trains.
# Output seen:
#   3 prompts: 0 steps
#   4 prompts: 2 steps
# Exits 1 when three prompts take a step, or end in an error.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "trl==1.16.0"
cat > "$at/run.py" <<'EOF'
import sys
import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

words = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefgh"])}
inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def steps(prompts):
    model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                                         vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=None))
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(folder, per_device_train_batch_size=32, num_generations=8, max_completion_length=4, max_steps=2,
                            use_cpu=True, bf16=False, report_to=[], logging_strategy="no", save_strategy="no", disable_tqdm=True)
        trainer = GRPOTrainer(model, lambda completions, **_: [float(len(c)) for c in completions], args=config,
                              train_dataset=Dataset.from_dict({"prompt": list("abcdefgh")[:prompts]}), processing_class=tokenizer)
        trainer.train()
        return trainer.state.global_step


found = {n: steps(n) for n in (3, 4)}
for n, taken in found.items():
    print(f"{n} prompts: {taken} steps", file=sys.stderr)
raise SystemExit(0 if found == {3: 0, 4: 2} else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
