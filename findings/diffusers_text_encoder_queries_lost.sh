#!/usr/bin/env bash
# diffusers loads a kohya file's LoRA on query, key and value of a text encoder only where the file has one on out_proj too.
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: a LoRA file in the keys of kohya's scripts (`lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight`,
#   its `lora_up.weight` and `alpha`) for q_proj and mlp.fc1 of one layer, read by `StableDiffusionPipeline.lora_state_dict` and
#   `load_lora_into_text_encoder`; then the same with out_proj beside them.
# Expected: each layer of the file gets its LoRA, whichever others are in the file.
# What came: without out_proj q_proj gets none. The keys pass through an older form whose age is told by the word `to_out_lora`
#   anywhere in the file; without it those of q, k and v stay in that form, and transformers counts them as unexpected ones
#   that can be ignored. With q_proj alone it is an error.
# Output:
#   file with mlp.fc1, q_proj: loaded mlp.fc1
#   file with mlp.fc1, q_proj, out_proj: loaded mlp.fc1, out_proj, q_proj
# Who it hurts: who trains the text encoder at q and v, LoRA's own choice, beside the feed-forward layers, and shares the file.
# Our test: tests/formats/test_kohya.py (test_queries_that_diffusers_would_leave_out_are_told).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile \
  torch==2.13.0 transformers==5.23.0 peft==0.21.2 diffusers==0.42.1
WORK="$work" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2> /dev/null <<'EOP'
import os

import torch
from diffusers import StableDiffusionPipeline as Pipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

SIZES = {"mlp_fc1": (64, 32), "self_attn_q_proj": (32, 32), "self_attn_out_proj": (32, 32)}


def loaded(*layers):
    tensors = {}
    for layer in layers:
        key, (out, inp) = f"lora_te_text_model_encoder_layers_0_{layer}", SIZES[layer]
        tensors[f"{key}.lora_down.weight"] = torch.ones(2, inp)
        tensors[f"{key}.lora_up.weight"] = torch.ones(out, 2)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    path = os.path.join(os.environ["WORK"], "lora.safetensors")
    save_file(tensors, path)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            bos_token_id=1, eos_token_id=2,
        )
    )
    state, alphas, metadata = Pipeline.lora_state_dict(path, return_lora_metadata=True)
    Pipeline.load_lora_into_text_encoder(
        state, network_alphas=alphas, text_encoder=encoder, prefix="text_encoder", metadata=metadata
    )
    return sorted(n[:-7].removeprefix("encoder.layers.0.").removeprefix("self_attn.")
                  for n, _ in encoder.named_modules() if n.endswith(".lora_A"))


without, beside = loaded("mlp_fc1", "self_attn_q_proj"), loaded(*SIZES)
print("file with mlp.fc1, q_proj: loaded", ", ".join(without))
print("file with mlp.fc1, q_proj, out_proj: loaded", ", ".join(beside))
raise SystemExit((without, beside) != (["mlp.fc1"], ["mlp.fc1", "out_proj", "q_proj"]))
EOP
