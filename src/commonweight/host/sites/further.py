"""Where vectors can stand in front of the tokens of an encoder's row: one site, beside its table of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from ...core import Site
from ..names import paired, unwrapped
from .families import towers
from .found import Found, Whole
from .physical import Physical, parameters, plain_class
from .tied import said

TABLE = re.compile(r"(wpe|pos(ition)?s?_embed\w*|embed_positions?)$")
STATES, MASKS = "encoder_hidden_states", ("encoder_attention_mask", "encoder_padding_mask")  # given to a decoder
# Encoders that multiply what their table gives by `embed_scale`, and not vectors that they are given in its place.
_SCALED = "MarianEncoder", "PegasusEncoder", "MvpEncoder"
_ESM = 1 - 0.15 * 0.8  # what ESM multiplies the vectors of a row by of which nothing is masked (`token_dropout`)
_MEAN = "Tipsv2TextModel"  # its pooler reads the mask of a row, behind its blocks
_ALONE = "EsmcModel"  # takes tokens, and no vectors in place of them


class Further(Physical):
    """Vectors as further positions of the pass. module: the encoder, whose rows get longer within it; table: of its
    tokens. stack: its part that holds the blocks, behind which a pooler may stand. decoder: what reads all that comes
    out, of an encoder-decoder. scale: of what the table gives."""

    forms = "none"

    def __init__(
        self, name: str, module: nn.Module, table: nn.Embedding, stack: nn.Module | None, decoder: nn.Module | None
    ):
        super().__init__(name, module, "prompt", False)
        self.table, self.stack, self.decoder = table, stack, decoder

    @property
    def flagged(self) -> nn.Module:
        return self.table

    @property
    def scale(self) -> float:
        return scale(self.module)

    @property
    def tables(self) -> list[nn.Embedding]:
        """Of positions."""
        named = ((n.rpartition(".")[2], m) for n, m in self.module.named_modules())
        return [m for n, m in named if isinstance(m, nn.Embedding) and TABLE.fullmatch(n)]

    @property
    def room(self) -> int | None:
        """How many tokens the tables of positions hold; None: any number."""
        return min(map(entries, self.tables), default=None)

    @property
    def skips_padding(self) -> bool:
        """Whether its tables count a row's tokens without padding, as RoBERTa's do."""
        return any(m.padding_idx is not None for m in self.tables)


def find(table: str | None, ahead: list[Found], whole: Whole) -> list[Found]:
    """One for an encoder, alone or before a decoder, that is called with tokens and their mask."""
    if isinstance(made := place(table, ahead, whole), str):
        return []
    width, role = made.table.embedding_dim, "" if made.decoder is None else "encoder"
    return [Found(made, Site(made.name, width, width, "prompt", role, False), True)]


def place(table: str | None, ahead: list[Found], whole: Whole) -> Further | str:
    """Where prompts can stand, or why they cannot. table: of the model's input tokens. ahead: its prefix sites."""
    if table is None:
        return "it names no table of input tokens, among whose vectors a prompt stands"
    home, decoder = _pair(whole)
    if two := decoder is not None:
        if home is None or masked(decoder) is None:
            return "its decoder is given no mask of what it reads of the encoder"
    elif (home := _home(table, ahead, whole)) is None:
        return "as far as it says, its tokens see those before them alone, and its attention takes no keys from outside"
    module = whole.names[home]
    if not _takes_tokens(module):
        return f"{type(module).__name__} is not called with tokens, or vectors in their place, and their mask alone"
    if plain_class(module).__name__ == _MEAN:
        return f"{_MEAN} makes its answer of all places of a row, those of a prompt among them"
    own = said(module, "get_input_embeddings") or whole.names[table]
    at = next((n for n, m in whole.names.items() if m is own), None)
    if not isinstance(own, nn.Embedding) or at is None or not f"{at}.".startswith(f"{home}." if home else ""):
        return f"its tokens become vectors in a {type(own).__name__} of its own kind"
    return Further(f"{at}.prompt", module, own, None if two else _stack(home, whole), decoder)


