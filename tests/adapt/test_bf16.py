"""Mixed precision: products in bfloat16, numbers and their updates in float32."""

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight import share
from commonweight.adapt import adapt
from tests.adapt import tiny


def trained(folder, task, rows, **recipe):
    """(the tenant, its curve, the formats in which the base computed)."""
    host = cw.adapt.open_host(folder, dtype="float32", task=task)
    seen = set()
    linear = next(m for n, m in host.model.named_modules() if isinstance(m, torch.nn.Linear) and "layer" in n)
    handle = linear.register_forward_hook(lambda module, args, y: seen.add(y.dtype))
    done = adapt(host, "t", rows, task=task, method="lora", epochs=3, batch_size=8, dev_rows=0.2, **recipe)
    handle.remove()
    return host["t"], done.curve, seen


@pytest.mark.parametrize("task", ["lm", "classify"])
def test_the_curve_is_that_of_float32_up_to_rounding(task, llama, bert):
    folder, rows = (llama, [{"text": r["text"]} for r in tiny.rows(40)]) if task == "lm" else (bert, tiny.rows(40))
    plain, exact, formats = trained(folder, task, rows)
    mixed, curve, lower = trained(folder, task, rows, bf16=True)
    assert formats == {torch.float32} and lower == {torch.bfloat16}
    assert {p.dtype for p in mixed.pools.values()} == {torch.float32}
    for a, b in zip(exact, curve, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05) and ("dev_loss" in a) == ("dev_loss" in b)
    assert any(not torch.equal(plain.pools[n], p) for n, p in mixed.pools.items())


def test_a_shared_model_is_healed_in_bfloat16_and_stays_in_float32(llama):
    def healed(**recipe):
        teacher = tf.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        small = share.share(teacher, "recursive", loops=2)
        rows = [{"text": r["text"]} for r in tiny.rows(60)]
        done = share.heal(
            small, teacher=teacher, rows=rows, tokens=1500, batch_size=4, max_length=32, lr=3e-3, **recipe
        )
        assert {p.dtype for p in small.parameters()} == {torch.float32}
        return [c["loss"] for c in done.curve]

    exact, mixed = healed(), healed(bf16=True)
    assert mixed == pytest.approx(exact, rel=0.05) and mixed != exact
    assert mixed[-1] < mixed[0]
