#!/usr/bin/env bash
# A LoRA on WavLM's queries, keys and values does nothing until it is merged, and does not learn.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: LoRA on q_proj, k_proj, v_proj and intermediate_dense of a small WavLMModel, with random numbers in the first
#   three: outputs with the adapter, with the adapter disabled and after `merge_adapter()`; then one backward pass.
# Expected: adapter and merged adapter answer alike, and both differ from the base; all LoRA matrices get gradients.
# What came: WavLM gives the projections' weights to torch's fused attention and never calls the modules. Unmerged, the
#   adapter changes nothing there and its matrices get no gradient; merged, their numbers take effect. No warning, and the
#   count of trainable parameters includes them. (With the three projections alone, `backward` fails.)
# Output:
#   effect of the adapter: 0.0
#   effect of the same adapter, merged: 0.8
#   LoRA matrices without a gradient: k_proj, q_proj, v_proj; with one: intermediate_dense
# Who it hurts: who fine-tunes speech models with the usual target modules.
# Our test: tests/host/test_doors.py (layers whose weights are read past them)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch
from peft import LoraConfig, get_peft_model
from transformers import WavLMConfig, WavLMModel

attention = ["k_proj", "q_proj", "v_proj"]
torch.manual_seed(0)
config = WavLMConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=(16, 16),
    conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)  # fmt: skip
model = get_peft_model(WavLMModel(config), LoraConfig(r=4, target_modules=attention + ["intermediate_dense"])).eval()
sound = torch.randn(2, 400)
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name and any(part in name for part in attention):
            p.copy_(torch.randn_like(p) * 0.3)
    unmerged = model(sound).last_hidden_state
    with model.disable_adapter():
        base = model(sound).last_hidden_state
    model.merge_adapter()
    merged = model(sound).last_hidden_state
    model.unmerge_adapter()
model(sound).last_hidden_state.square().sum().backward()
found = {False: set(), True: set()}
for name, p in model.named_parameters():
    if "lora_" in name:
        found[p.grad is not None].add(name.split(".")[-4])
without, learning = sorted(found[False]), sorted(found[True])
effect, after = ((x - base).abs().max().item() for x in (unmerged, merged))
print(f"effect of the adapter: {effect}")
print(f"effect of the same adapter, merged: {after:.1f}")
print(f"LoRA matrices without a gradient: {', '.join(without)}; with one: {', '.join(learning)}")
raise SystemExit(not (effect == 0 and after > 0.1 and without == attention and learning == ["intermediate_dense"]))
EOF
