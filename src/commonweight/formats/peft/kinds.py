"""Every adapter type of PEFT 0.21.2 (`peft.PeftType`), and how it is read here. The table of the documentation."""

from __future__ import annotations

from typing import Literal, NamedTuple

VERSION = "0.21.2"


class Kind(NamedTuple):
    """how: "native", our own method; "low rank" and "whole", through PEFT as a change of weights; "refused".

    says: our method, what the change becomes, or why it is none.
    """

    how: Literal["native", "low rank", "whole", "bias", "refused"]
    says: str


_PROMPT = "its trained vectors stand before the text or in the keys and values of attention: no change of weights"
_GATE = "its change depends on the input, so it is no change of weights"

KINDS: dict[str, Kind] = {
    "ADALORA": Kind("native", "`adalora`; trained biases and convolutions through PEFT"),
    "ADAMSS": Kind("low rank", "of the rank of its subspaces"),
    "ADAPTION_PROMPT": Kind("refused", f"{_PROMPT}; a gate scales them"),
    "BEFT": Kind("bias", "where the layer has a bias, as in BERT; a layer without one is refused"),
    "BOFT": Kind("native", "`boft`"),
    "C3A": Kind("native", "`c3a`, with blocks of several sizes too"),
    "CARTRIDGE": Kind("refused", _PROMPT),
    "CPT": Kind("refused", _PROMPT),
    "DEFT": Kind("low rank", "of rank r"),
    "DELORA": Kind("native", "`delora`"),
    "FOURIERFT": Kind("native", "`fourierft`"),
    "FROD": Kind("whole", "rotations of the base"),
    "GLORA": Kind("whole", "also scales the base; a shift of the bias where the layer has one"),
    "GRALORA": Kind("native", "`gralora`"),
    "HIRA": Kind("native", "`hira`"),
    "HRA": Kind("native", "`hra`; an odd r and apply_GS through PEFT"),
    "IA3": Kind("native", "`ia3`"),
    "LILY": Kind("refused", f"{_GATE}: a router weighs its experts by the whole batch"),
    "LN_TUNING": Kind("native", "`lntuning`"),
    "LOHA": Kind("native", "`loha`; dropout and patterns through PEFT"),
    "LOKR": Kind("native", "`lokr`; dropout and patterns through PEFT"),
    "LORA": Kind(
        "native",
        "`lora`, `dora`, `eva`, `pissa`, `olora`; `corda` and `lora-ga` with `start=`; `lora-fa`; beside it "
        "`modules_to_save` and `trainable_token_indices`",
    ),
    "MISS": Kind("native", '`miss`; "bat" and "mini" through PEFT'),
    "MULTITASK_PROMPT_TUNING": Kind("refused", _PROMPT),
    "OFT": Kind("native", "`oft`"),
    "OSF": Kind("whole", "the small singular directions of the base"),
    "PEANUT": Kind("low rank", "of rank r"),
    "POLY": Kind("low rank", "of rank r: one task, which `task=` names"),
    "PREFIX_TUNING": Kind("native", "`prefix-tuning`; of encoder-decoders with tables of positions (BART) too"),
    "PROMPT_TUNING": Kind(
        "native", "`prompt-tuning`, in causal decoders, in encoders, and in front of what an encoder-decoder reads"
    ),
    "PSOFT": Kind("low rank", "of rank r"),
    "PVERA": Kind("low rank", "of rank r; of its mean, and refused with sample_at_inference"),
    "P_TUNING": Kind("native", "`p-tuning`: what its network gave; where `prompt-tuning` is"),
    "RANDLORA": Kind("native", "`randlora`"),
    "ROAD": Kind("native", "`road`"),
    "SHADOW": Kind("refused", "a second, small model runs beside the base: no change of its weights"),
    "SHIRA": Kind("whole", "sparse"),
    "SUPERTUNING": Kind("whole", "sparse"),
    "TINYLORA": Kind("native", "`tinylora`; on tables of embeddings through PEFT, as LoRA"),
    "TRAINABLE_TOKENS": Kind("native", "`tokens`; beside another method `token_rows`"),
    "UNILORA": Kind("low rank", "of rank r"),
    "VBLORA": Kind("native", "`vb-lora`"),
    "VERA": Kind("native", "`vera`"),
    "WAVEFT": Kind("native", "`waveft`; other wavelets than db1, proportional_parameters and patterns through PEFT"),
    "XLORA": Kind("refused", f"{_GATE}; import its LoRA one by one, and train an `xlora` over them"),
}

THROUGH = frozenset(n for n, k in KINDS.items() if k.how in ("low rank", "whole", "bias"))
THROUGH_LORA = "kasa_config", "use_bdlora"  # options of a LoRA whose change only PEFT computes
