"""How much a method reads: biases alone, entries of a table, outputs; the same of a method and of its tenant."""

import pytest
import transformers as tf

import commonweight as cw
from tests.laws.subjects import small, stir
from tests.models import make


@pytest.fixture(scope="module")
def hosts():
    return {k: cw.Host(make(k)[0]) for k in ("qwen", "bert", "llama")}


def numbers(model, ends):
    return sum(p.numel() for n, p in model.named_parameters() if n.endswith(ends))


def test_biases_alone(hosts):
    qwen, bert = hosts["qwen"], hosts["bert"]
    found = qwen.coverage("bitfit")
    assert found.read == numbers(qwen.model, "proj.bias")  # of q, k and v
    assert {x.family for x in found.left} >= {"the rest of layers", "layers without biases", "heads without biases"}
    assert "add them" not in found.line and "no weight" not in found.line
    inside = [n for n, _ in bert.model.named_parameters() if n.startswith("encoder.") and n.endswith("bias")]
    assert bert.coverage("bitfit").read == sum(bert.model.get_parameter(n).numel() for n in inside)


def test_entries_of_a_table(hosts):
    assert hosts["llama"].coverage("tokens", tokens=[1, 5, 7]).read == 3 * 32


def test_what_acts_on_outputs_changes_no_weight(hosts):
    for method, options in (("bottleneck", {}), ("lora", {"invocation": [5]})):
        found = hosts["llama"].coverage(method, **options)
        assert found.behind and found.read
        assert found.line.startswith(f"{method} changes no weight; it acts on what layers with ")
    for method in ("lora", "ia3", "bitfit", "full"):
        assert not hosts["qwen"].coverage(method).behind
    assert not hosts["llama"].coverage("loreft").behind and not hosts["llama"].coverage("loreft").read


@pytest.mark.parametrize("kind", ["qwen", "bert", "llama"])
def test_a_method_reads_what_its_tenant_does(hosts, kind):
    host = hosts[kind]
    for method in ("bitfit", "ia3", "lntuning", "full", "lora", "tokens", "bottleneck", "vera", "prefix-tuning", "mos"):
        try:
            host.add("t", method, **small(method))
        except cw.CommonweightError:
            continue
        said, his = host.coverage(method, **small(method)), host.coverage("t")
        for what in ("read", "total", "left", "behind"):
            assert getattr(said, what) == getattr(his, what)
        assert said.read + sum(x.numbers for x in said.left) == said.total
        host.remove("t")


def test_options_that_do_not_fit_are_refused_as_a_tenant_would_be(hosts):
    with pytest.raises(cw.CommonweightError, match=r"bitfit reads sites .* that have a bias"):
        hosts["llama"].coverage("bitfit")
    assert hosts["llama"].coverage("eva").read  # which begins from rows


@pytest.mark.parametrize(("method", "options"), [("lora", {}), ("lora", {"bias": True}), ("bitfit", {}), ("full", {})])
def test_what_is_read_is_what_can_change(method, options):
    base = {n: p.clone() for n, p in make("bert")[0].named_parameters()}
    host = cw.Host(make("bert")[0])
    stir(host.add("t", method, **options))
    changed = sum(int((base[n] != w).sum()) for n, w in host.merged("t").items() if n in base)
    assert host.coverage("t").read == host.coverage(method, **options).read == changed


def test_biases_that_are_left_are_called_so():
    host = cw.Host(make("bert")[0])
    assert "  left out: biases of layers, 2.1% (448); read by bitfit, full" in str(host.coverage("lora")).splitlines()
    assert "biases" not in str(host.coverage("lora", bias=True))
    assert "biases of" not in str(host.coverage("full")) + str(host.coverage("bitfit"))


def test_of_a_tenant_itself():
    host = cw.Host(make("llama")[0])
    tenant = host.add("a", "lora", rank=2)
    assert host.coverage(tenant) == host.coverage("a")


def test_words_that_add_a_family_are_said_once(hosts):
    words = hosts["bert"].coverage("full", sites="pooler.dense").line.split("'...|")[1].split("'")[0].split("|")
    assert len(words) > 1 and len(set(words)) == len(words)


def test_the_bias_of_a_head_that_follows_the_table_is_added_by_no_pattern():
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    host = cw.Host(tf.BertForMaskedLM(tf.BertConfig(**size, vocab_size=61)))
    (left,) = host.coverage("full", sites="*").left
    assert (left.family, left.numbers, left.sites, left.methods) == ("biases of heads", 61, "", ("bitfit",))
    assert host.coverage("bitfit", sites="heads").read > 61
    assert "heads" in {x.sites for x in host.coverage("full").left}  # without the table a pattern adds it
