#!/usr/bin/env bash
# A batch is generated from tens of times slower once the model is frozen: torch multiplies the last tokens of the rows,
# which transformers cuts out for the head, one row after another where the head's weight wants no gradient.
#
# Versions: torch 2.13.0 on a CPU with AVX512-BF16 (seen on an Intel Xeon with AMX), transformers 5.23.0. With torch held
#   to AVX2 (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA) a slice takes 1.1 times as long as its copy.
# What runs: a small Llama in bfloat16 (one layer, 256 wide, 32,000 words) generates 2 tokens for each of 16 prompts of 16
#   tokens; then once more after `requires_grad_(False)`, which is what every library of adapters does to its base.
# Expected: to freeze a model makes nothing slower, least of all under `no_grad`.
# What came: the same tokens, some seventy times slower. `generate` asks the head for the last position of each row, a
#   slice (16, 1, 256) whose rows do not lie together. `linear` folds such a slice into one product of two matrices
#   where the weight wants a gradient, under `no_grad` too; where it wants none it makes a batch of products with the
#   weight repeated, and in bfloat16 these are hundreds of times slower than the one. A copy of the slice is enough.
# Output (times differ by machine, one thread):
#   generate: as loaded 18.2 ms, frozen 1337.6 ms; the same tokens: True
#   the head alone: as loaded 1.8 ms, frozen 1319.4 ms, frozen and the slice laid together 2.5 ms
# Who it hurts: who answers batches with a frozen model (LoRA and the like) in bfloat16 on a CPU; in float32 it is
#   about ten times at the head.
# Our fix: tests/host/test_running.py (test_the_last_tokens_of_a_batch_reach_the_head_together): under a host a frozen
#   layer is given its slice laid together.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

if not torch.cpu._is_avx512_bf16_supported():
    raise SystemExit("this processor has no AVX512-BF16, where it was seen")
torch.manual_seed(0)
torch.set_num_threads(1)
config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, vocab_size=32000)
model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
ids = torch.randint(3, 32000, (16, 16))


def generate():
    return model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)


@torch.no_grad()
def milliseconds(run):
    run()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times)


hidden = torch.randn(16, 16, 256, dtype=torch.bfloat16)
free, tokens = milliseconds(generate), generate()
alone = milliseconds(lambda: model.lm_head(hidden[:, -1:]))
model.requires_grad_(False)
frozen, same = milliseconds(generate), torch.equal(generate(), tokens)
rows = milliseconds(lambda: model.lm_head(hidden[:, -1:]))
copied = milliseconds(lambda: model.lm_head(hidden[:, -1:].contiguous()))
print(f"generate: as loaded {free:.1f} ms, frozen {frozen:.1f} ms; the same tokens: {same}")
print(f"the head alone: as loaded {alone:.1f} ms, frozen {rows:.1f} ms, frozen and the slice laid together {copied:.1f} ms")
raise SystemExit(not (same and frozen > 5 * free and rows > 20 * alone and rows > 20 * copied))
PY
