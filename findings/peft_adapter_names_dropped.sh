#!/usr/bin/env bash
# PEFT drops `adapter_names` for methods that have no hook for it: every row answers as the active adapter.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: two adapters of one method with random weights, adapter "a" active; one forward pass over two equal rows with
#   `adapter_names=["a", "b"]`. LoRA, then (IA)3, VeRA, LoHa, OFT and BOFT.
# Expected: the second row answers as b, or an error says that the method has no mixed batches.
# What came: with LoRA the second row is b's. With the five others it is a's: the argument is taken and nothing is said.
# Output:
#   LoraConfig: the row that asked for b is b's True, a's False
#   IA3Config: the row that asked for b is b's False, a's True
#   (the same line for VeraConfig, LoHaConfig, OFTConfig and BOFTConfig)
# Who it hurts: who serves several customers' adapters in one batch.
# Our test: tests/laws/test_laws.py (test_a_row_in_a_mixed_batch_is_that_row_alone, for every method).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

where = ["q_proj", "v_proj"]
methods = [
    peft.LoraConfig(r=4, target_modules=where),
    peft.IA3Config(target_modules=where, feedforward_modules=[]),
    peft.VeraConfig(r=4, target_modules=where),
    peft.LoHaConfig(r=4, target_modules=where),
    peft.OFTConfig(oft_block_size=4, target_modules=where),
    peft.BOFTConfig(boft_block_size=4, target_modules=where),
]
rows = torch.tensor([[5, 6, 7], [5, 6, 7]])
still = True
for config in methods:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    )
    model = peft.get_peft_model(base, config, "a").eval()
    model.add_adapter("b", config)
    alone = {}
    with torch.no_grad():
        for name in "ab":
            model.set_adapter(name)
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p) * 0.3)
        for name in "ab":
            model.set_adapter(name)
            alone[name] = model(input_ids=rows).logits[1]
        model.set_adapter("a")
        second = model(input_ids=rows, adapter_names=["a", "b"]).logits[1]
    is_b, is_a = (torch.allclose(second, alone[n], atol=1e-5) for n in "ba")
    method = type(config).__name__
    still &= (is_b, is_a) == (method == "LoraConfig", method != "LoraConfig")
    print(f"{method}: the row that asked for b is b's {is_b}, a's {is_a}")
raise SystemExit(not still)
EOF