def _pair(whole: Whole) -> tuple[str | None, nn.Module | None]:
    """The encoder's name and the decoder of an encoder-decoder; (None, None) of any other, and where the encoder stands
    alone."""
    if not paired(whole.model):
        return None, None
    model: Any = unwrapped(whole.model)
    encoder, decoder = (getattr(model, f"get_{k}", lambda: None)() for k in ("encoder", "decoder"))
    known = {id(m): n for n, m in whole.names.items() if n}
    return (known.get(id(encoder)), decoder) if id(decoder) in known and decoder is not encoder else (None, None)


def shared(names: Iterable[str]) -> str:
    """The innermost module that holds all of these."""
    out = []
    for parts in zip(*(n.split(".") for n in names)):
        if len({*parts}) > 1:
            break
        out.append(parts[0])
    return ".".join(out)


def positional(name: str, module: nn.Module) -> bool:
    """Whether it is a table of positions, which is given them."""
    plain = isinstance(module, nn.Embedding) and plain_class(module).forward is nn.Embedding.forward
    return plain and TABLE.search(name.rpartition(".")[2]) is not None


def entries(table: Any) -> int:
    """How many positions a table holds; RoBERTa's kind begins behind its pad token's number."""
    before = getattr(table, "offset", 0)
    return table.num_embeddings - before - (0 if table.padding_idx is None or before else table.padding_idx + 1)


def scale(encoder: nn.Module) -> float:
    """What an encoder multiplies the vectors by that its table gives, and not those that it is given."""
    if any(getattr(m, "token_dropout", False) for m in encoder.modules()):
        return _ESM
    by: Any = getattr(encoder, "embed_scale", 1.0)
    return float(by) if plain_class(encoder).__name__ in _SCALED else 1.0


def masked(decoder: nn.Module) -> str | None:
    """What a decoder calls the mask of an encoder's states that it is given."""
    known = parameters(decoder)
    return next((m for m in MASKS if m in known), None) if STATES in known else None


def _takes_tokens(module: nn.Module) -> bool:
    """Whether it is called with rows of tokens, or vectors in their place, and their mask, and with nothing that stands
    among them."""
    known, kind = {*parameters(module)}, plain_class(module).__name__
    wanted = {"input_ids", "attention_mask"} | (set() if kind == _ALONE else {"inputs_embeds"})
    return wanted <= known and not known & {"pixel_values", "visual_embeds"}


def _home(table: str, ahead: list[Found], whole: Whole) -> str | None:
    """The module around the table and the blocks of an encoder, which may be taken from a pair; None where a token sees
    those before it alone, or nothing says that it sees others."""
    at = [f.at for f in ahead if f.default]
    ways = {getattr(a.module, "is_causal", None) for a in at} or {None}
    if ways - {None, False} or (None in ways and not (reads_both_ways(whole.model) or paired(whole.model))):
        return None
    tower = towers(whole.model)
    mine = [a.name for a in at] or [b for b in whole.parts if tower(b) == tower(table)]
    if not mine:
        return None
    home = shared([table, *mine])
    while home and not _takes_tokens(whole.names[home]):
        home = home.rpartition(".")[0]
    return home


def reads_both_ways(model: nn.Module) -> bool:
    """Of a model whose attention does not say it: whether transformers lists its kind among those that fill masks, or
    among those that answer about tokens and do not generate."""
    config = getattr(unwrapped(model), "config", None)
    kind = getattr(config, "model_type", None)
    if kind is None or any(getattr(config, k, False) for k in ("is_decoder", "causal", "is_encoder_decoder")):
        return False
    from transformers.models.auto import modeling_auto as auto

    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    about = auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
    return any(kind in names for names in about) and kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _stack(home: str, whole: Whole) -> nn.Module | None:
    """The part of the encoder that holds all blocks and runs them."""
    start = f"{home}." if home else ""
    parts = {b.removeprefix(start).split(".")[0] for b in whole.parts if b.startswith(start)}
    found = whole.names.get(start + parts.pop()) if len(parts) == 1 else None
    return None if isinstance(found, nn.ModuleList) else found
