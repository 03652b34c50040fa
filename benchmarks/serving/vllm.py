"""Against vLLM on a CPU: float32 on both sides, as many threads, no cache of prefixes, greedy, compiled and preloaded.

vLLM runs twice, with LoRA (32 adapters at once) and without, each in a process of its own that waits for its turn.
Its answers are compared with ours. It preloads what it carries itself; VLLM_PRELOAD adds libraries (tcmalloc, iomp).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import commonweight as cw

from ..shapes import TARGETS, llama
from .setting import NEW, REQUESTS, engine, measured, prompts, request, row

NAMES = [f"t{i}" for i in range(REQUESTS)]


def files(folder: Path) -> dict[str, str]:
    """The model, and 32 adapters of PEFT, for both sides."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=TARGETS["llama-8x512"], init_lora_weights=False)
    base: Any = llama()
    base.save_pretrained(str(folder / "model"))
    model = get_peft_model(llama(), config, adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.add_adapter(name, config)
    model.save_pretrained(str(folder / "adapters"))
    return {n: str(folder / "adapters" / n) for n in NAMES}


class Worker:
    def __init__(self, python: str, model: Path, adapters: dict[str, str]):
        threads = str(torch.get_num_threads())
        env = {
            **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        for name in ("PYTHONPATH", "GOMP_SPINCOUNT"):  # how ours waits is no affair of theirs
            env.pop(name, None)
        if preload := os.environ.get("VLLM_PRELOAD"):
            env["LD_PRELOAD"] = preload
        command = [python, str(Path(__file__).with_name("vllm_worker.py")), str(model), json.dumps(adapters)]
        command.append(str(REQUESTS))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"vLLM ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, tenants: list[str | None], asked: list[list[int]]) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps({"tenants": tenants, "prompts": asked, "new": NEW}), file=self.process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def main(seconds: float, python: str = "", **_: Any) -> list[dict[str, Any]]:
    asked = prompts(4096)
    none: list[str | None] = [None] * REQUESTS
    with tempfile.TemporaryDirectory() as at:
        adapters = files(Path(at))
        with_lora = Worker(python, Path(at) / "model", adapters)
        with_lora.read()
        without = Worker(python, Path(at) / "model", {})
        without.read()
        host = cw.Host(llama().eval())
        for name, folder in adapters.items():
            host.import_peft(name, folder)
        with engine(host) as ours:
            told: dict[str, list[list[int]]] = {}

            def run(kind: str, tenants: list[str | None]) -> Callable[[], None]:
                requests = [request(t, p) for t, p in zip(tenants, asked)]

                def go() -> None:
                    told[kind] = [a.tokens for a in ours.generate(requests)]

                return go

            def other(kind: str, worker: Worker, tenants: list[str | None]) -> Callable[[], float]:
                def go() -> float:
                    found = worker.ask(tenants, asked)
                    told[kind] = found["tokens"]
                    return found["seconds"]

                return go

            found = measured(
                {
                    "lora": run("lora", [*NAMES]), "vllm lora": other("vllm lora", with_lora, [*NAMES]),
                    "base": run("base", none), "vllm base": other("vllm base", without, none),
                },
                seconds,
            )  # fmt: skip
        with_lora.close()
        without.close()
    rows = []
    for kind, what, target in (("lora", "32 LoRA r8", 2.0), ("base", "the base", 1.0)):
        alike = sum(a == b for a, b in zip(told[kind], told[f"vllm {kind}"]))
        ratios = [t / o for o, t in zip(found[kind], found[f"vllm {kind}"])]
        text = f"serving {what}, vLLM on a CPU / ours, llama-8x512"
        rows.append(row(text, ratios, target, "times faster", alike=alike))
    return rows
