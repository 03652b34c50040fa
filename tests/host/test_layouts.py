"""Models laid out in less common ways: tokens before rows, blocks of two streams, layers with their own forward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import commonweight as cw
from commonweight.host import tokens_first
from tests.laws.subjects import stir

V = 61


def same(host, run, names, plain=None, **close: Any):
    """A mixed batch is each row alone; with `plain`, a new model, each tenant is its merged weights too."""
    close = {"rtol": 1e-4, "atol": 1e-5} | close
    alone = {}
    with torch.no_grad():
        for n in dict.fromkeys(names):
            with host.route(n):
                alone[n] = run(host.model)
            if plain is not None and n is not None:
                model = plain()
                assert not model.load_state_dict(host.merged(n), strict=False).unexpected_keys
                torch.testing.assert_close(run(model), alone[n], **close)
        with host.route(names):
            mixed = run(host.model)
    for i, n in enumerate(names):
        torch.testing.assert_close(mixed[i], alone[n][i], **close)
    return alone


def xlnet():
    torch.manual_seed(0)
    return tf.XLNetModel(tf.XLNetConfig(vocab_size=V, d_model=32, n_layer=1, n_head=4, d_inner=64)).eval()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("tokens", [3, 5])
def test_tokens_before_rows_are_told_from_rows_when_there_are_as_many(tokens, known, monkeypatch):
    """XLNet turns its input; with three rows of three tokens the shapes alone say nothing. Where its class is not
    known, a batch runs reader by reader."""
    if not known:
        monkeypatch.setattr(tokens_first, "_ALL", set())
    host = cw.Host(xlnet())
    for i, n in enumerate("tu"):
        stir(host.add(n, "lora", rank=2), i, std=0.3)
    ids = torch.randint(3, V, (3, tokens), generator=torch.Generator().manual_seed(1))
    alone = same(host, lambda m: m(ids).last_hidden_state, ["t", None, "u"])
    assert bool(host.model.forward.apart) is not known
    if tokens == 3:
        numbers = torch.full((3, 3), host["t"].number)
        numbers[0] = -1
        if known:
            with host.route(numbers), torch.no_grad():
                found = host.model(ids).last_hidden_state
            torch.testing.assert_close(found, torch.cat([alone[None][:1], alone["t"][1:]]), rtol=1e-4, atol=1e-5)
            return
        other = cw.Host(xlnet())
        stir(other.add("t", "lora", rank=2))
        with other.route(numbers), pytest.raises(cw.CommonweightError, match="not the batch's rows in their order"):
            other.model(ids)


def test_it_is_looked_once_where_rows_go_and_nothing_is_drawn():
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=V,
        attention_dropout=0.5,
    )  # fmt: skip
    passes = []
    found = []
    for looked in (False, True):
        torch.manual_seed(0)
        host = cw.Host(tf.LlamaForCausalLM(config).train())
        for i, n in enumerate("tu"):
            stir(host.add(n, "lora", rank=2), i)
        if looked:
            host.model.forward.looked = {host[n].places for n in "tu"}
        host.model.lm_head.register_forward_hook(lambda *_: passes.append(1))
        torch.manual_seed(3)
        with host.route(["t", None, "u"]):
            for _ in range(2):
                found.append(host.model(torch.arange(9).view(3, 3)).logits)
        assert host.model.forward.looked and not host.model.forward.apart
    assert len(passes) == 4 + 2
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


class Regrouped(nn.Module):
    """Layers that are given something of a batch's shape that is not the batch."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.table = how, nn.Parameter(torch.randn(3, 8))
        self.enter, self.layer, self.gate = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.pieces = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.enter(x))
        if self.how == "a table":
            return x + self.layer(self.table).sum(0)
        if self.how == "queries before rows":
            y = self.layer(self.table[:, None].expand(-1, len(x), -1))
            return torch.einsum("lbd,btd->btl", y, x)
        if self.how == "tokens in one list":
            return self.layer(x.transpose(0, 1).reshape(-1, 8)).reshape(x.shape[1], x.shape[0], 8).transpose(0, 1)
        if self.how == "sorted rows":
            order = x.mean((1, 2)).argsort()
            return self.layer(x[order])[order.argsort()]
        flat = x.reshape(-1, 8)  # every token goes to both, the better one first
        best = self.gate(flat).argsort(-1)
        y = torch.zeros_like(flat)
        for i, piece in enumerate(self.pieces):
            token = torch.cat([torch.where(best[:, slot] == i)[0] for slot in (1, 0)])
            y = y.index_add(0, token, (i + 1) * piece(flat[token]).tanh())
        return y.reshape(x.shape)


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "how", ["a table", "queries before rows", "tokens in one list", "sorted rows", "every token twice"]
)
def test_what_has_the_shape_of_a_batch_is_not_taken_for_one(how, train, rows):
    torch.manual_seed(0)
    model = Regrouped(how)
    model.table = nn.Parameter(model.table[:rows])
    host = cw.Host(model.train(train))
    for i, n in enumerate("tu"):
        stir(host.add(n, "lora", rank=2, sites="pieces.*" if how == "every token twice" else "layer"), i, std=0.5)
    x = torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(1))
    if train:
        with host.route(["t", None, "u"][:rows]):
            model(x)
        assert all(m.training for m in model.modules())
        assert host.model.forward.apart
        return
    same(host, lambda m: m(x), ["t", None, "u"][:rows])


