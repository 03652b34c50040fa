"""What a projection does, by its name."""

from __future__ import annotations

import re
from functools import cache

_ROLES = (  # first match wins; the projection's name in the architectures that transformers carries
    (
        "attn_out",
        r"(attention\.output\.dense|(attn|attention|Attention)\w*\.(o_proj|out_proj|c_proj|o|dense|out_lin|wo|proj))$",
    ),
    ("qkv", r"(c_attn|qkv_proj|query_key_value|qkv|Wqkv|in_proj)$"),
    ("query", r"(q_proj|query|\bq|q_lin|q_a_proj|q_b_proj|wq)$"),
    ("key", r"(k_proj|key|\bk|k_lin|wk)$"),
    ("value", r"(v_proj|value|\bv|v_lin|wv)$"),
    ("gate", r"(gate_proj|wi_1|w3)$"),
    ("up", r"(up_proj|intermediate\.dense|fc1|wi|wi_0|c_fc|lin1|w1|dense_h_to_4h|gate_up_proj)$"),
    ("down", r"(down_proj|output\.dense|fc2|\bwo|mlp\.c_proj|lin2|w2|dense_4h_to_h)$"),
)


@cache
def role(name: str) -> str:
    return next((r for r, pattern in _ROLES if re.search(pattern, name)), "")
