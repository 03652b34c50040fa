#!/usr/bin/env bash
# torchtune's PEFT folder of a Qwen 2 adapter has the rows of its query and key in the wrong order.
#
# Versions: torchtune 0.6.1, torchao 0.9.0, transformers 5.23.0, torch 2.13.0.
# What runs: one tiny Qwen 2 in torchtune and in transformers, the weights carried over by torchtune's own qwen2_hf_to_tune; LoRA
#   on the query with numbers in it. Its tensors go through tune_to_peft_adapter_weights, as FullModelHFCheckpointer does for
#   every model but Phi and Llama 3.2 Vision; then each query's weight in transformers gets alpha / r B A, as PEFT does.
# Expected: the same logits; those of the bases without an adapter agree to 1e-5.
# What came: other logits. The function turns rows of lora_B into transformers' order, as a Llama's must be, but torchtune
#   keeps a Qwen 2 in transformers' order already. With the rows left as they are the logits agree.
# Output:
#   bases differ by less than 1e-4: True
#   PEFT's folder differs from torchtune by less than 1e-4: False
#   the same with the rows left alone: True
# Who it hurts: who trains Qwen 2 or 2.5 with torchtune's LoRA on q_proj or k_proj, and serves the PEFT folder.
# Our test: tests/formats/test_torchtune.py (test_a_qwens_rows_stay_and_alpha_lies_beside).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 torchao==0.9.0 torchtune==0.6.1 \
  transformers==5.23.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - 2>/dev/null <<'EOF'
import torch
from torchtune.models.convert_weights import tune_to_peft_adapter_weights
from torchtune.models.qwen2 import lora_qwen2
from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune
from torchtune.modules.peft import disable_adapter, get_adapter_params
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
config = Qwen2Config(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=64,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rms_norm_eps=1e-6, tie_word_embeddings=False,
)
hf, ids = Qwen2ForCausalLM(config).eval(), torch.arange(8)[None]
tune = lora_qwen2(
    ["q_proj"], vocab_size=64, num_layers=2, num_heads=4, num_kv_heads=4, embed_dim=32, intermediate_dim=64,
    max_seq_len=64, rope_base=10000, norm_eps=1e-6, lora_rank=2, lora_alpha=2, tie_word_embeddings=False,
).eval()
tune.load_state_dict(qwen2_hf_to_tune(hf.state_dict(), num_heads=4, num_kv_heads=4, dim=32), strict=False)


def near(a, b):
    return bool((a - b).abs().max() < 1e-4)


with torch.no_grad():
    for p in get_adapter_params(tune).values():
        p.copy_(torch.randn_like(p))
    with disable_adapter(tune):
        bases = near(tune(ids), hf(ids).logits)
    want = tune(ids)
    mine = {k: v.detach().clone() for k, v in get_adapter_params(tune).items()}
    folder = tune_to_peft_adapter_weights(dict(mine), num_heads=4, num_kv_heads=4, dim=32)
    plain = {k: v.clone() for k, v in hf.state_dict().items()}

    def logits(adapter):
        hf.load_state_dict(plain)
        for i, layer in enumerate(hf.model.layers):
            at = f"base_model.model.model.layers.{i}.self_attn.q_proj"
            layer.self_attn.q_proj.weight += adapter[f"{at}.lora_B.weight"] @ adapter[f"{at}.lora_A.weight"]
        return hf(ids).logits

    turned = near(logits(folder), want)
    for key, value in mine.items():
        layer = key.split(".")[1]
        if "lora_b" in key:
            folder[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_B.weight"] = value
    left = near(logits(folder), want)
print(f"bases differ by less than 1e-4: {bases}")
print(f"PEFT's folder differs from torchtune by less than 1e-4: {turned}")
print(f"the same with the rows left alone: {left}")
raise SystemExit((bases, turned, left) != (True, False, True))
EOF