class Sided(nn.Module):
    """One layer is given rows, the other tokens in front of them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.turned = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, past_key_values: object = None) -> Tensor:
        return x + self.rows(x) + self.turned(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("tokens", [3, 5])
def test_only_who_reads_at_an_unfit_site_runs_reader_by_reader(tokens):
    torch.manual_seed(0)
    host = cw.Host(Sided().eval())
    for i, (n, at) in enumerate({"t": "rows", "u": "rows", "v": "turned", "w": "turned"}.items()):
        stir(host.add(n, "lora", rank=2, sites=at), i, std=0.5)
    x = torch.randn(3, tokens, 8, generator=torch.Generator().manual_seed(1))
    passes = []
    host.model.rows.register_forward_hook(lambda *_: passes.append(1))

    def run(readers: list) -> list[int]:
        """How many passes each call takes, the first one to look aside."""
        counts = []
        for _ in range(2):
            passes.clear()
            same(host, lambda m: m(x), readers)
            counts.append(len(passes) - len(set(readers)))
        return counts

    assert run(["t", None, "u"])[1] == 1
    assert run(["v", "t", "w"])[1] == 3  # seen at once, though the rows of others were found before
    assert run(["u", "t", None]) == [1, 1]
    with host.route(["t", "u", None]):
        host.model(x, past_key_values=object())
    with host.route(["v", "u", None]), pytest.raises(cw.CommonweightError, match=r"turned: .*holds all rows at once"):
        host.model(x, past_key_values=object())


class Streams(NamedTuple):
    text: Tensor | None
    image: Tensor


class Joint(nn.Module):
    """A block of two streams that gives the text's first, and at the end None in its place."""

    def __init__(self, width: int, last: bool):
        super().__init__()
        self.last = last
        self.norm_q = nn.RMSNorm(width // 2)
        self.image, self.out = nn.Linear(width, width), nn.Linear(width, width)
        if not last:
            self.text = nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(2, width))

    def forward(self, image: Tensor, text: Tensor) -> Streams:
        image = image + self.norm_q(self.image(image + text.mean(1, keepdim=True)).unflatten(-1, (2, -1))).flatten(-2)
        image = self.out(image) * self.table[0] + self.table[1]
        return Streams(None if self.last else text + self.text(text).tanh(), image)


class Stack(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width)
        self.blocks = nn.ModuleList(Joint(width, last) for last in (False, True))
        self.scale_shift = nn.Parameter(torch.randn(width))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        for block in self.blocks:
            text, image = block(image, text)
        return image * self.scale_shift


def stack():
    torch.manual_seed(0)
    return Stack().double().eval()


def streams(m):
    g = torch.Generator().manual_seed(1)
    image, text = (torch.randn(3, n, 16, generator=g, dtype=torch.float64) for n in (5, 4))
    return m(image, text)


def test_a_block_of_two_streams_is_edited_in_the_one_that_it_was_given():
    host = cw.Host(stack())
    stir(host.add("t", "loreft", rank=2), std=0.3)
    stir(host.add("u", "lora", rank=2), 1)
    alone = same(host, streams, ["t", None, "u"])
    assert (alone["t"] - alone[None]).abs().max() > 1e-3


