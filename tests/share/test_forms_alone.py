"""Layers that do more than their weights, in a process that has no commonweight: the code in the folder is enough."""

import torch

from commonweight import share
from tests.share.deep import answer, far, gpt2, llama
from tests.share.elsewhere import answers

MADE = {
    "mor": (llama, "mor", {"loops": 3}), "mor token": (llama, "mor", {"loops": 3, "choice": "token"}),
    "mor gpt2": (gpt2, "mor", {"loops": 2, "relax": 2}), "exit": (llama, "exit", {"loops": 3}),
    "sret": (gpt2, "sret", {}),
    "mixturegrowth": (llama, "mixturegrowth", {}),
    "widenet": (llama, "widenet", {"experts": 2}),
    "tiled": (gpt2, "tiled", {"size": 16}), "fusegpt": (llama, "fusegpt", {"layers": (3,), "group": 4, "fused": 2}),
    "sut": (llama, "sut", {"halts": 0.5, "done": 0.8, "experts": 3, "k": 2}),
}  # fmt: skip


def test_they_answer_and_generate_as_before(tmp_path):
    jobs, want = {}, {}
    for name, (make, method, options) in MADE.items():
        small = share.share(make(8), method, **options)
        torch.manual_seed(2)
        with torch.no_grad():
            for p in small.parameters():
                if not p.any() or p.shape == (1,):
                    p.normal_()
        folder = share.save(small, tmp_path / name.replace(" ", "-"))
        jobs[name], want[name] = ("AutoModelForCausalLM", str(folder), True, "float32"), small
    for name, (found, tensors) in answers(tmp_path, jobs).items():
        assert far(found, answer(want[name])) < 1e-7, name
        assert tensors == len(list(want[name].parameters())), name
