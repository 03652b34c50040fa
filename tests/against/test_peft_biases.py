"""LoRA with biases beside experts, and on tables: a folder that PEFT opens, and that comes back here."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from tests.host.test_families import granite, jamba
from tests.laws.subjects import stir
from tests.mixtures import gpt_oss, qwen2_moe
from tests.models import make

pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def biased(model):
    """Biases that say something."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("made", "sites", "in_peft"),
    [
        (lambda: jamba()[0], None, False),  # whose convolutions are read past their modules
        (lambda: granite()[0], None, False),
        (qwen2_moe, "*_proj|embeddings", True),
        (lambda: make("gpt2")[0], "*.c_attn|embeddings", True),
    ],
    ids=["jamba", "granite", "qwen2-moe", "gpt2 and its table"],
)
@torch.no_grad()
def test_biases_beside_experts_and_tables(tmp_path, made, sites, in_peft):
    model = biased(made())
    host = cw.Host(copy.deepcopy(model))
    tenant = stir(host.add("t", "lora", rank=2, alpha=3.0, bias=True, sites=sites))
    shifts = {n for n in tenant.pools if n.endswith(".b")}
    assert shifts
    host.export_peft("t", tmp_path / "t")
    config = json.loads((tmp_path / "t" / "adapter_config.json").read_text())
    assert not config["lora_bias"] and config["bias"] == "lora_only"
    back = host.import_peft("back", tmp_path / "t")
    for name in shifts:
        torch.testing.assert_close(back.pools[name], tenant.pools[name])
    with host.route("t"):
        wanted = host.model(input_ids=IDS).logits
    with host.route("back"):
        torch.testing.assert_close(host.model(input_ids=IDS).logits, wanted)
    if in_peft:
        theirs = peft.PeftModel.from_pretrained(model, tmp_path / "t").eval()
        torch.testing.assert_close(theirs(input_ids=IDS).logits, wanted)


def test_biases_of_the_layers_alone_where_experts_have_some_too(tmp_path):
    """gpt-oss: a file of PEFT that trains the attention's biases leaves those of the experts as they are."""
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], bias="lora_only"
    )
    base = biased(gpt_oss())
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    for p in theirs.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    theirs.eval().save_pretrained(tmp_path)
    host = cw.Host(base)
    tenant = host.import_peft("t", tmp_path)
    assert not any(p.any() for n, p in tenant.pools.items() if ".experts." in n and n.endswith(".b"))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(host.model(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


def test_a_folder_with_lora_bias_beside_experts_is_read(tmp_path):
    """As this library wrote it once, though PEFT takes no such file."""
    host = cw.Host(biased(qwen2_moe()))
    tenant = stir(host.add("t", "lora", rank=2, bias=True, sites="*.q_proj|*.experts.down_proj"))
    host.export_peft("t", tmp_path / "t")
    file, said = tmp_path / "t" / "adapter_model.safetensors", tmp_path / "t" / "adapter_config.json"
    tensors = {}
    for key, value in load_file(file).items():
        name = key.removeprefix("base_model.model.").removesuffix(".base_layer.bias")
        if key.endswith(".base_layer.bias"):
            tensors[f"base_model.model.{name}.lora_B.bias"] = value - host.base.bias(name)
        else:
            tensors[key] = value
    save_file(tensors, file)
    said.write_text(json.dumps(json.loads(said.read_text()) | {"bias": "none", "lora_bias": True}))
    (tmp_path / "t" / "report.json").unlink()
    back = host.import_peft("back", tmp_path / "t")
    for name in (n for n in tenant.pools if n.endswith("q_proj.b")):
        torch.testing.assert_close(back.pools[name], tenant.pools[name])
