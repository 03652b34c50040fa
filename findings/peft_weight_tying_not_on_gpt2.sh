#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0. Run 2026-11-29.
#
# LoraConfig(ensure_weight_tying=True) says that a LoRA on the table of tokens holds for the output head too where the two are one
# weight. On a Llama it does. On a GPT-2, whose head is tied to `wte` in the same way, the head stays a plain linear layer: nothing is
# said, and the saved folder still has ensure_weight_tying true. The trained model answers by a head that is no longer its table.
# With target_modules=["wte", "lm_head"] GPT-2 gets both.
# Output seen:
#   llama embed_tokens: head is a LoRA layer: True
#   gpt2 wte: head is a LoRA layer: False
#   gpt2 wte, lm_head: head is a LoRA layer: True
# Exits 1 when the head of GPT-2 is tied too.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2"
cat > "$at/run.py" <<'EOF'
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def head_has_lora(model, names):
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    config = LoraConfig(r=2, target_modules=names, ensure_weight_tying=True)
    return hasattr(get_peft_model(model, config).get_output_embeddings(), "lora_A")


llama = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                                     vocab_size=50, tie_word_embeddings=True))
gpt2 = [GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=16,
                                    bos_token_id=1, eos_token_id=2)) for _ in "ab"]
found = []
for model, kind, names in ((llama, "llama", ["embed_tokens"]), (gpt2[0], "gpt2", ["wte"]), (gpt2[1], "gpt2", ["wte", "lm_head"])):
    found.append(head_has_lora(model, names))
    print(f"{kind} {', '.join(names)}: head is a LoRA layer: {found[-1]}")
raise SystemExit(0 if found == [True, False, True] else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
