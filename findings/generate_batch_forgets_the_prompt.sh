#!/usr/bin/env bash
# Continuous batching runs GPT-J and CodeGen without their context: every new token depends on the last one alone.
#
# Versions: transformers 5.23.0, torch 2.13.0.
# What runs: `generate` and `generate_batch` on the same prompts, greedy, for small random models of four families.
# Expected: the same tokens, or an error where a model's attention cannot read the paged cache.
# What came: Llama and GPT-2 agree. The attention of GPT-J and CodeGen is not written over the common interface, so it never
#   reads the paged cache: after the first token the model sees one token, and the same token is always followed
#   by the same next one, whatever the prompt was. The one hint is a logged line that the model "does not support setting
#   its attention implementation dynamically"; the outputs carry no error. (GPT-Neo, MPT and Bloom differ too.)
# Output:
#   llama: equal to generate True, next token fixed by the last one False
#   gpt2: equal to generate True, next token fixed by the last one False
#   gptj: equal to generate False, next token fixed by the last one True
#   codegen: equal to generate False, next token fixed by the last one True
# Who it hurts: who moves a working model from `generate` to `generate_batch`.
# Our test: tests/host/test_route_generates.py (test_continuous_batching_refuses_what_has_no_paged_attention).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch
import transformers as tf

common = dict(vocab_size=64, bos_token_id=1, eos_token_id=None, pad_token_id=0)
small = dict(n_embd=32, n_layer=2, n_head=4, n_positions=128, **common)
families = {
    "llama": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **common)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**small)),
    "gptj": lambda: tf.GPTJForCausalLM(tf.GPTJConfig(rotary_dim=4, **small)),
    "codegen": lambda: tf.CodeGenForCausalLM(tf.CodeGenConfig(rotary_dim=4, **small)),
}
prompts = [[3, 9, 20, 7, 41, 5], [8, 30, 11, 12], [17, 6, 41, 5], [33, 34, 35, 36, 37, 5]]
greedy = tf.GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
cache = tf.ContinuousBatchingConfig(num_blocks=32, page_size=16, max_batch_tokens=64)


def fixed(answers):
    """Whether each token has one and the same successor everywhere."""
    after = {}
    return all(after.setdefault(a, b) == b for row in answers for a, b in zip(row, row[1:]))


still = True
for name, build in families.items():
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():  # large weights: a random model whose answers vary
        for key, p in model.named_parameters():
            if p.dim() > 1 and "embed" not in key and "wte" not in key:
                p.mul_(8)
    want = [model.generate(torch.tensor([p]), generation_config=greedy)[0, len(p) :].tolist() for p in prompts]
    found = model.generate_batch(
        inputs=prompts, generation_config=greedy, continuous_batching_config=cache, progress_bar=False
    )
    got = [r.generated_tokens for r in found.values()]
    broken = name in ("gptj", "codegen")
    still &= (got == want, fixed(got)) == (not broken, broken) and not any(r.error for r in found.values())
    print(f"{name}: equal to generate {got == want}, next token fixed by the last one {fixed(got)}")
raise SystemExit(not still)
EOF
