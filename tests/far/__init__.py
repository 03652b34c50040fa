"""A device that is not there: its memory is the processor's, and what mixes it with the processor's tensors fails.

No machine of ours has a GPU, and a tensor that is made on the wrong device is the fault that users of one meet first.
`COMMONWEIGHT_TEST_DEVICE=far pytest tests/gpu tests/laws` (`make far`) shows it on every processor: torch's place for
devices of others (PrivateUse1) with the processor's own operations behind it. torch compiles it once, in some seconds.
It says nothing of speed, of kernels, or of what libraries do on CUDA alone.
"""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import torch

NAME = "far"


@functools.cache
def begin() -> None:
    """From here on there is such a device, and what chooses a device by itself chooses it."""
    from torch.utils.cpp_extension import load

    load(NAME, [str(Path(__file__).with_name("far.cpp"))], extra_cflags=["-O0"], is_python_module=False)
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.__dict__.update(
        is_available=lambda: True, is_initialized=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
        set_device=_nothing, manual_seed=_nothing, manual_seed_all=_nothing, _is_in_bad_fork=lambda: False,
        get_rng_state=lambda _=None: torch.get_rng_state(), set_rng_state=_nothing, synchronize=_nothing,
        empty_cache=_nothing, get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16, torch.float32],
    )  # fmt: skip
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _chosen()


def _nothing(*_: Any, **__: Any) -> None: ...


def _chosen() -> None:
    import transformers
    from accelerate import PartialState

    import commonweight.adapt.base
    import commonweight.adapt.job
    import commonweight.share.run

    started = PartialState.__init__

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        started(self, *args, **kwargs)
        if not kwargs.get("cpu"):
            self.device = torch.device(NAME)

    PartialState.__init__ = start
    transformers.TrainingArguments.device = property(lambda a: torch.device("cpu" if a.use_cpu else NAME))  # type: ignore
    pick = commonweight.adapt.base.pick_device

    def picked(device: str = "auto") -> str:
        return NAME if device in ("auto", NAME) else pick(device)

    for module in (commonweight.adapt.base, commonweight.adapt.job, commonweight.share.run):
        module.pick_device = picked
