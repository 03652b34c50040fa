"""Words that a run's settings may hold, for who looks at them before torch is loaded."""

TASKS = ("classify", "embed", "lm", "dpo", "orpo", "kto", "grpo")
PREFERENCES = ("dpo", "orpo", "kto", "grpo")  # through TRL
COMPARED = ("classify", "embed", "lm")
CAUSAL = ("lm", *PREFERENCES)
DTYPES = ("auto", "float32", "bfloat16")
OPTIMIZERS = (
    "adamw", "adamw-8bit", "adafactor", "lion", "lion-8bit", "muon", "prodigy", "schedule-free", "sgd", "gradnormlorp",
)  # fmt: skip
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
LOGS = ("tensorboard", "trackio")
SIDES = ("left", "right")
CODECS = ("bfloat16", "int8", "int4", "compeft", "onebit", "ordered")
DEVICES = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"
EXPERTS = ("nf4", "nf4-double", "fp4")  # of these forms, those in which fused experts are packed too
QUANTISED = (
    "nf4",
    "nf4-double",
    "fp4",
    "int8",
    "torchao-int8",
    "torchao-int4",
    "torchao-float8",
    "quanto-int8",
    "quanto-int4",
)
