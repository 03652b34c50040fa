#!/usr/bin/env bash
# A kept manager of continuous batching answers with the prefixes of the adapter that was active before.
#
# Versions: transformers 5.23.0, peft 0.21.2, torch 2.13.0.
# What runs: a PEFT model with two LoRA adapters; `set_adapter("a")`, `generate_batch(persistent_manager=True)`, then
#   `set_adapter("b")` and the same call with the same prompt. Greedy.
# Expected: the second call answers as adapter b, as a new manager does.
# What came: the manager keeps its prefix cache. A block's key is a hash of the tokens alone, so the keys and values that
#   adapter a made stand for b's. The answer is neither a's nor b's. Changing the weights in place (a training step) does
#   the same. No warning says so. `allow_block_sharing=False` in the config avoids it, and with it the cache of prefixes.
# Output:
#   a: generate and kept manager agree: True
#   b: a new manager agrees with generate: True
#   b: the kept manager agrees with generate: False
# Who it hurts: who serves several adapters, or samples while training, on one model.
# Our test: tests/host/test_route_generates.py (test_a_kept_manager_of_continuous_batching_serves_one_reader).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch
from peft import LoraConfig, get_peft_model
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, pad_token_id=0
)
lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
model = get_peft_model(LlamaForCausalLM(config), lora, "a").eval()
model.add_adapter("b", lora)
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.mul_(3)

prompt = list(range(3, 45))  # longer than two blocks of the cache
greedy = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
cache = ContinuousBatchingConfig(num_blocks=32, page_size=16, max_batch_tokens=64)


def generate():
    return model.generate(input_ids=torch.tensor([prompt]), generation_config=greedy)[0, len(prompt) :].tolist()


def batch(kept):
    found = model.generate_batch(
        inputs=[prompt],
        generation_config=greedy,
        continuous_batching_config=cache,
        persistent_manager=kept,
        progress_bar=False,
    )
    return next(iter(found.values())).generated_tokens


model.set_adapter("b")
want, new = generate(), batch(kept=False)
model.set_adapter("a")
first = batch(kept=True) == generate()
model.set_adapter("b")
old = batch(kept=True)
model.get_base_model().destroy_cached_continuous_batching_manager()
print("a: generate and kept manager agree:", first)
print("b: a new manager agrees with generate:", new == want)
print("b: the kept manager agrees with generate:", old == want)
raise SystemExit(not (first and new == want and old != want))
EOF
