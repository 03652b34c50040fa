"""Prompts in encoders: further positions of the pass, in mixed batches, of which nothing is seen outside."""

import copy

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import VOCAB, make

SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB, pad_token_id=0,
    max_position_embeddings=40,
)  # fmt: skip
SHORT = dict(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=VOCAB, pad_token_id=0, max_position_embeddings=40)


def encoder(name, head="Model", attention="sdpa", **more):
    torch.manual_seed(0)
    config = getattr(tf, f"{name}Config")(**(SHORT if name == "DistilBert" else SIZES), **more)
    model = getattr(tf, f"{name}{head}")(config).eval()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return model


def rows():
    return make("llama")[1]["input_ids"]


READERS = ["three", "five", None, "lora", "prefix", "dept", "loreft", "lst"]


def readers(host):
    stir(host.add("three", "prompt-tuning", tokens=3), 1)
    stir(host.add("five", "p-tuning", tokens=5, hidden=6), 2)
    stir(host.add("lora", "lora", rank=3), 3)
    stir(host.add("prefix", "prefix-tuning", tokens=2), 4)
    stir(host.add("dept", "dept", tokens=4, rank=3, length=9), 5)
    stir(host.add("loreft", "loreft", prefix=2), 6)
    stir(host.add("lst", "lst"), 7)
    return READERS


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "DistilBert"])
def test_a_row_of_a_mixed_batch_is_that_row_alone(name, attention):
    """Padded on the right, and where the model counts tokens without padding on the left."""
    model = encoder(name, attention=attention)
    host = cw.Host(model)
    route, ids = readers(host), torch.cat([rows(), rows().flip(1)])
    for left in [False, True] if name == "Roberta" else [False]:
        mask = torch.ones_like(ids)
        for i, n in enumerate((0, 2, 1, 3, 0, 2, 1, 0)):
            mask[i, slice(0, n) if left else slice(6 - n, 6)] = 0
        some = [i for i, r in enumerate(route) if not (left and r == "loreft")]  # it counts from the left end
        given = {"input_ids": torch.where(mask == 1, ids, 0)[some], "attention_mask": mask[some]}
        with torch.no_grad(), host.route([route[i] for i in some]):
            mixed = model(**given).last_hidden_state
        assert mixed.shape == (len(some), 6, 32)
        for at, i in enumerate(some):
            keep = mask[i].bool()
            with torch.no_grad(), host.route(route[i]):
                alone = model(input_ids=ids[i : i + 1, keep]).last_hidden_state[0]
            torch.testing.assert_close(mixed[at, keep], alone, rtol=1e-4, atol=1e-5)


def test_results_have_the_shapes_of_the_input():
    """Of attention a row's tokens are left, and the keys that they read, as with a prefix."""
    model = encoder("Bert", attention="eager")
    host = cw.Host(model)
    stir(host.add("t", "prompt-tuning", tokens=3))
    with torch.no_grad(), host.route(["t", None, "t", None]):
        out = model(rows(), torch.ones(4, 6), output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(4, 6, 32)] * 3
    assert [tuple(a.shape) for a in out.attentions] == [(4, 4, 6, 9)] * 2
    assert out.attentions[0][1, :, :, 6:].abs().max() == 0


def longer(plain, E, ids, **more):
    words = plain.get_input_embeddings()(ids)
    return plain(inputs_embeds=torch.cat([E.expand(len(ids), -1, -1), words], 1), **more)