def test_parameters_of_blocks_and_of_the_model_itself_are_sites():
    host = cw.Host(stack())
    stir(host.add("t", "full", sites="*"), std=0.05)
    stir(host.add("u", "full"), 1)
    assert host.coverage("t").share == 1.0
    assert {"blocks.0.table", "scale_shift"} <= set(host["t"].table) and "blocks.1.table" in host["u"].table
    same(host, streams, ["t", None, "u"], stack)
    other = cw.Host(stack())
    assert other.coverage().left[0].sites == "*scale_shift"
    with pytest.raises(cw.CommonweightError, match=r"blocks.0: this block gives .* wanted states with 16 features"):
        other.model.blocks[0].forward = lambda image, text: (text[..., :4], image[..., :4])
        other.add("t", "loreft", rank=2)
        with other.route("t"):
            streams(other.model)


class InGroups(nn.Linear):
    """As DeepSeek V4 has it: rows of the weight in groups, each for its own piece of the input."""

    def __init__(self, inp: int, out: int, groups: int):
        super().__init__(inp, out, bias=False)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        return torch.einsum("...gi,goi->...go", input, self.weight.view(self.groups, -1, self.in_features))


class Turned(nn.Linear):
    """A forward of its own that is the usual product, as Falcon has it."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.groups, self.turned = InGroups(8, 12, 2), Turned(12, 8)
        self.norm = GateNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.turned(self.groups(x.unflatten(-1, (2, 8))).flatten(-2)), x[..., :8])[0]


class GateNorm(nn.Module):
    """A norm that is given a gate, and gives a pair."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, None]:
        return self.weight * nn.functional.normalize(x, dim=-1) * gate, None


def gated():
    torch.manual_seed(0)
    model = Gated().double().eval()
    model.turned = Turned(24 // 2, 8).double()
    return model


@pytest.mark.parametrize("method", ["lora", "full", "dora", "ia3", "oft", "bottleneck"])
def test_a_layer_with_a_forward_of_its_own_is_what_it_makes_of_the_changed_weight(method):
    host = cw.Host(gated())
    assert host.base.modules["turned"].forms == "all" and host.base.modules["groups"].forms == "none"
    assert next(s.kind for s in host.base.every if s.name.startswith("norm")) == "parameter"
    options = {"lora": {"rank": 2}, "dora": {"rank": 2}, "oft": {"block_size": 4}}.get(method, {})
    if method == "bottleneck":
        with pytest.raises(cw.CommonweightError):
            stir(host.add("t", method, sites="groups"))
            host.merged("t")
        return
    stir(host.add("t", method, sites="*" if method == "full" else None, **options), std=0.2)
    stir(host.add("u", "lora", rank=2), 1)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same(host, lambda m: m(x), ["t", None, "u"], gated)


def bert():
    torch.manual_seed(0)
    return tf.BertForMaskedLM(
        tf.BertConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=V,
            max_position_embeddings=16,
        )
    ).eval()  # fmt: skip


def test_a_bias_that_stands_twice_is_one_site():
    host = cw.Host(bert())
    stir(host.add("t", "full", sites="*"))
    assert host.coverage("t").share == 1.0
    ids = torch.arange(3, 15).view(3, 4)
    same(host, lambda m: m(ids).logits, ["t", None, "t"], bert)


def test_what_compares_rows_is_known_within_a_reader_alone():
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.CLIPConfig(
        text_config={**text, "vocab_size": V, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**text, "image_size": 8, "patch_size": 4},
    )
    host = cw.Host(tf.CLIPModel(config).eval())
    stir(host.add("t", "full", sites="*"))
    batch = {"input_ids": torch.arange(3, 15).view(3, 4), "pixel_values": torch.randn(3, 3, 8, 8)}
    with torch.no_grad():
        with host.route("t"):
            alone = host.model(**batch).logits_per_image
        with host.route(["t", None, "t"]):
            mixed = host.model(**batch).logits_per_image
    mine = [0, 2]
    torch.testing.assert_close(mixed[mine][:, mine], alone[mine][:, mine], rtol=1e-4, atol=1e-5)
    assert mixed[0, 1].isnan() and mixed[1, 0].isnan() and not mixed[1, 1].isnan()
