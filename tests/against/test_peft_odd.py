"""Options of PEFT's that are seldom met together: each file answers here as it does there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
QV = ["q_proj", "v_proj"]


def llama(tied: bool = False) -> Any:
    torch.manual_seed(0)
    more: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": tied}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, **more)).eval()


def gemma() -> Any:
    torch.manual_seed(0)
    return tf.GemmaForCausalLM(tf.GemmaConfig(**SIZES, head_dim=8)).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=32, **ends)
    ).eval()


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "target_modules": QV, **options})


CASES = {
    "dora on a table": (llama, lambda: lora(target_modules=["embed_tokens"], use_dora=True)),
    "dora on a table and layers": (llama, lambda: lora(
        target_modules=["embed_tokens", "q_proj", "lm_head"], use_dora=True, use_rslora=True,
        alpha_pattern={"embed_tokens": 3})),
    "dora on a tied table": (lambda: llama(True), lambda: lora(
        target_modules=["embed_tokens", "q_proj"], use_dora=True)),
    "dora on a scaled table": (gemma, lambda: lora(target_modules=["embed_tokens"], use_dora=True)),
    "dora on two tables": (gpt2, lambda: lora(
        target_modules=["wte", "wpe", "c_attn"], use_dora=True, fan_in_fan_out=True)),
    "dora, lora_only": (llama, lambda: lora(use_dora=True, bias="lora_only")),
    "dora, all": (llama, lambda: lora(use_dora=True, bias="all")),
    "oft, own": (llama, lambda: peft.OFTConfig(oft_block_size=8, target_modules=QV, bias="oft_only")),
    "oft, all": (llama, lambda: peft.OFTConfig(oft_block_size=8, target_modules=QV, bias="all")),
    "boft, all": (llama, lambda: peft.BOFTConfig(boft_block_size=4, target_modules=QV, bias="all")),
    "vera, own": (llama, lambda: peft.VeraConfig(r=6, target_modules=QV, bias="vera_only")),
    "randlora, all": (llama, lambda: peft.RandLoraConfig(r=6, target_modules=QV, bias="all")),
    "vb-lora, own": (llama, lambda: peft.VBLoRAConfig(
        r=2, vector_length=8, num_vectors=16, target_modules=QV, bias="vblora_only")),
    "patterns": (llama, lambda: lora(
        target_modules=[*QV, "down_proj"], rank_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 6, "down_proj": 2},
        alpha_pattern={"v_proj": 5, r"layers.1.*down_proj": 20}, use_rslora=True, exclude_modules=r".*1.*v_proj")),
    "lokr": (llama, lambda: peft.LoKrConfig(
        r=2, alpha=3, target_modules=QV, decompose_both=True, decompose_factor=4, rank_pattern={"q_proj": 3})),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_folder_answers_as_in_peft(case, tmp_path):
    base, config = CASES[case]
    torch.manual_seed(1)
    model = peft.get_peft_model(base(), config())
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape) * 0.05)
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        want = model(input_ids=IDS).logits
        with model.disable_adapter():
            assert (model(input_ids=IDS).logits - want).abs().max() > 1e-3
    host = cw.Host(base())
    host.load_adapter(tmp_path, "t")
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(host.base.model(input_ids=IDS).logits, want, rtol=1e-4, atol=1e-5)
