#!/usr/bin/env bash
# Packed rows see each other in some models of transformers, in silence: their forward makes no mask of position_ids.
#
# Versions: transformers 5.23.0, torch 2.13.0.
# What runs: two rows in one sequence, their positions begun anew (what packing and padding-free collators give), without a mask,
#   through models with eager attention and SDPA; the second row's logits beside those of that row alone.
# Expected: the same numbers. transformers 5 finds packed rows by their positions and masks them in eager and SDPA too, as it
#   does for Llama, Gemma 3 and Mixtral; its documentation names no model where it does not.
# What came: gpt-oss, Falcon, OPT, BioGPT, MPT and Granite 4 (attention alone) hand their positions to no mask: the second row reads
#   the first. Nothing is said. Given the masks of `create_masks_for_generate`, each answers as alone.
# Output:
#   llama, gemma3, mixtral: apart
#   gpt_oss: apart only with masks
#   falcon: apart only with masks
#   opt: apart only with masks
#   biogpt: apart only with masks
#   mpt: apart only with masks
#   granitemoehybrid: apart only with masks
# Who it hurts: who packs training rows on a CPU, or on a GPU without flash attention: rows learn from their neighbours.
# Our fix and test: commonweight.adapt.masked, tests/adapt/test_packing.py (test_models_that_are_given_masks).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
cd "$work"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import create_masks_for_generate

USUAL = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
}
MORE = {
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},
    "gemma3_text": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "falcon": {"alibi": False},
    "opt": {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2},
    "granitemoehybrid": {
        "layer_types": ["attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 16, "mamba_n_heads": 4,
        "mamba_d_head": 8,
    },
}
first, second = [3, 4, 5, 6, 4, 3], [5, 3, 6, 4, 4, 5, 3]
ids = torch.tensor([first + second])
places = torch.tensor([[*range(len(first)), *range(len(second))]])


@torch.no_grad()
def off(kind, **how):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**USUAL, **MORE.get(kind, {})})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=how.pop("attention")).eval()
    if how.pop("masks", False):
        like = torch.empty(1, ids.shape[1], 1)
        how["attention_mask"] = create_masks_for_generate(model.config, like, None, None, position_ids=places)
    packed = model(input_ids=ids, position_ids=places, use_cache=False, **how).logits[0, len(first) :]
    alone = model(input_ids=ids[:, len(first) :], use_cache=False).logits[0]
    return float((packed - alone).abs().max() / alone.abs().max())


for kind in ("llama", "gemma3_text", "mixtral"):
    for attention in ("eager", "sdpa"):
        assert off(kind, attention=attention) < 1e-5, kind
print("llama, gemma3, mixtral: apart")
for kind in ("gpt_oss", "falcon", "opt", "biogpt", "mpt", "granitemoehybrid"):
    for attention in ("eager",) if kind in ("gpt_oss", "mpt") else ("eager", "sdpa"):
        without, given = off(kind, attention=attention), off(kind, attention=attention, masks=True)
        print(f"{kind}, {attention}: without masks {without:.1e}, with them {given:.0e}")
        assert without > 1e-4 and given < 1e-5, (kind, attention, without, given)
EOF
