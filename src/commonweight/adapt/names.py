"""Words that a run's settings may hold, for who looks at them before torch is loaded."""

TASKS = ("classify", "embed", "lm")
DTYPES = ("auto", "float32", "bfloat16")
CODECS = ("bfloat16", "int8", "int4", "compeft")
DEVICES = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"
