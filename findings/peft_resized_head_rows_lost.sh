#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0. Run 2026-11-29.
#
# After resize_token_embeddings the new rows of the table and of an untied head are drawn or trained on this machine, so an adapter
# that is saved must bring them. PEFT notices that the vocabulary is another one (save_embedding_layers="auto") and writes both, unless
# a LoRA stands on the table itself: then only layers with a base_layer are written, the head's new rows are left out, and nothing is
# said. The folder loads without a word, and answers otherwise.
# Output seen:
#   q_proj: the file's lm_head ['base_model.model.lm_head.weight'], logits off by 0.0
#   q_proj, embed_tokens: the file's lm_head [], logits off by 12.7
# Exits 1 when the second folder brings the head's rows too.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2"
cat > "$at/run.py" <<'EOF'
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM


AT = str(Path(__file__).parent / "base")
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                             vocab_size=50, tie_word_embeddings=False)).save_pretrained(AT)


def base():
    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(AT)
    model.resize_token_embeddings(53, mean_resizing=False)
    return model


def kept(targets):
    model = get_peft_model(base(), LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        model.get_output_embeddings().weight[50:] += 1  # what training of the new rows leaves
    ids = torch.arange(5)[None]
    want = model(ids).logits
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(f"{folder}/adapter_model.safetensors", "pt") as f:
            heads = [k for k in f.keys() if "lm_head" in k]
        again = PeftModel.from_pretrained(base(), folder)(ids).logits
    return heads, (want - again).abs().max().item()


found = {}
for targets in (["q_proj"], ["q_proj", "embed_tokens"]):
    heads, off = kept(targets)
    found[len(targets)] = heads, off
    print(f"{', '.join(targets)}: the file's lm_head {heads}, logits off by {off:.1f}")
raise SystemExit(0 if found[1][0] and found[1][1] < 1e-5 and not found[2][0] and found[2][1] > 0.1 else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