@pytest.mark.parametrize("name", ["Albert", "Camembert", "Electra", "Ernie", "XLMRoberta", "RobertaPreLayerNorm"])
def test_other_encoders_with_tables_of_positions(name):
    model = encoder(name, **({"embedding_size": 16} if name in ("Albert", "Electra") else {}))
    plain, host = copy.deepcopy(model), cw.Host(model)
    (E,) = stir(host.add("t", "prompt-tuning", tokens=3)).pools.values()
    with torch.no_grad(), host.route(["t", None, "t", "t"]):
        got = model(input_ids=rows()).last_hidden_state
        want = longer(plain, E, rows()).last_hidden_state[:, 3:]
    torch.testing.assert_close(got[[0, 2, 3]], want[[0, 2, 3]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DistilBert"])
def test_what_a_head_reads(name):
    """A row's own first token, or with `leads` the first vector, as in PEFT; with token types."""
    model = encoder(name, "ForSequenceClassification", num_labels=3)
    plain, host = copy.deepcopy(model), cw.Host(model)
    own, first = (stir(host.add(str(b), "prompt-tuning", tokens=3, leads=b)) for b in (False, True))
    first.pools["E" if "E" in first.pools else next(iter(first.pools))].data.copy_(next(iter(own.pools.values())))
    (E,) = own.pools.values()
    types = {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(4, -1)} if name == "Bert" else {}
    many = {k: torch.cat([torch.zeros(4, 3, dtype=torch.long), v], 1) for k, v in types.items()}
    core = getattr(plain, plain.base_model_prefix)
    states = []
    core.register_forward_hook(lambda m, a, y: states.append(y))
    with torch.no_grad():
        want = longer(plain, E, rows(), **many).logits
        with host.route("True"):
            torch.testing.assert_close(model(rows(), **types).logits, want, rtol=1e-4, atol=1e-5)
        last = states[0].last_hidden_state[:, 3:]
        if name == "Bert":
            want = plain.classifier(plain.bert.pooler(last))
        elif name == "Roberta":
            want = plain.classifier(last)
        else:
            want = plain.classifier(torch.relu(plain.pre_classifier(last[:, 0])))
        with host.route(["False", None, "False", "True"]):
            got = model(rows(), **types).logits
    torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_are_those_of_a_longer_input(reentrant):
    model = encoder("Bert")
    plain, host = copy.deepcopy(model), cw.Host(model)
    (E,) = stir(host.add("t", "prompt-tuning", tokens=3)).parameters()
    stir(host.add("lora", "lora", rank=2))
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        for layer in model.encoder.layer:  # its own flag alone: no dropout is in force
            layer.training = True
    with host.route(["t", None, "lora", "t"]):
        y = model(input_ids=rows(), attention_mask=torch.ones(4, 6)).last_hidden_state
    y[[0, 3]].square().sum().backward()
    again = E.detach().clone().requires_grad_()
    longer(plain, again, rows()[[0, 3]]).last_hidden_state[:, 3:].square().sum().backward()
    torch.testing.assert_close(E.grad, again.grad, rtol=1e-3, atol=1e-4)


def test_a_copy_and_the_model_afterwards():
    model = encoder("Bert", "ForSequenceClassification")
    inner = encoder("Bert")
    for at, whole in ((model, model.bert), (inner, inner)):
        host = cw.Host(at)
        stir(host.add("t", "prompt-tuning", tokens=3))
        assert "forward" in whole.__dict__
        with torch.no_grad(), host.route("t"):
            want = at(rows())[0]
        again = copy.deepcopy(host)
        host.close()
        assert "forward" not in whole.__dict__ and not at._forward_pre_hooks
        with torch.no_grad(), again.route("t"):
            torch.testing.assert_close(again.model(rows())[0], want)


def test_what_cannot_be_a_longer_row():
    host = cw.Host(encoder("Bert"))
    host.add("t", "prompt-tuning", tokens=35)
    with torch.no_grad(), host.route("t"):
        with pytest.raises(cw.CommonweightError, match=r"rows of 6 tokens are 41 with .* table of positions holds 40"):
            host.model(rows())
        with pytest.raises(cw.CommonweightError, match=r"attention_mask is \(4, 1, 6, 6\), .* wanted .* \(4, 6\)"):
            host.model(rows(), torch.ones(4, 1, 6, 6))
    numbers = torch.full((4, 6), host["t"].number)
    with torch.no_grad(), host.route(numbers), pytest.raises(cw.CommonweightError, match="give one reader per row"):
        host.model(rows())


def test_under_torch_compile():
    """The encoder is left out of what is compiled while a prompt makes its rows longer."""
    host = cw.Host(encoder("Bert"))
    stir(host.add("t", "prompt-tuning", tokens=3))
    torch._dynamo.reset()
    compiled = torch.compile(host.model, backend="eager")
    with torch.no_grad(), host.route(["t", None, "t", None]):
        torch.testing.assert_close(compiled(rows())[0], host.model(rows())[0])


def test_padding_may_go_past_the_table_of_positions():
    """A full row beside one with a prompt, and a short one with it."""
    model = encoder("Bert")
    host = cw.Host(model)
    stir(host.add("t", "prompt-tuning", tokens=5))
    ids = torch.randint(3, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 35:] = 0
    with torch.no_grad():
        with host.route([None, "t"]):
            got = model(ids, mask).last_hidden_state
        torch.testing.assert_close(got[0], model(ids[:1]).last_hidden_state[0], rtol=1e-4, atol=1e-5)
        with host.route("t"):
            alone = model(ids[1:, :35]).last_hidden_state[0]
    torch.testing.assert_close(got[1, :35], alone, rtol=1e-4, atol=1e-5)
