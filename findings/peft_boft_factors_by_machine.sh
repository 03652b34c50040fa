#!/usr/bin/env bash
# PEFT trains another BOFT where its CUDA extension does not build: one butterfly factor, whatever the config says, and
# the saved config still says the other number.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0, on a machine without a CUDA compiler.
# What runs: BOFT with `boft_n_butterfly_factor=2` on a small Llama is made, saved and opened again. Then a folder with
#   the same config and the tensors that two factors have, as a machine with the extension writes it, is opened.
# Expected: two factors, slowly, or an error; a folder whose config says what its tensors are; the second folder opens.
# What came: one factor (a warning says that this is to speed up the training), a folder whose config says 2 beside
#   tensors of 1, and for the second folder a size mismatch. So the same script trains half the numbers on a laptop, its
#   folder does not open where the extension builds, and the other way round.
# Output:
#   the config says 2, a matrix has 1, the saved config says 2, the saved tensor has 1
#   with factor 1 in the config the numbers are the same: True
#   a folder of two factors: size mismatch
# Who it hurts: who trains BOFT on one machine and opens it on another, and who compares its sizes.
# Our test: tests/against/test_peft_boft.py (test_of_several_factors_the_folder_is_written_with_a_warning); what is read
#   goes by the tensors, and several factors run everywhere.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error CUDA_HOME= PATH="$work/venv/bin:/usr/bin:/bin" "$work/venv/bin/python" -W ignore - "$work" <<'EOF'
import json
import sys
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

work = Path(sys.argv[1])


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=64)
    )


def boft(factors):
    config = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=factors, target_modules=["q_proj"])
    return peft.get_peft_model(base(), config)


two, one = boft(2), boft(1)
made = next(p for n, p in two.named_parameters() if "boft_R" in n)
two.save_pretrained(work / "cpu")
config = json.loads((work / "cpu" / "adapter_config.json").read_text())
tensors = load_file(work / "cpu" / "adapter_model.safetensors")
name = next(n for n in tensors if "boft_R" in n)
says, has = config["boft_n_butterfly_factor"], len(tensors[name])
print(f"the config says 2, a matrix has {len(made)}, the saved config says {says}, the saved tensor has {has}")
counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (two, one)]
print("with factor 1 in the config the numbers are the same:", counts[0] == counts[1])
(work / "gpu").mkdir()
(work / "gpu" / "adapter_config.json").write_text(json.dumps(config))
save_file({n: t.repeat(2, 1, 1, 1) if n == name else t for n, t in tensors.items()}, work / "gpu" / "adapter_model.safetensors")
try:
    peft.PeftModel.from_pretrained(base(), work / "gpu")
    came = "opens"
except RuntimeError as e:
    came = "size mismatch" if "size mismatch" in str(e) else str(e)
print("a folder of two factors:", came)
raise SystemExit((len(made), says, has, counts[0] == counts[1], came) != (1, 2, 1, True, "size mismatch"))
EOF
