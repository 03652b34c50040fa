#!/usr/bin/env bash
# PEFT's Lily shares its matrices between layers only in a model's first adapter; a second one is larger and shares nothing.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: `get_peft_model(base, LilyConfig(r=4, ...), "a")` on 8 layers, then `add_adapter("b", the same config)`.
# Expected: two adapters of one config have the same number of trainable parameters, in the same shared tensors.
# What came: the first has 2,688 numbers in 34 tensors, the second 6,272 in 48: each layer has its own A and B. It is another
#   model with more parameters than the one that is adapter "b" of a fresh base, and says nothing.
# Output:
#   first adapter: 34 tensors, 2688 numbers
#   the same config as second adapter: 48 tensors, 6272 numbers
#   the same config alone on a fresh base: 34 tensors, 2688 numbers
# Who it hurts: who compares seeds or tasks with several Lily adapters on one base, or counts their parameters.
# Our test: tests/laws/test_laws.py (test_adding_tenants_moves_no_initial_value, for every method).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
from peft import LilyConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def fresh(name):
    base = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4, vocab_size=64)
    )
    return get_peft_model(base, LilyConfig(r=4, target_modules=["q_proj", "v_proj"]), name)


def size(model, name):
    model.set_adapter(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    return len(trained), sum(p.numel() for p in trained)


model = fresh("a")
model.add_adapter("b", LilyConfig(r=4, target_modules=["q_proj", "v_proj"]))
first, second, alone = size(model, "a"), size(model, "b"), size(fresh("b"), "b")
print("first adapter: %d tensors, %d numbers" % first)
print("the same config as second adapter: %d tensors, %d numbers" % second)
print("the same config alone on a fresh base: %d tensors, %d numbers" % alone)
raise SystemExit((first, second, alone) != ((34, 2688), (48, 6272), (34, 2688)))
EOF
